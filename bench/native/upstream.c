// The mock provider of the bench: one thread, epoll, HTTP/1.1 with keep-alive, OpenAI's chat completions.
//
//   upstream PORT CHUNKS INTERVAL_MS
//
// A request whose body holds "stream":true is answered by CHUNKS events, the first at once and then one each INTERVAL_MS
// on a clock of its own, so that streams are spread over the interval; every other POST by one fixed JSON answer.
// An event's text is " t<nanoseconds of CLOCK_MONOTONIC at its sending>", by which the load generator measures delay.
// GET /count tells what was asked: {"plain":…,"streams":…}; it counts itself in neither.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_BYTES_MAX = 65536, ANSWER_BYTES_MAX = 8192, CONNECTIONS_MAX = 65536, EVENTS_MAX = 1024 };

typedef struct Connection {
    int socket;
    int received;            // bytes in request
    int unsent, sent;        // bytes in answer, and how many of them are out
    int chunks_left;         // of the stream under way; 0 when there is none
    bool waits_for_space;
    long long due_ns;        // when the next chunk is to be sent
    int heap_place;          // -1 when no chunk is due
    char request[REQUEST_BYTES_MAX + 1];
    char answer[ANSWER_BYTES_MAX];
} Connection;

static int poll_handle, chunks_per_stream;
static long long interval_ns, plain_asked, streams_asked;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Streams by the time their next chunk is due: a binary heap, in which every stream knows its place.
static Connection *heap[CONNECTIONS_MAX];
static int heap_size;

static void put(int place, Connection *connection) {
    heap[place] = connection;
    connection->heap_place = place;
}

static void sift(int place) {
    Connection *moving = heap[place];
    for (int parent = (place - 1) / 2; place > 0 && heap[parent]->due_ns > moving->due_ns; parent = (place - 1) / 2) {
        put(place, heap[parent]);
        place = parent;
    }
    for (int child = 2 * place + 1; child < heap_size; child = 2 * place + 1) {
        if (child + 1 < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= moving->due_ns) break;
        put(place, heap[child]);
        place = child;
    }
    put(place, moving);
}

static void schedule(Connection *connection, long long due_ns) {
    connection->due_ns = due_ns;
    if (connection->heap_place < 0) put(heap_size++, connection);
    sift(connection->heap_place);
}

static void unschedule(Connection *connection) {
    int place = connection->heap_place;
    if (place < 0) return;
    connection->heap_place = -1;
    if (place == --heap_size) return;
    put(place, heap[heap_size]);
    sift(place);
}

static void hang_up(Connection *connection) {
    unschedule(connection);
    close(connection->socket);
    free(connection);
}

static void watch(Connection *connection, int operation, unsigned events) {
    struct epoll_event wanted = {events, {.ptr = connection}};
    epoll_ctl(poll_handle, operation, connection->socket, &wanted);
}

// False when the client is gone. What does not fit into its socket stays in answer.
static bool flush(Connection *connection) {
    while (connection->sent < connection->unsent) {
        ssize_t n = send(connection->socket, connection->answer + connection->sent, connection->unsent - connection->sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            if (!connection->waits_for_space) watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            connection->waits_for_space = true;
            return true;
        }
        if (n < 0) return false;
        connection->sent += n;
    }
    if (connection->waits_for_space) watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    connection->waits_for_space = false;
    connection->unsent = connection->sent = 0;
    return true;
}

static void say(Connection *connection, const char *bytes, int size) {
    memcpy(connection->answer + connection->unsent, bytes, size);
    connection->unsent += size;
}

static void say_json(Connection *connection, const char *body) {
    char head[256];
    int size = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                        strlen(body));
    say(connection, head, size);
    say(connection, body, strlen(body));
}

static void say_chunk(Connection *connection, const char *event) {
    char line[1024];
    int size = snprintf(line, sizeof line, "%zx\r\n%s\r\n", strlen(event), event);
    say(connection, line, size);
}

#define EVENT_HEAD \
    "data: {\"id\":\"chatcmpl-Bx1yZ0a9Qk2mN3pR4sT5uV6w\",\"object\":\"chat.completion.chunk\",\"created\":1763600000," \
    "\"model\":\"gpt-4o-mini\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_560af6e559\",\"choices\":[{\"index\":0,"

static const char PLAIN_ANSWER[] =
    "{\"id\":\"chatcmpl-Bx1yZ0a9Qk2mN3pR4sT5uV6w\",\"object\":\"chat.completion\",\"created\":1763600000,"
    "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Revenue rose by 12 "
    "percent to 418 million in the third quarter while costs were held at 201 million. Orders on hand stood at 1.3 "
    "billion.\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{"
    "\"prompt_tokens\":189,\"completion_tokens\":34,\"total_tokens\":223,\"prompt_tokens_details\":{\"cached_tokens\":0},"
    "\"completion_tokens_details\":{\"reasoning_tokens\":0}},\"service_tier\":\"default\",\"system_fingerprint\":"
    "\"fp_560af6e559\"}";

