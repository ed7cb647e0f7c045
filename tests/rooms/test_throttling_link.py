"""One connection for all who ask at once: everybody gets their own answer, whatever happens to Redis meanwhile."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import Hold, RedisAway, RedisThrottle, Throttle, open_throttle
from secure_llm_proxy.throttling.buckets import limit_of
from secure_llm_proxy.throttling.process import Account
from secure_llm_proxy.throttling.redis_throttle import IN_FLIGHT_KEY, RATE_KEY
from secure_llm_proxy.vocabulary.caller import RateClass
from tests.support.certificates import make_certificate
from tests.support.ports import free_port
from tests.support.programs import find_program, start_server, stop_server, wait_until_up
from tests.support.redis_server import PrivateRedis

ROOMY = RateClass(requests=1_000_000, burst=1_000_000, concurrent=1_000_000)
PATIENT_S = 20.0


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis(password="secret-of-redis") as running:
        yield running


def throttle_over(url: str, *, timeout_s: float = PATIENT_S) -> RedisThrottle:
    return RedisThrottle(ThrottlingSettings(), RedisSettings(url=SecretStr(url), timeout_s=timeout_s))


# nothing refills while a test runs
SLOW = RateClass(requests=1, burst=2000, concurrent=1_000_000)


def fill(url: str, prefix: str = "key") -> None:
    """Give the bucket of each number a debt that no other has: it is in Redis alone, and so only in its own answer."""
    drops = limit_of(SLOW).request
    with Redis.from_url(url, socket_timeout=10.0) as client:
        client.mset({f"{RATE_KEY}key:{prefix}_{n}": f"{(1000 - n) * drops} 4000000000000000" for n in range(300)})


def knock(throttle: RedisThrottle | Throttle, number: int, turn: int, prefix: str = "key") -> Hold:
    return throttle.take(
        key_id=f"{prefix}_{number}",
        key_class=SLOW,
        address="192.0.2.1",
        address_class=ROOMY,
        exchange_id=f"exc_{prefix}_{number}_{turn}",
    )


def answer_to(number: int, turn: int) -> tuple[str, bool, int]:
    """What nobody else's question is answered: what remains of the bucket tells the number and the turn."""
    return ("redis", True, 1000 + number - 1 - turn)


def told(hold: Hold) -> tuple[str, bool, int]:
    return (hold.decision.source, hold.decision.allowed, hold.decision.remaining)


def unlost(hold: Hold, away: RedisAway) -> None:
    raise AssertionError(f"{hold.exchange_id}: {away.reason}")


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """What `work(number)` gave or raised, each in a greenlet of its own."""
    greenlets = [gevent.spawn(_outcome, work, number) for number in range(count)]
    gevent.joinall(greenlets, timeout=60)
    assert all(greenlet.ready() for greenlet in greenlets)
    return [greenlet.value for greenlet in greenlets]


def _outcome(work: Callable[[int], object], number: int) -> object:
    try:
        return work(number)
    except RedisAway as away:
        return away.reason


def eventually(fact: Callable[[], bool]) -> bool:
    """Let the loop turn until it is so: 30 s are given."""
    for _ in range(600):
        if fact():
            return True
        gevent.sleep(0.05)
    return False


def test_two_hundred_at_once_get_their_own_answers_over_one_connection(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)

    def visit(number: int) -> list[tuple[str, bool, int]]:
        answers = []
        for turn in range(10):
            hold = knock(throttle, number, turn)
            answers.append(told(hold))
            throttle.release(hold, unlost)
        return answers

    answers = together(200, visit)

    assert answers == [[answer_to(number, turn) for turn in range(10)] for number in range(200)]
    with server.client() as client:
        # the test's own eyes are the other one
        assert len(client.client_list()) == 2
        assert eventually(lambda: list(client.scan_iter(IN_FLIGHT_KEY + "*")) == [])
    throttle.close()


def test_a_redis_killed_midway_fails_all_who_wait_and_serves_them_when_it_is_back(server: PrivateRedis) -> None:
    throttle = throttle_over(server.url)
    knock(throttle, 999, 0)
    server.pause()

    asking = gevent.spawn(together, 100, lambda number: knock(throttle, number, 0))
    gevent.sleep(0.1)
    server.kill()

    assert asking.get(timeout=60) == ["ConnectionError"] * 100
    assert together(20, lambda number: knock(throttle, number, 0)) == ["ConnectionError"] * 20
    server.start()
    fill(server.url)
    assert together(100, lambda number: told(knock(throttle, number, 0))) == [answer_to(n, 0) for n in range(100)]
    throttle.close()


