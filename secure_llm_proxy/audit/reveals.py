"""Opening bodies for readers: a reader's code is right, the hour's count allows it, the look is on record, and then only is
anything opened.

What is refused is recorded as well. All of it happens in one thread, one request after the other: the key store and the
journal belong to it, and two requests with the same code can't meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import closing

import orjson

from secure_llm_proxy.audit.blind_indexes import NAMES as INDEX_NAMES
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.format import RecordLine, base64_text
from secure_llm_proxy.audit.journal import SocketJournal
from secure_llm_proxy.audit.keystore import KeyStoreUnavailable
from secure_llm_proxy.audit.log_view import ChainBroken, PlacedLine
from secure_llm_proxy.audit.reader_codes import ReaderCodes, Verdict, writable_store
from secure_llm_proxy.audit.reading import BodyOpener, learn_keys, opened_body
from secure_llm_proxy.audit.readings import (
    BROKEN,
    INVALID,
    NOT_FOUND,
    UNAVAILABLE,
    Readings,
    Refusal,
    Request,
    record_members,
)
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.identifiers import new_record_id, ulid
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName

REVEAL_BYTES_MAX = 16 << 20
_PATIENCE_S = 25.0
_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}")
_READER = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_BY = re.compile(r"[a-z]{1,16}:[0-9A-Za-z_.-]{1,64}")
_CODE_CHARACTERS_MAX = 64
_VALUE_CHARACTERS_MAX = 1024

CODE_REFUSED = "reader_code_refused"
CEILING = "rate_limit_exceeded"
_NOT_LET_IN = (
    "The reader's name or code is not right, the code was used before, "
    "or the reader is closed for 15 minutes after 5 wrong codes."
)
_A_WHILE_S = 60


class Reveals:
    """`report` tells the operator what wants a look: a closed reader, a ceiling that was reached."""

    def __init__(self, settings: AuditSettings, readings: Readings, report: Callable[..., None]) -> None:
        self._settings = settings
        self._readings = readings
        self._report = report
        # Made and used by the one thread.
        self._codes: ReaderCodes | None = None
        self._opener: BodyOpener | None = None
        self._indexes: BlindIndexes | None = None
        self._journal = SocketJournal(settings)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reveals")

    def answer(self, request: Request) -> list[bytes]:
        """The opened records. Raises `Refusal`, also when it is not its turn within 25 s."""
        asked = _Asked(request)
        turn = self._thread.submit(self._reveal, asked)
        try:
            return turn.result(_PATIENCE_S)
        except (WaitedTooLong, CancelledError):
            turn.cancel()
            raise Refusal(UNAVAILABLE, "Bodies can't be opened now. Try again shortly.", retry_after_s=5) from None

    def blind(self, request: Request) -> list[bytes]:
        """The index under which records with a value stand, so that they can be searched for. Raises `Refusal`."""
        name, value = request.get("name"), request.get("value")
        if not isinstance(name, str) or name not in INDEX_NAMES:
            raise Refusal(INVALID, f"`name` is none of {', '.join(sorted(INDEX_NAMES))}.")
        if not isinstance(value, str) or not 0 < len(value) <= _VALUE_CHARACTERS_MAX:
            raise Refusal(INVALID, f"`value` is no text of 1 to {_VALUE_CHARACTERS_MAX} characters.")
        turn = self._thread.submit(self._index_of, name, value)
        try:
            return [orjson.dumps({"end": True, "index": turn.result(_PATIENCE_S)}) + b"\n"]
        except (WaitedTooLong, CancelledError):
            turn.cancel()
            raise Refusal(UNAVAILABLE, "Indexes can't be worked out now. Try again shortly.", retry_after_s=5) from None

    def opened_in_hour(self) -> int | None:
        """None when the key store can't tell, or is busy."""
        try:
            return self._thread.submit(lambda: self._own_codes().opened_in_hour()).result(1.0)
        except (WaitedTooLong, CancelledError, KeyStoreUnavailable, OperatorError):
            return None

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _reveal(self, asked: _Asked) -> list[bytes]:
        try:
            return self._judged(asked)
        except KeyStoreUnavailable as error:
            self._report("reveal_failed", error=str(error))
            raise Refusal(UNAVAILABLE, "The key store can't be read now.") from None
        except OperatorError as error:
            self._report("reveal_failed", error=str(error))
            raise Refusal(UNAVAILABLE, "Bodies can't be opened by this writer: no reader can be known to it.") from None

    def _judged(self, asked: _Asked) -> list[bytes]:
        codes = self._own_codes()
        verdict = codes.check(asked.reader, asked.code)
        if verdict is not Verdict.RIGHT:
            self._record(asked, ok=False, why=f"code_{verdict.value}")
            if verdict is Verdict.CLOSED:
                self._report("reader_closed", reader=asked.reader, by=asked.by)
            raise Refusal(CODE_REFUSED, _NOT_LET_IN)
        found = self._found(asked)
        records = sum(1 for _, record in found if not _is_part(record, asked))
        ceiling = self._settings.reveals_per_hour
        allowance = codes.allow(records, ceiling)
        if not allowance.granted:
            self._report(
                "reveal_ceiling", reader=asked.reader, by=asked.by, opened_in_hour=allowance.opened, ceiling=ceiling
            )
            self._record(asked, ok=False, why="ceiling", records=records)
            raise Refusal(
                CEILING,
                f"{allowance.opened} records were opened in the last hour, and {records} more would pass {ceiling}.",
                retry_after_s=_A_WHILE_S,
            )
        self._record(asked, ok=True, records=records)
        return self._opened(found, asked)

    def _found(self, asked: _Asked) -> list[tuple[PlacedLine, RecordLine]]:
        """The records of the name, at most 16 MiB of them; what stands in no place of the chain is not among them."""
        broken: list[ChainBroken] = []
        found: list[tuple[PlacedLine, RecordLine]] = []
        size = 0
        for line in self._readings.records_named(asked.identifier, broken):
            record = line.parsed()
            if not isinstance(record, RecordLine) or record.type == AuditType.REVEAL:
                continue
            size += len(line.raw)
            if size > REVEAL_BYTES_MAX:
                self._record(asked, ok=False, why="too_big")
                raise Refusal(
                    INVALID, "The records are too big for one answer: open them singly, or with `audit show`."
                )
            found.append((line, record))
        if not found:
            self._record(asked, ok=False, why="broken" if broken else "not_found")
            if broken:
                raise Refusal(BROKEN, f"The log is damaged: {broken[0]}. Run `manage.py audit verify`.")
            raise Refusal(NOT_FOUND, "No record has this id.")
        return found

    def _opened(self, found: list[tuple[PlacedLine, RecordLine]], asked: _Asked) -> list[bytes]:
        opener = self._opener = self._opener or BodyOpener.of(self._settings)
        rows: list[bytes] = []
        entered: int | None = None
        parts: dict[str, list[bytes]] = {}
        for line, record in found:
            if entered != line.segment.file.number:
                entered = line.segment.file.number
                learn_keys(line.segment.file, opener)
            body, problem = opened_body(opener, record)
            whole_of = record.clear.get("pt_of")
            if record.type == AuditType.LLM_PART and isinstance(whole_of, str):
                if body is not None:
                    parts.setdefault(whole_of, []).append(body)
                if _is_part(record, asked):
                    continue
            elif body is not None and record.clear.get("parts"):
                pieces = parts.pop(record.id, [])
                if len(pieces) == record.clear["parts"]:
                    body = b"".join([*pieces, body])
                else:
                    body, problem = None, "Parts of the body are missing here; look the record up by its own id."
            told = {"body": None if body is None else base64_text(body), "problem": problem}
            rows.append(orjson.dumps(record_members(line, record) | told) + b"\n")
        rows.append(orjson.dumps({"end": True}) + b"\n")
        return rows

    def _index_of(self, name: str, value: str) -> str:
        try:
            if self._indexes is None:
                with closing(writable_store(self._settings)) as store:
                    self._indexes = BlindIndexes(store.index_key())
        except (KeyStoreUnavailable, OperatorError) as error:
            self._report("index_key_not_read", error=str(error))
            raise Refusal(UNAVAILABLE, "This log has no blind indexes, or their key can't be read now.") from None
        return self._indexes.of(name, value)

    def _record(self, asked: _Asked, *, ok: bool, why: str | None = None, records: int | None = None) -> None:
        """Durable when this returns. Raises `Refusal` when it can't be: nothing is shown then."""
        clear: dict[str, ClearValue] = {
            "target": asked.identifier,
            "by": asked.by,
            "reader": asked.reader,
            "ok": ok,
        }
        if why is not None:
            clear["why"] = why
        if records is not None:
            clear["records"] = records
        event = AuditEvent(new_record_id(), AuditType.REVEAL, "adm_" + ulid(), EventName.AUDIT_REVEAL, clear, b"{}")
        try:
            self._journal.record(event)
        except ProxyError as error:
            self._report("reveal_not_recorded", error=error.detail or str(error.code))
            raise Refusal(UNAVAILABLE, "Nothing is shown, since the look could not be recorded.") from None

    def _own_codes(self) -> ReaderCodes:
        self._codes = self._codes or ReaderCodes.of(self._settings)
        return self._codes


class _Asked:
    """What somebody wants opened, and who they say they are. Raises `Refusal` for what can be nobody's wish."""

    __slots__ = ("by", "code", "identifier", "reader")

    def __init__(self, request: Mapping[str, object]) -> None:
        self.identifier = _matching(request, "id", _IDENTIFIER)
        self.reader = _matching(request, "reader", _READER)
        self.by = _matching(request, "by", _BY)
        code = request.get("code")
        if not isinstance(code, str) or len(code) > _CODE_CHARACTERS_MAX:
            raise Refusal(INVALID, "`code` is no text of at most 64 characters.")
        self.code = code


def _matching(request: Mapping[str, object], name: str, form: re.Pattern[str]) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise Refusal(INVALID, f"`{name}` is malformed.")
    return value


def _is_part(record: RecordLine, asked: _Asked) -> bool:
    """Whether it is shown with the record that it is a part of."""
    return (
        record.type == AuditType.LLM_PART
        and isinstance(record.clear.get("pt_of"), str)
        and record.id != asked.identifier
    )
