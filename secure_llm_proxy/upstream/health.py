"""Whether the provider answered the last time we asked, for the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.clock import Clock

MEMORY_S = 60.0


class ProviderHealth:
    """Remembers the last failure of transport for 60 s, or until an answer arrives. An error status is an answer."""

    __slots__ = ("_clock", "_failed_at_s", "_what")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failed_at_s = 0.0
        self._what: str | None = None

    def failed(self, what: str) -> None:
        self._what = what
        self._failed_at_s = self._clock.monotonic_s()

    def answered(self) -> None:
        self._what = None

    def trouble(self) -> str | None:
        """A sentence without host, URL or key; None when all is well as far as we know."""
        what = self._what
        if what is None:
            return None
        age_s = self._clock.monotonic_s() - self._failed_at_s
        if age_s > MEMORY_S:
            return None
        return f"{what} ({int(age_s)} s ago)"