def test_answers_of_a_redis_that_hung_reach_nobody_else(server: PrivateRedis) -> None:
    fill(server.url, "prompt")
    throttle = throttle_over(server.url, timeout_s=3.0)
    knock(throttle, 999, 0)
    server.pause()

    assert together(50, lambda number: knock(throttle, number, 0, "late")) == ["TimeoutError"] * 50

    server.resume()
    # it may need a moment to work off what it slept through
    assert eventually(lambda: _is_answered(throttle))
    answers = together(50, lambda number: told(knock(throttle, number, 0, "prompt")))
    assert answers == [answer_to(number, 0) for number in range(50)]
    with server.client() as client:
        # carried out late perhaps, but nothing was sent twice
        debts = [str(client.get(f"{RATE_KEY}key:late_{number}") or "0 0").split()[0] for number in range(50)]
    assert all(int(debt) <= limit_of(SLOW).request for debt in debts)
    throttle.close()


def _is_answered(throttle: RedisThrottle) -> bool:
    try:
        return throttle.count_hosts("host-a") == 1
    except RedisAway:
        return False


def test_a_worker_busy_for_longer_than_the_timeout_takes_the_answers_that_came_meanwhile(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url, timeout_s=1.0)
    together(1, lambda _: knock(throttle, 999, 0))
    for turn in range(3):
        asking = [gevent.spawn(_answer, throttle, number, turn) for number in range(20)]
        # their questions leave
        gevent.sleep(0)
        gevent.sleep(0)

        # and nothing else happens in this thread for a while
        threading.Event().wait(1.5)

        assert [greenlet.get(timeout=60) for greenlet in asking] == [answer_to(number, turn) for number in range(20)]
    throttle.close()


def test_scripts_may_be_forgotten_at_any_moment(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)
    over = Event()

    def flush() -> int:
        count = 0
        with server.client() as client:
            while not over.wait(0.005):
                client.script_flush()
                count += 1
        return count

    def visit(number: int) -> list[tuple[str, bool, int]]:
        answers = []
        for turn in range(40):
            hold = knock(throttle, number, turn)
            answers.append(told(hold))
            throttle.release(hold, unlost)
            gevent.sleep(0.005)
        return answers

    flushing = gevent.spawn(flush)
    answers = together(30, visit)
    over.set()

    assert answers == [[answer_to(number, turn) for turn in range(40)] for number in range(30)]
    assert flushing.get(timeout=60) > 5
    with server.client() as client:
        assert eventually(lambda: list(client.scan_iter(IN_FLIGHT_KEY + "*")) == [])
    throttle.close()


def _answer(throttle: RedisThrottle, number: int, turn: int = 0) -> tuple[str, bool, int]:
    return told(knock(throttle, number, turn))


def test_the_place_of_one_who_left_is_kept(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)
    knock(throttle, 999, 0)
    server.pause()
    greenlets = [gevent.spawn(_answer, throttle, number) for number in range(60)]
    gevent.sleep(0.1)

    gevent.killall(greenlets[::2], timeout=30)
    server.resume()

    assert [greenlet.get(timeout=60) for greenlet in greenlets[1::2]] == [answer_to(n, 0) for n in range(1, 60, 2)]
    throttle.close()


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_told_to_all_who_wait(server: PrivateRedis, password: str | None) -> None:
    throttle = throttle_over(server.url_with(password))

    assert together(20, lambda number: knock(throttle, number, 0)) == ["AuthenticationError"] * 20
    throttle.close()


def test_a_connection_that_redis_ended_while_nobody_asked_costs_nobody_anything(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)
    assert told(knock(throttle, 1, 0)) == answer_to(1, 0)

    # in a program that does not let the loop turn
    _hang_up_on_everybody(server)
    assert told(knock(throttle, 1, 1)) == answer_to(1, 1)

    # and in a worker
    assert together(1, lambda _: told(knock(throttle, 1, 2))) == [answer_to(1, 2)]
    _hang_up_on_everybody(server)
    gevent.sleep(0.2)
    assert together(1, lambda _: told(knock(throttle, 1, 3))) == [answer_to(1, 3)]
    throttle.close()


def _hang_up_on_everybody(server: PrivateRedis) -> None:
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)


def test_a_release_does_not_wait_and_is_told_before_hanging_up(server: PrivateRedis) -> None:
    throttle = throttle_over(server.url)
    with server.client() as client:
        hold = knock(throttle, 1, 0)
        server.pause()
        gevent.spawn(throttle.release, hold, unlost).get(timeout=PATIENT_S)
        server.resume()

        throttle.close()

        assert client.zcard(IN_FLIGHT_KEY + "key:key_1") == 0


