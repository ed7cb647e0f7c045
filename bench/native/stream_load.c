// Streaming load: K server-sent streams held open at once, each asked for again when it ends, over kept connections.
//
//   stream_load PORT PATH K RAMP_S MEASURE_S BODY_FILE [HEADER ...]
//
// Streams begin spread over 0.8 × RAMP_S; after RAMP_S everything that happens within MEASURE_S is counted. One line of JSON:
// chunks read, streams ended, refused (another status than 200) and broken off, milliseconds from request to first
// chunk, and milliseconds from the upstream's sending of a chunk (its text is " t<CLOCK_MONOTONIC ns>") to its arrival.
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

enum { BUFFER_BYTES = 65536, SAMPLES_MAX = 4000000, EVENTS_MAX = 1024, REQUEST_BYTES_MAX = 65536 };

typedef struct Stream {
    int socket;               // -1 while it has none
    int held;                 // bytes in buffer
    bool head_read, first_chunk_seen, done_seen, must_close;
    long long asked_ns, retry_ns;
    char buffer[BUFFER_BYTES + 1];
} Stream;

static char request[REQUEST_BYTES_MAX];
static int request_bytes, port, poll_handle;
static long long measure_from_ns, measure_until_ns;
static float *first_chunk_ms, *delay_ms;
static long first_chunks, delays, chunks, ended, refused, broken;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool measuring(long long at_ns) { return at_ns >= measure_from_ns && at_ns < measure_until_ns; }

static void count(long *what) {
    if (measuring(now_ns())) ++*what;
}

static void drop(Stream *stream) {
    if (stream->socket >= 0) close(stream->socket);
    stream->socket = -1;
    stream->retry_ns = now_ns() + 10000000;  // a server that refuses is not asked in a busy loop
}

static void ask(Stream *stream) {
    stream->held = 0;
    stream->head_read = stream->first_chunk_seen = stream->done_seen = stream->must_close = false;
    if (stream->socket < 0) {
        int one = 1;
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
        stream->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(stream->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(stream->socket, (struct sockaddr *)&address, sizeof address)) {
            count(&broken);
            drop(stream);
            return;
        }
        struct epoll_event wanted = {EPOLLIN, {.ptr = stream}};
        epoll_ctl(poll_handle, EPOLL_CTL_ADD, stream->socket, &wanted);
    }
    stream->asked_ns = now_ns();
    if (send(stream->socket, request, request_bytes, MSG_NOSIGNAL) != request_bytes) {
        count(&broken);
        drop(stream);
    }
}

static void finish(Stream *stream, long *outcome) {
    count(outcome);
    if (outcome != &ended || stream->must_close) drop(stream);
    if (outcome == &ended) ask(stream);
}

// True when the head is read and says 200. False when more bytes are needed or the stream is over.
static bool read_head(Stream *stream) {
    char *end = strstr(stream->buffer, "\r\n\r\n");
    if (!end) return false;
    *end = 0;
    bool good = !strncmp(stream->buffer, "HTTP/1.1 200", 12);
    stream->must_close = strcasestr(stream->buffer, "\r\nconnection: close") != NULL;
    if (!good) {
        static int shown;
        if (shown++ < 2) fprintf(stderr, "%s\n%.300s\n", stream->buffer, end + 4);
        finish(stream, &refused);
        return false;
    }
    stream->head_read = true;
    stream->held -= end + 4 - stream->buffer;
    memmove(stream->buffer, end + 4, stream->held + 1);
    return true;
}

static void read_chunks(Stream *stream) {
    long long now = now_ns();
    char *unread = stream->buffer, *mark;
    while ((mark = strstr(unread, "\" t"))) {
        char *end;
        long long sent_ns = strtoll(mark + 3, &end, 10);
        if (*end == 0) break;  // the number may go on in the next packet
        unread = end;
        // The last event of /chat repeats the whole text, which begins like a chunk.
        if (sent_ns <= 0 || (mark - stream->buffer >= 11 && !memcmp(mark - 11, "\"response\":", 11))) continue;
        if (!measuring(now)) {
            stream->first_chunk_seen = true;
            continue;
        }
        chunks++;
        if (delays < SAMPLES_MAX) delay_ms[delays++] = (now - sent_ns) / 1e6;
        if (!stream->first_chunk_seen && first_chunks < SAMPLES_MAX) first_chunk_ms[first_chunks++] = (now - stream->asked_ns) / 1e6;
        stream->first_chunk_seen = true;
    }
    // OpenAI's last event and Anthropic's.
    if ((mark = strstr(unread, "[DONE]")) || (mark = strstr(unread, "\"message_stop\""))) {
        stream->done_seen = true;
        unread = mark + 6;
    }
    if (stream->done_seen && stream->held >= 5 && !memcmp(stream->buffer + stream->held - 5, "0\r\n\r\n", 5)) {
        finish(stream, &ended);
        return;
    }
    // Keep what may be the beginning of a mark, or of the body's end.
    int left = stream->buffer + stream->held - unread, keep = left > 2048 ? 2048 : left;
    memmove(stream->buffer, stream->buffer + stream->held - keep, keep + 1);
    stream->held = keep;
}