static bool send_chunk(Connection *connection) {
    char event[768];
    snprintf(event, sizeof event, EVENT_HEAD "\"delta\":{\"content\":\" t%lld\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
             now_ns());
    say_chunk(connection, event);
    if (--connection->chunks_left == 0) {
        unschedule(connection);
        say_chunk(connection, EVENT_HEAD "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n");
        say_chunk(connection, "data: [DONE]\n\n");
        say(connection, "0\r\n\r\n", 5);
    }
    return flush(connection);
}

static bool begin_stream(Connection *connection) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    streams_asked++;
    say(connection, head, sizeof head - 1);
    connection->chunks_left = chunks_per_stream;
    schedule(connection, now_ns() + interval_ns);
    return send_chunk(connection);
}

// Answer every whole request that is there; a stream under way is ended first. False when the client is gone.
static bool answer(Connection *connection) {
    while (connection->chunks_left == 0 && connection->unsent == 0) {
        char *request = connection->request;
        request[connection->received] = 0;
        char *end = strstr(request, "\r\n\r\n");
        if (!end) return connection->received < REQUEST_BYTES_MAX;
        *end = 0;
        char *length = strcasestr(request, "\r\ncontent-length:");
        int head_bytes = end + 4 - request, size = head_bytes + (length ? atoi(length + 17) : 0);
        *end = '\r';
        if (size > REQUEST_BYTES_MAX) return false;
        if (connection->received < size) return true;

        char after = request[size];
        request[size] = 0;
        bool streamed = strstr(request + head_bytes, "\"stream\":true") || strstr(request + head_bytes, "\"stream\": true");
        bool count = !strncmp(request, "GET /count ", 11);
        request[size] = after;
        connection->received -= size;
        memmove(request, request + size, connection->received);
        if (count) {
            char told[128];
            snprintf(told, sizeof told, "{\"plain\":%lld,\"streams\":%lld}", plain_asked, streams_asked);
            say_json(connection, told);
        } else if (streamed) {
            if (!begin_stream(connection)) return false;
            continue;
        } else {
            plain_asked++;
            say_json(connection, PLAIN_ANSWER);
        }
        if (!flush(connection)) return false;
    }
    return true;
}

static bool receive(Connection *connection) {
    ssize_t n = recv(connection->socket, connection->request + connection->received, REQUEST_BYTES_MAX - connection->received,
                     MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) return false;
    connection->received += n;
    return answer(connection);
}

static void accept_all(int listener) {
    int client, one = 1;
    while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *connection = calloc(1, sizeof *connection);
        connection->socket = client;
        connection->heap_place = -1;
        watch(connection, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void send_due_chunks(void) {
    long long now = now_ns();
    while (heap_size && heap[0]->due_ns <= now) {
        Connection *connection = heap[0];
        schedule(connection, connection->due_ns + interval_ns);
        // A reader that is behind gets its chunk at the next turn: nothing is queued for it without bound.
        if (connection->unsent) continue;
        bool there = send_chunk(connection);
        if (there && connection->chunks_left == 0) there = answer(connection);
        if (!there) hang_up(connection);
    }
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "usage: upstream PORT CHUNKS INTERVAL_MS\n");
        return 2;
    }
    chunks_per_stream = atoi(arguments[2]);
    interval_ns = atoll(arguments[3]) * 1000000;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8192)) {
        perror("upstream");
        return 1;
    }
    poll_handle = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted = {EPOLLIN, {.ptr = NULL}};
    epoll_ctl(poll_handle, EPOLL_CTL_ADD, listener, &wanted);
    static struct epoll_event events[EVENTS_MAX];
    for (;;) {
        int patience_ms = -1;
        if (heap_size) {
            long long left = heap[0]->due_ns - now_ns();
            patience_ms = left <= 0 ? 0 : (left + 999999) / 1000000;
        }
        int ready = epoll_wait(poll_handle, events, EVENTS_MAX, patience_ms);
        for (int i = 0; i < ready; i++) {
            Connection *connection = events[i].data.ptr;
            if (!connection) {
                accept_all(listener);
                continue;
            }
            bool there = !(events[i].events & EPOLLOUT) || flush(connection);
            if (there && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) there = receive(connection);
            else if (there) there = answer(connection);
            if (!there) hang_up(connection);
        }
        send_due_chunks();
    }
}
