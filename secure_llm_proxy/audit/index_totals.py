"""Counts over a period from the index in the database, for periods that are too long to be read in one go.

The index is a copy: whoever owns the database can change it. So these are told as what they are, and nothing is met by them.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from secure_llm_proxy.audit.index import AuditIndex, Dimension, RecordFilter

_SHOWN = 20
_NAMES = {
    Dimension.TYPE: "by_type",
    Dimension.EVENT: "by_event",
    Dimension.DECISION: "by_decision",
    Dimension.HTTP: "by_status",
    Dimension.CODE: "by_code",
    Dimension.STATUS: "by_ending",
    Dimension.USER: "by_user",
    Dimension.MODEL: "by_model",
    Dimension.DAY: "by_day",
}


def totals_of(
    session: Session, index: AuditIndex, since: datetime, until: datetime, log: str | None
) -> dict[str, object]:
    """Records of `log` (None: of all) with `since` ≤ t < `until`, by each of the index's dimensions; the 20 most frequent
    values of each, the rest under `(others)`. `indexed_lines` is how far the index has come, None where it never began.
    """
    wanted = RecordFilter(since=since, until=until, log=log)
    records = sum(count.records for count in index.counts(session, wanted, ()))
    states = [state.next_n for state in index.states(session) if log in {None, state.log}]
    told: dict[str, object] = {
        "source": "the index in the database: a copy of the log, which proves nothing",
        "indexed_lines": sum(states) if states else None,
        "records": records,
    }
    for dimension, name in _NAMES.items():
        found = [count for count in index.counts(session, wanted, (dimension,)) if count.values[0] is not None]
        shown = {str(count.values[0]): count.records for count in found[:_SHOWN]}
        rest = sum(count.records for count in found[_SHOWN:])
        told[name] = shown | ({"(others)": rest} if rest else {})
    return told
