"""A log of made-up records for what is searched in it afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

from secure_llm_proxy.audit import Genesis, initialise
from secure_llm_proxy.audit.appender import Appender, Entry
from secure_llm_proxy.audit.format import check_metadata
from tests.support.audit_log import appender, audit_settings, entry


class Log:
    """A log that is written segment by segment; time is the test's, a second for each record."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.genesis: Genesis = initialise(audit_settings(directory))
        self.now_ns = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()) * 1_000_000_000
        self._log: Appender = appender(self.genesis, now_ns=lambda: self.now_ns)
        self._number = 0

    def add(self, *records: dict[str, object]) -> None:
        """One segment of these records; none stays open."""
        self._log.open_segment()
        for record in records:
            self.now_ns += 1_000_000_000
            self._log.commit([self._entry(record)])
        self._log.close_segment("stop")

    def _entry(self, record: dict[str, object]) -> Entry:
        self._number += 1
        made = entry(self._number, **record)  # type: ignore[arg-type]  # the test's own names
        return replace(made, metadata=orjson.dumps(check_metadata(orjson.loads(made.metadata))))
