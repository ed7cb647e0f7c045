"""Clients that ask without pause while something happens to the product, and what became of every request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.clients import Door, connection_to
from tests.support.programs import wait_until

_MESSAGES = [{"role": "user", "content": "Is all well?"}]
_STOPPED = "server_stop"


@dataclass(slots=True)
class Outcome:
    """`answered` plain requests, `finished` streams, `stopped` streams that ended with the product's own word that it is
    being stopped, and in `failed` one sentence for everything else. `slowest_s` is the longest wait for a first byte.
    """

    answered: int = 0
    finished: int = 0
    stopped: int = 0
    failed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    exchanges: list[str] = field(default_factory=list)


class SteadyLoad:
    """`with SteadyLoad(door, key) as load:` asks until the block ends, each request over a connection of its own, each client
    with `pause_s` between two.
    """

    def __init__(
        self, door: Door, key: str, *, plain: int = 4, streams: int = 4, model: str = "test-model", pause_s: float = 0.0
    ) -> None:
        self._door = door
        self._key = key
        self._model = model
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.outcome = Outcome()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(stream,), daemon=True)
            for stream in [False] * plain + [True] * streams
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def wait_for_more(self, count: int, *, seconds: float = 120.0) -> None:
        """Return when so many further plain requests were answered, so many streams ended, or one failed."""
        plain, streams = self.outcome.answered + count, self.outcome.finished + self.outcome.stopped + count

        def is_enough() -> bool:
            ended = self.outcome.finished + self.outcome.stopped
            return bool(self.outcome.failed) or (self.outcome.answered >= plain and ended >= streams)

        wait_until(is_enough, what="the clients go on", seconds=seconds)

    def _ask_on(self, stream: bool) -> None:  # noqa: FBT001  a thread's only argument
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                with connection_to(self._door) as connection:
                    self._ask(connection, stream=stream, began=began)
            except (OSError, http.client.HTTPException) as error:
                # A client's own failure is the finding here, whatever it is.
                self._note(f"{'stream' if stream else 'plain'}: {type(error).__name__}: {error}")
            self._stopping.wait(self._pause_s)

    def _ask(self, connection: http.client.HTTPConnection, *, stream: bool, began: float) -> None:
        body = json.dumps({"model": self._model, "messages": _MESSAGES, "stream": stream})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
        answer = connection.getresponse()
        waited = time.monotonic() - began
        told = answer.read()
        with self._lock:
            self.outcome.slowest_s = max(self.outcome.slowest_s, waited)
            self.outcome.exchanges.append(answer.headers.get("X-Request-Id", ""))
        if answer.status != http.HTTPStatus.OK:
            self._note(f"{'stream' if stream else 'plain'}: {answer.status} {told[:300]!r}")
        elif not stream:
            with self._lock:
                self.outcome.answered += 1
        elif told.rstrip().endswith(b"data: [DONE]"):
            with self._lock:
                self.outcome.finished += 1
        elif _STOPPED.encode() in told:
            with self._lock:
                self.outcome.stopped += 1
        else:
            self._note(f"stream: cut after {told[-300:]!r}")

    def _note(self, sentence: str) -> None:
        with self._lock:
            self.outcome.failed.append(sentence)
