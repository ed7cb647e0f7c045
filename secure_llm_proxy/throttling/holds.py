"""What the throttling room hands out, and the face it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.decisions import RateDecision


@dataclass(frozen=True, slots=True)
class Hold:
    """An answer, and the buckets in which the exchange occupies a slot; none when it was refused."""

    decision: RateDecision
    exchange_id: str
    buckets: tuple[str, ...]


class Throttle(Protocol):
    """The room's face. Nothing here raises because Redis is away."""

    def take(
        self, *, key_id: str, key_class: RateClass, address: str, address_class: RateClass, exchange_id: str
    ) -> Hold:
        """Spend one request and occupy one slot in the key's and in the address's bucket, or nothing in either.

        `exchange_id` is unique per request. Release what was allowed when the exchange ends, whatever its end.
        """
        ...

    def release(self, hold: Hold) -> None:
        """Give the slots back. May be called twice, and with a refused hold."""
        ...

    def heartbeat(self) -> None:
        """Count the hosts and settle what is owed to Redis; the owner calls it every `HEARTBEAT_S`."""
        ...

    def trouble(self) -> str | None:
        """A sentence for the operator while the limits are not shared, else None. Names no host and no secret."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...
