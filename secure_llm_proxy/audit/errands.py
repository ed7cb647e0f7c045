"""What a thread of the writer asks of its loop, which alone touches the open end of the log."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Protocol

from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType


class NotDone(Exception):
    """The loop did not do it, and will not: the log cannot be written now, or the writer stops. Says why."""


class Desk(Protocol):
    """The loop, as its errands see it. Everything raises `LogUnavailable` when it cannot become durable."""

    def close_records(self) -> None:
        """Afterwards every record stands in a closed segment."""

    def record(self, kind: AuditType, clear: Mapping[str, ClearValue]) -> None:
        """Afterwards the writer's own record is on disk."""


class Errands:
    """A thread asks, the loop is woken by `fileno` and does it in its next turn."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: deque[tuple[Callable[[Desk], None], Future[None]]] = deque()
        self._closed = False

    def fileno(self) -> int:
        return self._bell

    def ring(self) -> None:
        """Wake the loop, though nothing is asked of it."""
        os.eventfd_write(self._bell, 1)

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def ask(self, errand: Callable[[Desk], None], *, patience_s: float) -> None:
        """For threads: return when the loop has done it. Raises `NotDone`."""
        done: Future[None] = Future()
        self._waiting.append((errand, done))
        if self._closed:
            done.cancel()
        else:
            self.ring()
        try:
            done.result(patience_s)
        except FutureTimeout:
            if done.cancel():
                raise NotDone("the writer has no time for it, since the log cannot be written") from None
            # The loop is at it now: it is a matter of one commit.
            self._outcome(done)
        except CancelledError:
            raise NotDone("the writer stops") from None
        except Exception as error:
            raise NotDone(str(error)) from error

    def _outcome(self, done: Future[None]) -> None:
        try:
            done.result()
        except Exception as error:
            raise NotDone(str(error)) from error

    def serve(self, desk: Desk) -> None:
        """For the loop: do what waits. What it raises ends up with whoever asked, and here."""
        while self._waiting:
            errand, done = self._waiting.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                errand(desk)
            except Exception as error:
                done.set_exception(error)
                raise
            done.set_result(None)

    def close(self) -> None:
        """For the loop at its end: nobody waits any more."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft()[1].cancel()
