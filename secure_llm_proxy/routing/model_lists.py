"""The models that providers list themselves, kept for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import gevent
from gevent.lock import RLock

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ProxyError

log = logging.getLogger(__name__)

RETRY_S = 5.0


@dataclass(slots=True)
class _List:
    """`models` None: it was never told."""

    models: tuple[str, ...] | None = None
    ask_again_s: float = 0.0


class ModelLists:
    """Answers from memory; asks each provider at most once per `cache_s`, one greenlet at a time.

    Who finds a list old asks, all the providers whose list is old at once; the others go on with what there is, and wait only
    while some provider's list was never told. A provider that fails leaves its last list in force.
    """

    def __init__(self, cache_s: float, ask: Callable[[str], tuple[str, ...]], clock: Clock) -> None:
        self._cache_s = cache_s
        self._ask = ask
        self._clock = clock
        self._lock = RLock()
        self._lists: dict[str, _List] = {}
        self.version = 0
        """Changes with what is known."""
        self.due_s = float("inf")
        """When somebody has to ask."""

    def watch(self, providers: Iterable[str], *, changed: Iterable[str] = ()) -> None:
        """Keep the lists of these; what was known of `changed` ones is forgotten."""
        gone = set(changed)
        self._lists = {
            name: self._lists[name] if name in self._lists and name not in gone else _List() for name in providers
        }
        self._moved()

    def refresh(self) -> None:
        """Ask those that are due."""
        unknown = any(known.models is None and not known.ask_again_s for known in self._lists.values())
        if not self._lock.acquire(blocking=unknown):
            return
        try:
            now_s = self._clock.monotonic_s()
            due = [(name, known) for name, known in self._lists.items() if known.ask_again_s <= now_s]
            try:
                if len(due) == 1:
                    self._refresh(*due[0])
                elif due:
                    gevent.joinall([gevent.spawn(self._refresh, name, known) for name, known in due], raise_error=True)
            finally:
                if due:
                    self._moved()
        finally:
            self._lock.release()

    def told(self) -> Mapping[str, tuple[str, ...] | None]:
        """What each provider told last; None where it never did."""
        return {name: known.models for name, known in self._lists.items()}

    def _moved(self) -> None:
        self.version += 1
        self.due_s = min((known.ask_again_s for known in self._lists.values()), default=float("inf"))

    def _refresh(self, name: str, known: _List) -> None:
        try:
            known.models = self._ask(name)
            known.ask_again_s = self._clock.monotonic_s() + self._cache_s
        except ProxyError as error:
            known.ask_again_s = self._clock.monotonic_s() + RETRY_S
            log.warning(
                "models not listed by the provider",
                extra={"provider": name, "code": error.code, "detail": error.detail},
            )
