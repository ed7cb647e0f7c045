"""Reading the log's files as its readers are answered, where no writer needs to run: for commands on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson

from secure_llm_proxy.audit.genesis import GenesisBroken, find_host_id, read_genesis
from secure_llm_proxy.audit.log_view import LogView
from secure_llm_proxy.audit.read_client import AuditReader
from secure_llm_proxy.audit.readings import Readings, Refusal, error_line
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings


class SegmentReader(AuditReader):
    """Answers from the segments of AUDIT_DIR, each line checked in its place. Nothing is held open between two calls.

    What a running writer has not synced yet counts here, too. Raises `OperatorError` when there is no log.
    """

    def __init__(self, settings: AuditSettings) -> None:
        super().__init__(settings)
        directory = settings.directory / find_host_id(settings)
        try:
            genesis = read_genesis(directory)
        except FileNotFoundError:
            raise OperatorError(f"{directory} holds no audit log; `manage.py audit init` begins one.") from None
        except GenesisBroken as error:
            raise OperatorError(f"The audit log in {directory} has no valid root of trust: {error}.") from None
        self._view = LogView(directory, lambda: None)
        self._readings = Readings(self._view, genesis.log)

    def sizes(self) -> dict[int, int]:
        """Bytes of each segment by its number."""
        return {file.number: file.now().path.stat().st_size for file in self._view.files()}

    def _answer(self, request: bytes, deadline: float) -> Iterator[dict[str, Any]]:  # noqa: ARG002  nobody is waited for
        try:
            lines = self._readings.answer(orjson.loads(request))
        except Refusal as refusal:
            lines = [error_line(refusal.code, refusal.text, retry_after_s=refusal.retry_after_s)]
        for line in lines:
            yield cast("dict[str, Any]", orjson.loads(line))
