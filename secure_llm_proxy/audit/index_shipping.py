"""How records come into the index: taken from the log in order, in bounded batches, by one at a time.

Each batch is one transaction that adds its rows and moves `next_n` from where the shipper believed it to be: a second shipper,
or one that was killed and comes back, changes nothing twice and leaves nothing out. A lease in the same row keeps shippers from
working in vain; whatever clock they have, it decides about nothing else.

Nothing here is on the way of a request. While the database or the log's reader is away the index stays as it is, and goes on
from there.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import CursorResult, Update, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.audit.format import base64_text
from secure_llm_proxy.audit.index import TROUBLE_MAX, set_trouble
from secure_llm_proxy.audit.index_rows import LogTail, index_values, moment_of
from secure_llm_proxy.audit.models import AuditAnchorRow, AuditIndexRow, AuditIndexStateRow
from secure_llm_proxy.audit.read_client import Break, CheckpointRow, Row, Tail
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ConflictError, ProxyError
from secure_llm_proxy.foundation.upserts import insert_into

log = logging.getLogger(__name__)

SHIP_S = 3.0
# Rows of one transaction, and so what a worker does at a stretch: some 90 µs of its time each (2026-11).
BATCH = 20
# In one go; then the others of this worker's background get their turn.
_BATCHES = 150
_LEASE_S = 30.0
_ANCHOR_EVERY_S = 10.0
# The log is looked after for so long after the last record of this process: its checkpoint follows within AUDIT_CHECKPOINT_S.
_LINGER_S = 20.0
_FAILING_S = 60.0
_DIFFERS = "The audit index and the audit log"


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one go did. `busy`: somebody else is at it; `more`: the log goes on."""

    rows: int = 0
    more: bool = False
    busy: bool = False


class LeaseLost(Exception):
    """Somebody else went on while we were away: this batch was not written."""