static void receive(Stream *stream) {
    ssize_t n = recv(stream->socket, stream->buffer + stream->held, BUFFER_BYTES - stream->held, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        finish(stream, stream->done_seen && stream->must_close ? &ended : &broken);
        return;
    }
    stream->held += n;
    stream->buffer[stream->held] = 0;
    if (stream->head_read || read_head(stream)) read_chunks(stream);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(float *samples, long size, double share) { return size ? samples[(long)(share * (size - 1))] : -1; }

static bool make_request(const char *path, const char *body_file, char **headers, int header_count) {
    static char body[REQUEST_BYTES_MAX / 2];
    FILE *file = fopen(body_file, "rb");
    if (!file) return false;
    size_t size = fread(body, 1, sizeof body, file);
    fclose(file);
    request_bytes = snprintf(request, sizeof request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n", path, port);
    for (int i = 0; i < header_count; i++)
        request_bytes += snprintf(request + request_bytes, sizeof request - request_bytes, "%s\r\n", headers[i]);
    request_bytes += snprintf(request + request_bytes, sizeof request - request_bytes, "Content-Length: %zu\r\n\r\n", size);
    memcpy(request + request_bytes, body, size);
    request_bytes += size;
    return true;
}

int main(int count, char **arguments) {
    if (count < 7) {
        fprintf(stderr, "usage: stream_load PORT PATH K RAMP_S MEASURE_S BODY_FILE [HEADER ...]\n");
        return 2;
    }
    port = atoi(arguments[1]);
    int size = atoi(arguments[3]), begun = 0;
    double ramp_s = atof(arguments[4]), measure_s = atof(arguments[5]);
    if (!make_request(arguments[2], arguments[6], arguments + 7, count - 7)) {
        perror(arguments[6]);
        return 1;
    }
    first_chunk_ms = malloc(SAMPLES_MAX * sizeof *first_chunk_ms);
    delay_ms = malloc(SAMPLES_MAX * sizeof *delay_ms);
    poll_handle = epoll_create1(EPOLL_CLOEXEC);
    Stream **streams = calloc(size, sizeof *streams);
    for (int i = 0; i < size; i++) {
        streams[i] = calloc(1, sizeof **streams);
        streams[i]->socket = -1;
    }
    long long from_ns = now_ns();
    measure_from_ns = from_ns + ramp_s * 1e9;
    measure_until_ns = measure_from_ns + measure_s * 1e9;
    static struct epoll_event events[EVENTS_MAX];
    for (long long now = from_ns; now < measure_until_ns; now = now_ns()) {
        int wanted = ramp_s > 0 ? (now - from_ns) / (ramp_s * 0.8e9) * size + 1 : size;
        for (; begun < wanted && begun < size; begun++) ask(streams[begun]);
        for (int i = 0; i < begun; i++)
            if (streams[i]->socket < 0 && streams[i]->retry_ns <= now) ask(streams[i]);
        int ready = epoll_wait(poll_handle, events, EVENTS_MAX, 2);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr);
    }
    qsort(first_chunk_ms, first_chunks, sizeof *first_chunk_ms, ascending);
    qsort(delay_ms, delays, sizeof *delay_ms, ascending);
    printf("{\"chunks\":%ld,\"seconds\":%.3f,\"ended\":%ld,\"refused\":%ld,\"broken\":%ld,\"first_chunk_p50_ms\":%.3f,"
           "\"first_chunk_p99_ms\":%.3f,\"delay_p50_ms\":%.3f,\"delay_p99_ms\":%.3f}\n",
           chunks, measure_s, ended, refused, broken, percentile(first_chunk_ms, first_chunks, .5),
           percentile(first_chunk_ms, first_chunks, .99), percentile(delay_ms, delays, .5), percentile(delay_ms, delays, .99));
}