def test_a_release_that_redis_did_not_answer_is_told_to_it_again(server: PrivateRedis) -> None:
    throttle = open_throttle(
        ThrottlingSettings(),
        RedisSettings(url=SecretStr(server.url), timeout_s=3.0),
        host_id="host-a",
        clock=SystemClock(),
        on_fallback=lambda: None,
    )
    holds = together(20, lambda number: knock(throttle, number, 0))
    assert all(isinstance(hold, Hold) and hold.decision.source == "redis" for hold in holds)
    server.pause()

    together(20, lambda number: throttle.release(holds[number]))  # type: ignore[arg-type]
    assert eventually(lambda: throttle.trouble() is not None)
    # it never learns what was sent: this one is a new and empty Redis that is given the slots by hand
    server.kill()
    server.start()
    with server.client() as client:
        for number in range(20):
            client.zadd(IN_FLIGHT_KEY + f"key:key_{number}", {f"exc_key_{number}_0": 4e15})

        assert eventually(lambda: _beats(throttle))
        assert list(client.scan_iter(IN_FLIGHT_KEY + "*")) == []
    throttle.close()


def _beats(throttle: Throttle) -> bool:
    throttle.heartbeat()
    return throttle.trouble() is None


def test_a_release_that_redis_refuses_is_told_to_it_again(server: PrivateRedis) -> None:
    throttle = open_throttle(
        ThrottlingSettings(),
        RedisSettings(url=SecretStr(server.url), timeout_s=PATIENT_S),
        host_id="host-a",
        clock=SystemClock(),
        on_fallback=lambda: None,
    )
    (hold,) = together(1, lambda number: knock(throttle, number, 0))
    assert isinstance(hold, Hold)
    with server.client() as client:
        client.config_set("min-replicas-to-write", 3)

        together(1, lambda _: throttle.release(hold))
        assert eventually(lambda: throttle.trouble() is not None)
        assert client.zcard(IN_FLIGHT_KEY + "key:key_0") == 1
        client.config_set("min-replicas-to-write", 0)

        assert eventually(lambda: _beats(throttle))
        assert client.zcard(IN_FLIGHT_KEY + "key:key_0") == 0
    throttle.close()


def test_more_than_the_kernel_takes_at_once_arrives_whole_and_in_order(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)
    knock(throttle, 999, 0)
    limit = limit_of(ROOMY)
    accounts = [
        Account(f"key:many_{number}", limit, 0, tuple(f"exc_{number}_{slot}_{'x' * 200}" for slot in range(2000)))
        for number in range(20)
    ]

    settling = gevent.spawn(throttle.settle, accounts, [])
    answers = gevent.spawn(together, 50, lambda number: told(knock(throttle, number, 0)))

    settling.get(timeout=60)
    assert answers.get(timeout=60) == [answer_to(number, 0) for number in range(50)]
    with server.client() as client:
        assert [client.zcard(IN_FLIGHT_KEY + account.name) for account in accounts] == [2000] * 20
    throttle.close()


def test_an_answer_that_nobody_asked_for_breaks_the_connection() -> None:
    grant = b"*5\r\n:1\r\n:%d\r\n:0\r\n:0\r\n:0\r\n" % (1000 * limit_of(SLOW).request)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(b"+PONG\r\n")
                        if connection.recv(65_536):
                            connection.sendall(grant + grant)
                            connection.recv(65_536)
            except OSError:
                return

        thread = threading.Thread(target=answer)
        thread.start()
        throttle = throttle_over(f"redis://127.0.0.1:{listener.getsockname()[1]}")

        first = together(1, lambda number: told(knock(throttle, number, 0)))
        second = together(2, lambda number: knock(throttle, number, 1) and None)

        throttle.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    # the second answer of the first connection is nobody's; the second connection's two are both asked for
    assert first == [answer_to(0, 0)]
    assert second == [None, None]


def test_a_name_is_looked_up_and_a_database_selected(server: PrivateRedis) -> None:
    url = server.url.replace("127.0.0.1", "localhost").removesuffix("/0") + "/5"
    fill(url)
    throttle = throttle_over(url)

    answers = together(20, lambda number: told(knock(throttle, number, 0)))

    assert answers == [answer_to(number, 0) for number in range(20)]
    with server.client() as client:
        assert client.info("keyspace").keys() == {"db5"}
    throttle.close()


