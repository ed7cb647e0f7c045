"""What a log means for what may follow it: which exchanges are open, and how far each worker has come.

The writer keeps it while it writes, start-up rebuilds it from the last segment, and the verifier computes it from the
lines alone and holds every segment's `carry` to it.
"""

from __future__ import annotations

from collections.abc import Collection

from secure_llm_proxy.audit.format import CarriedState, RecordLine
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType

# The `seg` line that carries the open exchanges must stay below 1 MiB; about 8,000 of them with names as we make them.
OPEN_BYTES_MAX = 900_000
_OPEN_ENTRY_BYTES = 32 + len('"":["",""],')
# Workers that are gone and have nothing open; one that was only out of reach for long finds its counter here.
_GONE_KEPT = 256


class Carry:
    """`open` maps an `llm.start` record's id to (exchange id, worker); `seen` a worker to its last counter."""

    __slots__ = ("open", "open_bytes", "seen")

    def __init__(self, state: CarriedState | None = None) -> None:
        self.open: dict[str, tuple[str, str]] = dict(state.open) if state else {}
        self.seen: dict[str, int] = dict(state.seen) if state else {}
        self.open_bytes = sum(entry_bytes(identifier, exchange) for identifier, (exchange, _) in self.open.items())

    def apply(self, worker: str, counter: int, kind: str, identifier: str, exchange: str, start: ClearValue) -> None:
        """Take one record into account; `start` is the `sid` of an `llm.end`."""
        # Taken out and put back, so that the order of `seen` is that of each worker's last record.
        self.seen.pop(worker, None)
        self.seen[worker] = counter
        if kind == AuditType.LLM_START:
            if identifier not in self.open:
                self.open_bytes += entry_bytes(identifier, exchange)
            self.open[identifier] = (exchange, worker)
        elif kind == AuditType.LLM_END and isinstance(start, str):
            ended = self.open.pop(start, None)
            if ended is not None:
                self.open_bytes -= entry_bytes(start, ended[0])

    def apply_line(self, line: RecordLine) -> None:
        self.apply(line.worker, line.counter, line.type, line.id, line.exchange_id, line.clear.get("sid"))

    def snapshot(self, keep: Collection[str]) -> CarriedState:
        """What the next segment's first line carries: `keep`, workers with open exchanges, and the latest of the rest."""
        needed = {worker for _, worker in self.open.values()}.union(keep)
        rest = [worker for worker in self.seen if worker not in needed]
        for worker in rest[:-_GONE_KEPT]:
            del self.seen[worker]
        return CarriedState(open=dict(self.open), seen=dict(self.seen))


def entry_bytes(identifier: str, exchange: str) -> int:
    """Size of one open exchange in a `seg` line."""
    return len(identifier) + len(exchange) + _OPEN_ENTRY_BYTES
