"""The process that answers readers: `python -m secure_llm_proxy.audit.reader`, a child of the audit writer.

The writer listens on AUDIT_READ_SOCKET and starts this at the first connection (`reader_child`); it hands over the
listener and the mark of what is synced by descriptor, the settings on standard input, whose end ends this process. After 60 s
without a connection it ends by itself, and the writer has the listener back.

A connection is a request, a JSON object on one line of at most 64 KiB, and its answer. Whoever is slow, silent or talks
nonsense loses the connection: 5 s for the request, 5 s without progress and 60 s in all for the answer. A process gets 8
connections at a time, all together 32. It runs at a lower priority than the writer and shares nothing with it but files.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter

import orjson

from secure_llm_proxy.audit.genesis import GenesisBroken, find_host_id, read_genesis
from secure_llm_proxy.audit.handover import settings_from_parent
from secure_llm_proxy.audit.log_view import LogView
from secure_llm_proxy.audit.readings import BUSY, INVALID, UNAVAILABLE, Readings, Refusal, error_line
from secure_llm_proxy.audit.reveals import Reveals
from secure_llm_proxy.audit.synced import SyncedMark
from secure_llm_proxy.audit.writer import report
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

REQUEST_BYTES_MAX = 64 << 10
_REQUEST_S = 5.0
_PROGRESS_S = 5.0
_ANSWER_S = 60.0
_CONNECTIONS_MAX = 32
_CONNECTIONS_PER_PEER = 8
_NICENESS = 5
_PEER = struct.Struct("3i")
_REFUSED_TO_START = 2
_PACE_S = 0.05


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--listener", listener, "--synced", synced, "--idle-ms", idle] if (listener + synced + idle).isdecimal():
            pass
        case _:
            print("This process is started by the audit writer.", file=sys.stderr)
            return _REFUSED_TO_START
    # Ctrl-C is for the writer's parent; this process ends with the writer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    try:
        settings = settings_from_parent()
        reader = _reader(settings, socket.socket(fileno=int(listener)), SyncedMark(int(synced)), int(idle) / 1000)
    except (OperatorError, GenesisBroken) as error:
        report("reader_not_started", error=str(error))
        return _REFUSED_TO_START
    report("reader_started", pid=os.getpid())
    reader.run()
    report("reader_ended", pid=os.getpid())
    return 0


def _reader(settings: AuditSettings, listener: socket.socket, synced: SyncedMark, idle_s: float) -> Reader:
    host = settings.directory / find_host_id(settings)
    genesis = read_genesis(host)
    view = LogView(host, synced.read)
    readings = Readings(view, genesis.log)
    return Reader(listener, readings, Reveals(settings, readings, report), _WriterState(settings), idle_s)


class _WriterState:
    """What the writer says of itself, as far as it does: its state file as it stands there."""

    def __init__(self, settings: AuditSettings) -> None:
        self._path = settings.state_path
        self._reveals_per_hour = settings.reveals_per_hour

    def told(self, opened_in_hour: int | None) -> dict[str, object]:
        reveals = {"opened_in_hour": opened_in_hour, "per_hour": self._reveals_per_hour}
        try:
            told = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            told = None
        return {"reveals": reveals, **({"writer": told} if isinstance(told, dict) else {})}


class Reader:
    """Serves `listener` until nobody has come for `idle_s`, or standard input ends."""

    def __init__(
        self,
        listener: socket.socket,
        readings: Readings,
        reveals: Reveals,
        writer_state: _WriterState,
        idle_s: float,
    ) -> None:
        self._idle_s = idle_s
        self._listener = listener
        self._readings = readings
        self._reveals = reveals
        self._writer_state = writer_state
        self._lock = threading.Lock()
        self._connected: Counter[int] = Counter()
        self._last_left_s = time.monotonic()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(0, select.POLLIN)
        while (patience_s := self._patience_s()) > 0:
            for descriptor, _ in poll.poll(patience_s * 1000):
                if descriptor == 0:
                    if not os.read(0, 4096):
                        # Threads may be at work: nothing of theirs is worth waiting for.
                        os._exit(0)
                else:
                    self._accept()

    def _patience_s(self) -> float:
        with self._lock:
            return self._idle_s if self._connected else self._last_left_s + self._idle_s - time.monotonic()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            report("reader_accept_failed", error=error.strerror)
            time.sleep(_PACE_S)
            return
        process = _process_of(peer)
        with self._lock:
            self._last_left_s = time.monotonic()
            if self._connected.total() >= _CONNECTIONS_MAX or self._connected[process] >= _CONNECTIONS_PER_PEER:
                refused = True
            else:
                refused = False
                self._connected[process] += 1
        if refused:
            with peer, contextlib.suppress(OSError):
                peer.setblocking(False)
                peer.send(error_line(BUSY, "Too many readers are connected. Try again shortly.", retry_after_s=1))
            return
        try:
            threading.Thread(target=self._serve, args=(peer, process), daemon=True).start()
        except RuntimeError:
            peer.close()
            self._left(process)

    def _left(self, process: int) -> None:
        with self._lock:
            self._connected[process] -= 1
            self._connected += Counter()  # without those that are at nought
            self._last_left_s = time.monotonic()

    def _serve(self, peer: socket.socket, process: int) -> None:
        try:
            with peer, contextlib.suppress(OSError):
                self._exchange(peer)
        finally:
            self._left(process)

    def _exchange(self, peer: socket.socket) -> None:
        try:
            answer = b"".join(self._answer(_request_of(peer)))
        except Refusal as refusal:
            answer = error_line(refusal.code, refusal.text, retry_after_s=refusal.retry_after_s)
        except OSError as error:
            report("reading_failed", error=error.strerror or str(error))
            answer = error_line(UNAVAILABLE, "The log could not be read now.")
        _send(peer, answer)

    def _answer(self, request: dict[str, object]) -> list[bytes]:
        if request.get("op") == "reveal":
            return self._reveals.answer(request)
        if request.get("op") == "blind":
            return self._reveals.blind(request)
        if request.get("op") == "state":
            return self._readings.state(self._writer_state.told(self._reveals.opened_in_hour()))
        return self._readings.answer(request)


def _process_of(peer: socket.socket) -> int:
    """The process at the other end (unix(7), SO_PEERCRED)."""
    return int(_PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0])


def _request_of(peer: socket.socket) -> dict[str, object]:
    """The request. Raises `Refusal`, or `OSError` when none comes in time."""
    deadline = time.monotonic() + _REQUEST_S
    arrived = bytearray()
    while not arrived.endswith(b"\n"):
        _limit(peer, deadline)
        piece = peer.recv(REQUEST_BYTES_MAX)
        if not piece:
            raise ConnectionResetError
        arrived += piece
        if len(arrived) > REQUEST_BYTES_MAX:
            raise Refusal(INVALID, f"The request is longer than {REQUEST_BYTES_MAX} bytes.")
    try:
        request = orjson.loads(arrived)
    except orjson.JSONDecodeError:
        raise Refusal(INVALID, "The request is not JSON.") from None
    if not isinstance(request, dict):
        raise Refusal(INVALID, "The request is no JSON object.")
    return request


def _send(peer: socket.socket, answer: bytes) -> None:
    """Raises `OSError` when who asked does not take it in time."""
    deadline = time.monotonic() + _ANSWER_S
    rest = memoryview(answer)
    while rest:
        _limit(peer, deadline)
        rest = rest[peer.send(rest) :]


def _limit(peer: socket.socket, deadline: float) -> None:
    """The next call may take 5 s, but not beyond `deadline`. Raises `TimeoutError` when that has passed."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    peer.settimeout(min(_PROGRESS_S, left_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