class IndexShipper:
    """Keeps the index of one host's log up to date. `recorded` counts what this process has handed to the log."""

    def __init__(self, database: Database, reader: LogTail, clock: Clock, recorded: Callable[[], int]) -> None:
        self._database = database
        self._reader = reader
        self._clock = clock
        self._recorded = recorded
        self._holder = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._log: str | None = None
        self._seen: int | None = None
        self._until_s = float("-inf")
        self._own_end: int | None = None
        self._anchored_s = float("-inf")
        self._failing_since_s: float | None = None
        self._told: str | None = None

    def work(self) -> None:
        """Ship, if this process recorded something lately: an idle product stays idle. Never raises."""
        recorded, now_s = self._recorded(), self._clock.monotonic_s()
        if self._seen is None:
            # Once at the start: whoever was here before may have been killed.
            self._until_s = now_s
        elif recorded != self._seen:
            self._until_s = now_s + _LINGER_S
        self._seen = recorded
        if now_s > self._until_s and self._failing_since_s is None:
            return
        try:
            shipped = self.ship()
        except Exception as error:  # noqa: BLE001  it must go on for as long as the worker lives
            self._failed(error, now_s)
            return
        if self._failing_since_s is not None:
            self._failing_since_s, self._until_s = None, now_s + _LINGER_S
            log.warning("the audit index follows the log again")
        if shipped.more or shipped.busy:
            self._until_s = max(self._until_s, now_s + _LINGER_S)

    def ship(self, limit: int = BATCH) -> Shipped:
        """Bring what is new in the log into the index, `limit` records in a transaction. Raises `ProxyError`."""
        name = self._log = self._log or str(self._reader.state()["log"])
        run = self._database.run
        next_n = run(partial(_next_n, name=name))
        if next_n != self._own_end and not self._continues(name):
            return Shipped()
        tail = self._reader.tail(next_n - 1, limit=limit)
        if tail.after < next_n and tail.broken is None:
            self._own_end = next_n
            return Shipped()
        if run(partial(take_lease, name=name, holder=self._holder, clock=self._clock)) != next_n:
            run(partial(give_lease_back, name=name, holder=self._holder))
            return Shipped(busy=True)
        rows = 0
        try:
            for turn in range(1, _BATCHES + 1):
                is_last = turn == _BATCHES or not tail.more
                run(partial(self._write, name=name, next_n=next_n, tail=tail, is_last=is_last))
                rows += len(records_of(tail))
                next_n = self._own_end = max(next_n, tail.after + 1)
                if is_last:
                    break
                tail = self._reader.tail(next_n - 1, limit=limit)
        except LeaseLost:
            return Shipped(rows, busy=True)
        return Shipped(rows, more=tail.more)

    def trouble(self) -> str | None:
        """A sentence for the operator when the index is not what the log says, or does not follow it; else None."""
        since_s = self._failing_since_s
        if since_s is not None and self._clock.monotonic_s() - since_s > _FAILING_S:
            return "The audit index does not follow the log; app.log says why."
        try:
            return self._database.run(_trouble)
        except ProxyError:
            # That is the database's own trouble.
            return None

    # --- batches ------------------------------------------------------------------------------------------------------

    def _write(self, session: Session, *, name: str, next_n: int, tail: Tail, is_last: bool) -> None:
        """Add the rows of `tail` and move on behind it. Raises `LeaseLost`."""
        state = AuditIndexStateRow
        moved = (
            update(state)
            .where(state.log == name, state.next_n == next_n, state.lease_holder == self._holder)
            .values(
                next_n=max(next_n, tail.after + 1),
                lease_holder=None if is_last else self._holder,
                lease_until=None if is_last else lease_end(self._clock),
            )
        )
        if not changes_one(session, moved):
            raise LeaseLost
        replace_rows(session, name, next_n, tail)
        for fork in put_anchors(session, name, self._chosen(tail), self._clock):
            self._alarm(session, name, fork)
        if tail.broken is not None:
            self._alarm(session, name, damage(tail.broken))

    def _chosen(self, tail: Tail) -> list[CheckpointRow]:
        """At most a checkpoint each 10 s, and the last one there is."""
        chosen = []
        checkpoints = checkpoints_of(tail)
        for checkpoint in checkpoints:
            signed_s = moment_of(checkpoint.t).timestamp()
            is_newest = checkpoint is checkpoints[-1] and not tail.more
            # A clock that went back is no reason to keep none.
            if is_newest or abs(signed_s - self._anchored_s) >= _ANCHOR_EVERY_S:
                self._anchored_s = signed_s
                chosen.append(checkpoint)
        return chosen

    def _continues(self, name: str) -> bool:
        """Whether the last record of the index stands in the log where it should. Else the index stays as it is."""
        last = self._database.run(partial(_last_record, name=name))
        if last is None:
            return True
        n, h = last
        found = self._reader.tail(n - 1, limit=1).rows
        if found and found[0].place.h == base64_text(h):
            self._database.run(partial(_forget_difference, name=name))
            return True
        sentence = (
            f"{_DIFFERS} differ at line {n} of {name}: the log was exchanged, cut off or rewritten, or the index was "
            "tampered with. Run `manage.py audit verify`, then `manage.py audit reindex`."
        )
        self._database.run(partial(self._alarm, name=name, sentence=sentence))
        return False

    def _alarm(self, session: Session, name: str, sentence: str) -> None:
        set_trouble(session, name, sentence)
        if self._told != sentence:
            self._told = sentence
            log.error("AUDIT ALARM: %s", sentence)

    def _failed(self, error: Exception, now_s: float) -> None:
        if self._failing_since_s is None:
            self._failing_since_s = now_s
            detail = error.detail if isinstance(error, ProxyError) else None
            log.warning("the audit index cannot follow the log", extra={"why": type(error).__name__, "detail": detail})
        self._own_end = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Lines `first` … `next_n` - 1 of `log` were looked at; they hold `rows` records."""

    log: str
    first: int
    next_n: int
    rows: int
    troubles: tuple[str, ...]


class IndexRebuilder:
    """Makes the index of a log anew. What is there is replaced batch by batch, so that searches find something all along."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._holder = f"rebuild-{uuid.uuid4().hex}"

    def rebuild(
        self,
        source: LogTail,
        *,
        afresh: bool = False,
        limit: int = 1000,
        progress: Callable[[int, Tail], None] | None = None,
    ) -> Rebuilt:
        """Go on where a rebuilding of this log was broken off, or begin with its first line. `progress` is told the rows so far,
        and what was read last.

        Raises `ConflictError` when somebody else is at the index, and `ProxyError` when the database is away.
        """
        name, run = str(source.state()["log"]), self._database.run
        if run(partial(take_lease, name=name, holder=self._holder, clock=self._clock)) is None:
            raise ConflictError(f"Somebody else is writing the index of {name} now; try again in half a minute.")
        rows = 0
        troubles: list[str] = []
        try:
            next_n = first = run(partial(_begin, name=name, afresh=afresh))
            more = True
            while more:
                tail = source.tail(next_n - 1, limit=limit)
                troubles += run(partial(self._write, name=name, next_n=next_n, tail=tail))
                next_n, more = max(next_n, tail.after + 1), tail.more
                rows += len(records_of(tail))
                if progress is not None:
                    progress(rows, tail)
            run(partial(self._end, name=name, next_n=next_n, troubles=troubles))
        except LeaseLost:
            raise ConflictError(f"Somebody else took over the index of {name}; run this again.") from None
        finally:
            run(partial(give_lease_back, name=name, holder=self._holder))
        return Rebuilt(name, first, next_n, rows, tuple(troubles))

    def _write(self, session: Session, *, name: str, next_n: int, tail: Tail) -> list[str]:
        state = AuditIndexStateRow
        moved = (
            update(state)
            .where(state.log == name, state.rebuilt_n == next_n, state.lease_holder == self._holder)
            .values(rebuilt_n=max(next_n, tail.after + 1), lease_until=lease_end(self._clock))
        )
        if not changes_one(session, moved):
            raise LeaseLost
        replace_rows(session, name, next_n, tail)
        troubles = put_anchors(session, name, checkpoints_of(tail), self._clock)
        return troubles if tail.broken is None else [*troubles, damage(tail.broken)]

    def _end(self, session: Session, *, name: str, next_n: int, troubles: Sequence[str]) -> None:
        state = AuditIndexStateRow
        ended = (
            update(state)
            .where(state.log == name, state.lease_holder == self._holder)
            .values(next_n=next_n, rebuilt_n=None, trouble=troubles[0][:TROUBLE_MAX] if troubles else None)
        )
        if not changes_one(session, ended):
            raise LeaseLost
        session.execute(delete(AuditIndexRow).where(AuditIndexRow.log == name, AuditIndexRow.n >= next_n))


