"""Masters that systemd starts on its own socket, one beside the other: as at an update, or after a crash."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.activated_gunicorn import ActivatedGunicorn
from tests.support.gunicorn_server import answer_of, get, post, rest_of
from tests.support.programs import wait_until

WORKER_DID_NOT_BOOT = 3
_LOADS_SLOWLY = """
import pathlib, time
time.sleep(0.5)
pathlib.Path("loaded").touch()
from tests.support.worker_applications import application
"""
_NAMES_ITS_COUNTERS = """
import os
def application(environ, start_response):
    body = os.environ["PROMETHEUS_MULTIPROC_DIR"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def activated(short_folder: Path, tmp_path: Path) -> Iterator[ActivatedGunicorn]:
    with ActivatedGunicorn(short_folder / tmp_path.name) as holder:
        yield holder


def test_ready_is_said_when_an_application_is_there_to_answer(activated: ActivatedGunicorn) -> None:
    (activated.folder / "slow.py").write_text(_LOADS_SLOWLY)

    master = activated.start(application="slow:application")

    assert master.is_ready()
    assert (activated.folder / "loaded").exists()
    assert _exchange(activated, get("/ignore", b"Connection: close")).endswith(b"ignored")


def test_ready_is_not_said_when_the_application_does_not_start(activated: ActivatedGunicorn) -> None:
    (activated.folder / "broken.py").write_text("raise RuntimeError('broken')")

    master = activated.start(application="broken:application")

    assert master.ended() == WORKER_DID_NOT_BOOT
    assert not master.is_ready(within_s=0.1)


def test_a_master_that_stops_beside_another_costs_no_request(activated: ActivatedGunicorn) -> None:
    old = activated.start()
    assert old.is_ready()
    over, running = threading.Event(), threading.Barrier(5)

    def client(number: int) -> int:
        answered = 0
        line = activated.connect()
        while not over.is_set():
            body = f"mark-{number}-{answered}".encode()
            line.sendall(post("/echo", body))
            answer = answer_of(line)
            assert body in answer
            answered += 1
            if b"Connection: close" in answer or answered % 50 == 0:
                line.close()
                line = activated.connect()
            if answered == 20:
                running.wait(30)
        line.close()
        return answered

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        running.wait(30)
        new = activated.start(private=True)
        assert new.is_ready()
        os.kill(old.process.pid, signal.SIGTERM)
        status = old.ended()
        over.set()

        assert status == 0
        assert all(each.result(30) > 20 for each in clients)
    assert _exchange(activated, get("/ignore", b"Connection: close")).endswith(b"ignored")
    assert _exchange(activated, get("/ignore", b"Connection: close"), activated.private_path).endswith(b"ignored")
    assert "Traceback" not in activated.log_text()


def test_masters_keep_their_counters_apart_and_remove_those_of_the_dead(activated: ActivatedGunicorn) -> None:
    (activated.folder / "naming.py").write_text(_NAMES_ITS_COUNTERS)

    def start() -> tuple[int, Path]:
        master = activated.start(application="naming:application", private=True)
        assert master.is_ready()
        answer = _exchange(activated, get("/", b"Connection: close"), activated.private_path)
        return master.process.pid, Path(answer.rpartition(b"\r\n")[2].decode())

    dead, of_the_dead = start()
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: _can_be_locked(of_the_dead), what="its workers have left")
    old, of_the_old = start()

    assert not of_the_dead.exists()

    new = activated.start(application="naming:application")
    assert new.is_ready()
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: not of_the_old.exists(), what="it took its counters along")
    left = list(of_the_old.parent.iterdir())

    assert len(left) == 1
    assert left[0].name.startswith(f"{new.process.pid}-")

    os.kill(new.process.pid, signal.SIGTERM)
    assert new.ended() == 0
    assert not of_the_old.parent.exists()


def _can_be_locked(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _exchange(activated: ActivatedGunicorn, request: bytes, path: Path | None = None) -> bytes:
    with activated.connect(path) as line:
        line.sendall(request)
        return rest_of(line)
