"""One record, read from its segment again before anybody is shown it: what the index says of it is not believed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from secure_llm_proxy.audit.index import IndexedRecord, matches
from secure_llm_proxy.audit.index_rows import row_of
from secure_llm_proxy.audit.read_client import OpenedRecord, RawLine, Row
from secure_llm_proxy.foundation.errors import EvidenceBroken

log = logging.getLogger(__name__)


class LineReader(Protocol):
    """Whoever can be asked for lines of this host's log; `AuditReader` outside of tests. May raise `ProxyError`."""

    def lines(self, numbers: Sequence[int], *, hashes: Sequence[str] | None = None) -> tuple[RawLine, ...]: ...

    def blind(self, name: str, value: str) -> str: ...

    def reveal(self, identifier: str, *, reader: str, code: str, by: str) -> tuple[OpenedRecord, ...]: ...

    def state(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class CheckedRecord:
    """`record` is what the segment says, and the index says the same; or else `problem` says what is wrong with it.

    `alarm`: somebody has changed the log or the index.
    """

    record: IndexedRecord | None
    problem: str | None = None
    alarm: bool = False


class RecordReading:
    """Holds a row of the index to the line that it stands for."""

    def __init__(self, reader: LineReader) -> None:
        self._reader = reader
        self._log: str | None = None

    def check(self, indexed: IndexedRecord) -> CheckedRecord:
        """Raises `Unavailable` when the log can't be read now."""
        if self._log is None:
            self._log = str(self._reader.state()["log"])
        if indexed.log != self._log:
            return CheckedRecord(None, f"It stands in the log {indexed.log}, which is read on its own host.")
        try:
            found = self._reader.lines([indexed.n])
        except EvidenceBroken as error:
            return _alarm(indexed, f"The audit log is damaged at line {indexed.n}: {error.public}")
        if not found:
            return CheckedRecord(
                None, f"The log does not hold line {indexed.n} (any more); its segment may be retired."
            )
        row = row_of(found[0])
        if row is None or not matches(indexed, row):
            return _alarm(
                indexed,
                f"The audit index and the segment differ at line {indexed.n} of {indexed.log}: the index was tampered with, or "
                "the log was exchanged. Run `manage.py audit verify`, then `manage.py audit reindex`.",
            )
        return CheckedRecord(indexed)

    def open(self, indexed: IndexedRecord, *, reader: str, code: str, by: str) -> tuple[OpenedRecord, ...]:
        """The record with its body in clear, and with what belongs to it: its parts, its end. See `AuditReader.reveal`."""
        opened = self._reader.reveal(indexed.id, reader=reader, code=code, by=by)
        return tuple(each for each in opened if indexed.id in _names_of(each.row))

    def blind(self, values: Mapping[str, str]) -> dict[str, str]:
        """Under which blind indexes records with these values stand, by name (`vocabulary.audit.indexed_values`)."""
        return {name: self._reader.blind(name, value) for name, value in values.items()}


def _names_of(row: Row) -> tuple[object, ...]:
    return row.id, row.clear.get("sid"), row.clear.get("pt_of")


def _alarm(indexed: IndexedRecord, sentence: str) -> CheckedRecord:
    log.error("AUDIT ALARM: %s", sentence, extra={"record": indexed.id})
    return CheckedRecord(None, sentence, alarm=True)