# --- rows and anchors -------------------------------------------------------------------------------------------------


def replace_rows(session: Session, name: str, next_n: int, tail: Tail) -> None:
    """Afterwards the index holds of the lines from `next_n` to the end of `tail` what `tail` says, and nothing else."""
    row = AuditIndexRow
    session.execute(delete(row).where(row.log == name, row.n >= next_n, row.n <= tail.after))
    if records := records_of(tail):
        # By its columns, as one statement: the mapped class would make one for each set of columns that are not null.
        session.execute(insert(row.metadata.tables[row.__tablename__]), [index_values(name, each) for each in records])


def put_anchors(session: Session, name: str, checkpoints: Sequence[CheckpointRow], clock: Clock) -> list[str]:
    """Keep these checkpoints. Returns a sentence for each that contradicts one that is kept: that is a fork."""
    if not checkpoints:
        return []
    row = AuditAnchorRow
    now = clock.now()
    values = [
        {
            "log": name,
            "n": checkpoint.place.n,
            "root": checkpoint.root,
            "note": checkpoint.note,
            "t": moment_of(checkpoint.t),
            "first_seen": now,
        }
        for checkpoint in checkpoints
    ]
    session.execute(insert_into(session, row).on_conflict_do_nothing(), values)
    sizes = [checkpoint.place.n for checkpoint in checkpoints]
    found = session.execute(select(row.n, row.root).where(row.log == name, row.n.in_(sizes)))
    kept = {each.n: each.root for each in found}
    return [
        f"FORK: {name} has two checkpoints of {checkpoint.place.n} lines with different roots; the log was rewritten. "
        "Run `manage.py audit verify`."
        for checkpoint in checkpoints
        if kept[checkpoint.place.n] != checkpoint.root
    ]


def records_of(tail: Tail) -> list[Row]:
    return [row for row in tail.rows if isinstance(row, Row)]


def checkpoints_of(tail: Tail) -> list[CheckpointRow]:
    return [row for row in tail.rows if isinstance(row, CheckpointRow)]


def damage(broken: Break) -> str:
    return (
        f"The audit log is damaged: segment {broken.segment}, line {broken.n}, byte {broken.offset}: {broken.what}. "
        "Run `manage.py audit verify`."
    )


# --- the state of one log's index -------------------------------------------------------------------------------------


def take_lease(session: Session, *, name: str, holder: str, clock: Clock) -> int | None:
    """`next_n` of the log, whose index is `holder`'s to write from now on; None while somebody else is at it."""
    state = AuditIndexStateRow
    session.execute(insert_into(session, state).values(log=name, next_n=0).on_conflict_do_nothing())
    taken = (
        update(state)
        .where(
            state.log == name,
            or_(state.lease_holder.is_(None), state.lease_holder == holder, state.lease_until < clock.now()),
        )
        .values(lease_holder=holder, lease_until=lease_end(clock))
    )
    return _next_n(session, name=name) if changes_one(session, taken) else None


def give_lease_back(session: Session, *, name: str, holder: str) -> None:
    state = AuditIndexStateRow
    session.execute(
        update(state).where(state.log == name, state.lease_holder == holder).values(lease_holder=None, lease_until=None)
    )


def lease_end(clock: Clock) -> object:
    return clock.now() + timedelta(seconds=_LEASE_S)


def changes_one(session: Session, statement: Update) -> bool:
    """Run a compare-and-set; whether it found what it expected."""
    done = session.execute(statement)
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def _begin(session: Session, *, name: str, afresh: bool) -> int:
    state = session.get_one(AuditIndexStateRow, name)
    if afresh or state.rebuilt_n is None:
        state.rebuilt_n = 0
    return state.rebuilt_n


def _next_n(session: Session, *, name: str) -> int:
    return session.scalar(select(AuditIndexStateRow.next_n).where(AuditIndexStateRow.log == name)) or 0


def _last_record(session: Session, *, name: str) -> tuple[int, bytes] | None:
    row = AuditIndexRow
    found = session.execute(select(row.n, row.h).where(row.log == name).order_by(row.n.desc()).limit(1)).first()
    return None if found is None else (found.n, found.h)


def _trouble(session: Session) -> str | None:
    told = AuditIndexStateRow.trouble
    return session.scalar(select(told).where(told.is_not(None)).limit(1))


def _forget_difference(session: Session, *, name: str) -> None:
    state = AuditIndexStateRow
    session.execute(update(state).where(state.log == name, state.trouble.startswith(_DIFFERS)).values(trouble=None))
