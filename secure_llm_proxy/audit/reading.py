"""Looking into the log: its lines in order, one record or exchange, and what a record's body says.

Only lines that belong to the log are shown: of a segment that was set aside, nothing beyond the line that the next
segment continues. Reading needs no secret, opening a body the key-encryption key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.audit.format import (
    EndLine,
    FormatError,
    KeyLine,
    Line,
    NewerVersion,
    RecordLine,
    SegmentLine,
    parse_line,
)
from secure_llm_proxy.audit.seal import DataKey, KeyEncryptionKey, SealBroken
from secure_llm_proxy.audit.segments import SegmentFile, SegmentState, host_directory, raw_lines, segments_in
from secure_llm_proxy.vocabulary.events import AuditType


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line as it stands in a file. `line` is None when no parser of this version accepts it."""

    file: SegmentFile
    number: int
    raw: bytes
    line: Line | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A record with its body in clear. `body` is None when it could not be opened, and `problem` says why."""

    record: RecordLine
    file: str
    number: int
    body: bytes | None
    problem: str | None = None


def log_lines(directory: Path, *, host_id: str = "") -> Iterator[LogLine]:
    """Every line of the log, oldest first; memory stays flat. Raises `OperatorError` when there is no log."""
    segments = segments_in(host_directory(directory, host_id))
    for position, segment in enumerate(segments):
        following = segments[position + 1] if position + 1 < len(segments) else None
        yield from _lines_of(segment, _end_according_to(following))


def _end_according_to(following: SegmentFile | None) -> int | None:
    """Index of the last line that counts in the segment before `following`; None when nothing bounds it."""
    if following is None:
        return None
    with following.open() as stream:
        raw, _ = next(raw_lines(stream), (b"", False))
    line = _parsed(raw, ())
    return line.previous.n if isinstance(line, SegmentLine) and line.previous else None


def _lines_of(segment: SegmentFile, last: int | None) -> Iterator[LogLine]:
    features: tuple[str, ...] = ()
    with segment.open() as stream:
        for number, (raw, whole) in enumerate(raw_lines(stream), 1):
            if not whole and segment.state is not SegmentState.CLOSED:
                # The writer is at it, or a crash cut it off: it was never acknowledged.
                return
            line = _parsed(raw, features)
            if isinstance(line, SegmentLine):
                features = line.features
            if last is None and _is_no_line_of_the_log(line, segment.state):
                return
            yield LogLine(segment, number, raw, line)
            if last is not None and line is not None and line.n >= last:
                return


def _is_no_line_of_the_log(line: Line | None, state: SegmentState) -> bool:
    """Behind the valid lines of a segment that nothing continues yet: a torn tail, or the note of a failed disk."""
    if isinstance(line, EndLine):
        return line.reason == "fsync-error"
    return line is None and state is not SegmentState.CLOSED


def _parsed(raw: bytes, features: tuple[str, ...]) -> Line | None:
    try:
        return parse_line(raw, features)
    except (FormatError, NewerVersion):
        return None


def find_records(directory: Path, identifier: str, *, host_id: str = "") -> list[LogLine]:
    """Every record whose own id, exchange id or start (`sid`) is `identifier`, with the parts of its body, in order."""
    needle = b'"%b"' % identifier.encode("ascii", "replace")
    return [
        found
        for found in log_lines(directory, host_id=host_id)
        if needle in found.raw
        and isinstance(found.line, RecordLine)
        and identifier
        in (found.line.id, found.line.exchange_id, found.line.clear.get("sid"), found.line.clear.get("pt_of"))
    ]


class BodyOpener:
    """Opens bodies. `key_text` is the key-encryption key as operators write it; a log without encryption needs none."""

    def __init__(self, key_text: str | None) -> None:
        self._kek = KeyEncryptionKey.from_text(key_text) if key_text else None
        self._keys: dict[str, DataKey] = {}

    def learn(self, line: KeyLine) -> None:
        """Unwrap a data key and hold it to its commitment. Raises `SealBroken`."""
        if self._kek is None or line.wrapped is None:
            return
        key = DataKey(self._kek.unwrap(line.wrapped, line.kid))
        if key.commitment != line.commitment:
            raise SealBroken
        # Segments have keys of their own, so only the latest is ever needed again.
        self._keys = {line.kid: key}

    def open(self, record: RecordLine) -> bytes:
        """The body in clear. Raises `SealBroken` when the key is not there or the body is not what was sealed."""
        if record.plain is not None:
            return record.plain
        key = self._keys.get(record.kid or "")
        if key is None or record.nonce is None or record.sealed is None:
            raise SealBroken
        return key.open(record.nonce, record.sealed, record.header)


def open_records(directory: Path, identifier: str, key_text: str | None, *, host_id: str = "") -> list[Opened]:
    """The records of `find_records` with their bodies; a body that travelled in parts is joined to its record.

    Raises `OperatorError` when `key_text` is no key at all; a key that does not fit shows as each record's `problem`.
    """
    opener = BodyOpener(key_text)
    found = find_records(directory, identifier, host_id=host_id)
    opened = []
    keys_of: SegmentFile | None = None
    parts: dict[str, list[bytes]] = {}
    for item in found:
        record = item.line
        if not isinstance(record, RecordLine):
            continue
        body, problem = None, None
        try:
            if keys_of != item.file:
                keys_of = item.file
                _learn_keys(item.file, opener)
            body = opener.open(record)
        except SealBroken:
            problem = "The body cannot be opened with this key, or is not what was sealed."
        whole_of = record.clear.get("pt_of")
        if record.type == AuditType.LLM_PART and isinstance(whole_of, str):
            if body is not None:
                parts.setdefault(whole_of, []).append(body)
            if identifier != record.id:
                # Shown with the record that it is a part of.
                continue
        elif body is not None and record.clear.get("parts"):
            pieces = parts.pop(record.id, [])
            if len(pieces) == record.clear["parts"]:
                body = b"".join([*pieces, body])
            else:
                body, problem = None, "Parts of the body are missing here; look the record up by its own id."
        opened.append(Opened(record=record, file=item.file.name, number=item.number, body=body, problem=problem))
    return opened


def _learn_keys(file: SegmentFile, opener: BodyOpener) -> None:
    """Key lines stand before the records that need them; today there is one, right behind the first line."""
    for item in _lines_of(file, None):
        if isinstance(item.line, KeyLine):
            opener.learn(item.line)
        elif isinstance(item.line, RecordLine):
            return
