"""One record, read from its segment again before anybody is shown it: what the index says of it is not believed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from secure_llm_proxy.audit.index import IndexedRecord, matches
from secure_llm_proxy.audit.index_rows import row_of
from secure_llm_proxy.audit.read_client import RawLine
from secure_llm_proxy.foundation.errors import EvidenceBroken

log = logging.getLogger(__name__)


class LineReader(Protocol):
    """Whoever can be asked for lines of this host's log; `AuditReader` outside of tests. May raise `ProxyError`."""

    def lines(self, numbers: Sequence[int], *, hashes: Sequence[str] | None = None) -> tuple[RawLine, ...]: ...

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


def _alarm(indexed: IndexedRecord, sentence: str) -> CheckedRecord:
    log.error("AUDIT ALARM: %s", sentence, extra={"record": indexed.id})
    return CheckedRecord(None, sentence, alarm=True)