def test_a_unix_socket_serves_as_well(short_folder: Path) -> None:
    path = short_folder / "throttling.sock"
    arguments = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(short_folder)]
    log = short_folder / "throttling.log"
    with log.open("ab") as output:
        process = start_server([find_program("redis-server", package="redis-server"), *arguments], output=output)
    try:
        wait_until_up(process, lambda: _is_up(f"unix://{path}"), log=log)
        fill(f"unix://{path}")
        throttle = throttle_over(f"unix://{path}")

        assert together(50, lambda number: told(knock(throttle, number, 0))) == [answer_to(n, 0) for n in range(50)]
        throttle.close()
    finally:
        stop_server(process, signal.SIGTERM)


def _is_up(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_timeout=10.0) as client:
            return bool(client.ping())
    except RedisError:
        return False


def test_tls_hides_the_questions_and_is_verified(server: PrivateRedis, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "trusted")
    other = make_certificate(tmp_path / "other")
    port = free_port()
    with server.client() as client:
        client.config_set("tls-cert-file", str(certificate.certificate), "tls-key-file", str(certificate.key))
        client.config_set("tls-ca-cert-file", str(certificate.authority), "tls-auth-clients", "no")
        client.config_set("tls-port", port)
    url = f"rediss://:secret-of-redis@localhost:{port}/0?ssl_ca_certs="
    fill(server.url)
    trusting = throttle_over(url + str(certificate.authority))
    distrusting = throttle_over(url + str(other.authority))

    def visit(number: int) -> list[tuple[str, bool, int]]:
        answers = []
        for turn in range(5):
            hold = knock(trusting, number, turn)
            answers.append(told(hold))
            trusting.release(hold, unlost)
        return answers

    answers = together(100, visit)
    refused = together(5, lambda number: knock(distrusting, number, 0))

    assert answers == [[answer_to(number, turn) for turn in range(5)] for number in range(100)]
    assert refused == ["SSLCertVerificationError"] * 5
    trusting.close()
    distrusting.close()


FORKING = """
import os, sys
import gevent
from pydantic import SecretStr
from secure_llm_proxy.settings import RedisSettings, ThrottlingSettings
from secure_llm_proxy.throttling import RedisThrottle
from secure_llm_proxy.vocabulary.caller import RateClass
url = sys.stdin.readline().strip()
throttle = RedisThrottle(ThrottlingSettings(), RedisSettings(url=SecretStr(url), timeout_s=20.0))
roomy = RateClass(1000000, 1000000, 1000000)
def own_answers(key, burst):
    def visit(number):
        hold = throttle.take(
            key_id=f"{key}_{number}", key_class=RateClass(1, burst + number, 1000000), address="192.0.2.1",
            address_class=roomy, exchange_id=f"{key}_{number}")
        return hold.decision.remaining == burst + number - 1
    greenlets = [gevent.spawn(visit, number) for number in range(100)]
    return all(greenlet.get(timeout=30) for greenlet in greenlets)
assert own_answers("before", 100)
print("connected", flush=True)
sys.stdin.readline()
asking = gevent.spawn(own_answers, "meanwhile", 1000)
gevent.sleep(0.3)
child = os.fork()
if child:
    print("forked", flush=True)
rights = own_answers("child", 10000) if child == 0 else own_answers("parent", 100000)
if child == 0:
    os.write(1, b"%a\\n" % rights)
    sys.stdin.readline()
    os._exit(0)
os.write(1, b"%a\\n" % (rights and asking.get(timeout=30)))
sys.stdin.readline()
os.waitpid(child, 0)
"""


def test_a_forked_child_asks_over_a_connection_of_its_own(server: PrivateRedis) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(server.url + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "connected\n"
    # so that a hundred questions are unanswered when it forks
    server.pause()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "forked\n"
    server.resume()

    lines = [process.stdout.readline() for _ in range(2)]
    with server.client() as client:
        connections = len(client.client_list())
    process.communicate("\n\n", timeout=60)

    assert lines == ["True\n", "True\n"]
    # the parent's, the child's and the test's own
    assert connections == 3
    assert process.returncode == 0


def test_threads_have_a_connection_each(server: PrivateRedis) -> None:
    fill(server.url)
    throttle = throttle_over(server.url)
    answers: list[tuple[str, bool, int]] = []

    def visit(number: int) -> None:
        for turn in range(20):
            hold = knock(throttle, number, turn)
            answers.append(told(hold))
            throttle.release(hold, unlost)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(answers) == sorted(answer_to(number, turn) for number in range(8) for turn in range(20))
    with server.client() as client:
        assert eventually(lambda: list(client.scan_iter(IN_FLIGHT_KEY + "*")) == [])
        # nothing of a thread that ended stays
        assert eventually(lambda: len(client.client_list()) == 1)
    throttle.close()
