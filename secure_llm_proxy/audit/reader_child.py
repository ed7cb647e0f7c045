"""The writer's side of reading: it listens, and starts the process that answers when somebody comes.

Nothing here waits: starting costs the writing loop a fork by vfork(2) (about 2 ms, at most once a minute of idleness), and
everything else is a call of epoll. A process that fails is started again at the next connection, after a pause that grows
to 5 s.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from secure_llm_proxy.audit.handover import settings_line
from secure_llm_proxy.audit.synced import SyncedMark
from secure_llm_proxy.settings import AuditSettings

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "HOME")
_IDLE_S = 60.0
_PAUSE_S = 0.1
_PAUSE_MAX_S = 5.0
_PROVEN_S = 10.0
_STOP_S = 2.0
_LOOK_S = 0.005


class ReaderChild:
    """`listener` is bound, listening and non-blocking. Speaks to the loop through its epoll and `due_s`."""

    def __init__(
        self,
        settings: AuditSettings,
        listener: socket.socket,
        report: Callable[..., None],
        *,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._idle_ms = round(idle_s * 1000)
        self._line = settings_line(settings)
        self._listener = listener
        self._report = report
        self._synced = SyncedMark.create()
        self._epoll: select.epoll | None = None
        self._child: subprocess.Popen[bytes] | None = None
        # Ends when the child has ended: only it holds the other end.
        self._alive = -1
        self._started_s = 0.0
        self._pause_s = _PAUSE_S
        self._again_at_s: float | None = None
        self._ended: list[subprocess.Popen[bytes]] = []

    def watch(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def hear(self, descriptor: int) -> bool:
        """Whether the event was for us; it is dealt with then."""
        if descriptor == self._listener.fileno():
            self._start()
        elif descriptor == self._alive and self._alive >= 0:
            self._hear_child()
        else:
            return False
        return True

    @property
    def pid(self) -> int | None:
        """Of the process that answers now; None while nobody has come."""
        return None if self._child is None else self._child.pid

    @property
    def due_s(self) -> float | None:
        """Seconds until `tick` has something to do; None when it has not."""
        return None if self._again_at_s is None else max(0.0, self._again_at_s - time.monotonic())

    def tick(self, durable: tuple[int, bytes]) -> None:
        """Tell the reader how far the log is on disk: so many lines, and the last one's hash."""
        self._synced.tell(*durable)
        if self._again_at_s is not None and time.monotonic() >= self._again_at_s:
            self._again_at_s = None
            self._listen()

    def stop(self) -> None:
        """Afterwards the child has ended; waits 2 s for it at most, then kills it."""
        child, self._child = self._child, None
        if child is not None:
            _hang_up(child)
            deadline = time.monotonic() + _STOP_S
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                # One that a hung disk holds is not waited for.
                child.wait(_STOP_S)
        self._forget_child()
        self._synced.close()
        self._listener.close()

    # --- the child ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._epoll is not None:
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)

    def _start(self) -> None:
        self._ended = [child for child in self._ended if child.poll() is None]
        if self._epoll is not None:
            # It is the child's now; registered, so that the number can't be another's.
            self._epoll.modify(self._listener.fileno(), 0)
        alive, told = os.pipe2(os.O_CLOEXEC)
        try:
            child = subprocess.Popen(  # noqa: S603  our own interpreter, and numbers
                [
                    *(sys.executable, "-m", "secure_llm_proxy.audit.reader"),
                    *("--listener", str(self._listener.fileno())),
                    *("--synced", str(self._synced.descriptor)),
                    *("--idle-ms", str(self._idle_ms)),
                ],
                stdin=subprocess.PIPE,
                stdout=told,
                pass_fds=(self._listener.fileno(), self._synced.descriptor),
                env=_environment(),
            )
        except OSError as error:
            os.close(alive)
            self._report("reader_not_started", error=error.strerror or str(error))
            self._pause()
            return
        finally:
            os.close(told)
        self._child, self._alive, self._started_s = child, alive, time.monotonic()
        if self._epoll is not None:
            self._epoll.register(alive, select.EPOLLIN)
        if child.stdin is not None:
            # Less than a pipe holds, so this never waits.
            with contextlib.suppress(OSError):
                child.stdin.write(self._line)
                child.stdin.flush()

    def _hear_child(self) -> None:
        """It said something, which is a mistake, or it has ended."""
        if os.read(self._alive, 4096):
            return
        child, self._child = self._child, None
        self._forget_child()
        if child is None:
            return
        _hang_up(child)
        # It holds no descriptor any more, so it is at its end; a moment later it can be waited for.
        deadline = time.monotonic() + 20 * _LOOK_S
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if child.returncode == 0 or time.monotonic() - self._started_s > _PROVEN_S:
            self._pause_s = _PAUSE_S
        if child.returncode == 0:
            self._listen()
            return
        if child.returncode is None:
            child.kill()
            self._ended.append(child)
        self._report("reader_failed", exit_code=child.returncode)
        self._pause()

    def _forget_child(self) -> None:
        if self._alive >= 0:
            if self._epoll is not None:
                self._epoll.unregister(self._alive)
            os.close(self._alive)
            self._alive = -1

    def _pause(self) -> None:
        self._again_at_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)


def _hang_up(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _environment() -> dict[str, str]:
    """Nothing of the writer's own: its settings travel on standard input."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    kept["PYTHONPATH"] = os.pathsep.join([_PACKAGE_ROOT, *filter(None, [kept.get("PYTHONPATH")])])
    return kept
