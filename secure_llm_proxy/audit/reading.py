"""Looking into the log: its lines in order, one record or exchange, and what a record's body says.

Only lines that belong to the log are shown: of a segment that was set aside, nothing beyond the line that the next
segment continues. Reading needs no secret, opening a body the key-encryption key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from secure_llm_proxy.audit.format import (
    FEATURES,
    EndLine,
    FormatError,
    KeyLine,
    Line,
    NewerVersion,
    RecordLine,
    SegmentLine,
    TreeLine,
    base64_text,
    parse_line,
)
from secure_llm_proxy.audit.keystore import KeyStore, KeyStoreUnavailable
from secure_llm_proxy.audit.retirement import was_retired
from secure_llm_proxy.audit.seal import DataKey, KeyRing, SealBroken
from secure_llm_proxy.audit.segments import SegmentFile, SegmentState, find_log, raw_lines
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.vocabulary.events import AuditType

ERASED = "The body was erased: its key was destroyed."


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


def log_lines(directory: Path, *, host_id: str = "", also: Path | None = None) -> Iterator[LogLine]:
    """Every line of the log, oldest first; memory stays flat. `also` is its second directory (AUDIT_FALLBACK_DIR).

    Raises `OperatorError` when there is no log.
    """
    directories = find_log(directory, host_id, also)
    segments = directories.segments()
    for position, segment in enumerate(segments):
        following = segments[position + 1] if position + 1 < len(segments) else None
        try:
            yield from _lines_of(segment, _end_according_to(following))
        except FileNotFoundError:
            # It was the log's oldest, and has gone since they were listed.
            if not was_retired(directories.first, segment):
                raise


class StoredLine(NamedTuple):
    """A line of the log before anything was read in it. `number` counts from 1 and `offset` in bytes within `file`; `n` is the
    line's index in the log, as the segment's first line and the line's place in it say.
    """

    file: SegmentFile
    number: int
    n: int
    offset: int
    raw: bytes


def segments_of(settings: AuditSettings) -> list[SegmentFile]:
    """The segments of this host's log, in order. Raises `OperatorError` when there is no log."""
    return find_log(settings.directory, settings.host_id, settings.fallback_directory).segments()


def stored_lines(segments: Sequence[SegmentFile]) -> Iterator[StoredLine]:
    """The lines of `log_lines` without parsing them, where their segment says how many there are: 2 instead of 15 µs a line."""
    n = 0
    for position, segment in enumerate(segments):
        following = segments[position + 1] if position + 1 < len(segments) else None
        for line in stored_lines_of(segment, following, n):
            n = line.n + 1
            yield line


def size_of(segments: Iterable[SegmentFile]) -> int:
    """How many bytes they have together, now."""
    size = 0
    for segment in segments:
        # One may be retired at this moment.
        with contextlib.suppress(FileNotFoundError):
            size += segment.now().path.stat().st_size
    return size


def stored_lines_of(segment: SegmentFile, following: SegmentFile | None, expected: int = 0) -> Iterator[StoredLine]:
    """The lines of one segment. `expected` is the index of its first line, should that be unreadable."""
    offset = 0
    try:
        last = _end_according_to(following)
    except FileNotFoundError:
        # Both were retired since the names were read.
        return
    if last is None and segment.state is not SegmentState.CLOSED:
        for item in _lines_of(segment, None):
            if isinstance(item.line, SegmentLine):
                expected = item.line.n
            yield StoredLine(segment, item.number, expected, offset, item.raw)
            offset += len(item.raw) + 1
            expected += 1
        return
    try:
        stream = segment.open()
    except FileNotFoundError:
        # Retired since the names were read.
        return
    with stream:
        for number, (raw, whole) in enumerate(raw_lines(stream), 1):
            if not whole and segment.state is not SegmentState.CLOSED:
                return
            if number == 1:
                first = _parsed(raw, ())
                expected = first.n if isinstance(first, SegmentLine) else expected
            yield StoredLine(segment, number, expected, offset, raw)
            if last is not None and expected >= last:
                return
            offset += len(raw) + 1
            expected += 1


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


Watch = Callable[[Iterator[StoredLine]], Iterator[StoredLine]]
"""Is given the lines that are looked at, and gives them on: to tell somebody who waits how far it is."""


def find_records(
    directory: Path, identifier: str, *, host_id: str = "", also: Path | None = None, watch: Watch = iter
) -> list[LogLine]:
    """Every record whose own id, exchange id or start (`sid`) is `identifier`, with the parts of its body, in order."""
    needle = b'"%b"' % identifier.encode("ascii", "replace")
    found = []
    for stored in watch(stored_lines(find_log(directory, host_id, also).segments())):
        line = _parsed(stored.raw, ()) if needle in stored.raw else None
        if isinstance(line, RecordLine) and identifier in (
            line.id,
            line.exchange_id,
            line.clear.get("sid"),
            line.clear.get("pt_of"),
        ):
            found.append(LogLine(stored.file, stored.number, stored.raw, line))
    return found


class BodyLost(SealBroken):
    """The key that sealed a body is not here: not in the key store, or wrapped by a key-encryption key that we don't have.

    `erased`: the key store says that it was destroyed on purpose.
    """

    def __init__(self, *, erased: bool) -> None:
        super().__init__()
        self.erased = erased


class BodyOpener:
    """Opens bodies. `key_text` is the key-encryption key as operators write it; a log without encryption needs none.

    `previous` are earlier ones, comma separated; `keys_directory` is where the keys of persons lie. Raises `OperatorError`
    when a key is none, or the key store can't be read.
    """

    def __init__(
        self, key_text: str | None, *, previous: str | None = None, keys_directory: Path | None = None
    ) -> None:
        self._ring = KeyRing.from_texts(key_text, previous) if key_text else None
        self._store = KeyStore.open_to_read(keys_directory, self._ring) if self._ring and keys_directory else None
        self._kek_id: str | None = None
        # Name and key of the segment's own key; None: it is not here.
        self._system: tuple[str, DataKey | None] | None = None
        # What the segment being read says about the keys of persons.
        self._commitments: dict[str, bytes] = {}

    @classmethod
    def of(cls, settings: AuditSettings) -> BodyOpener:
        """With the keys that `settings` hold; without any it opens what is not sealed."""
        kek, previous = settings.kek, settings.previous_keks
        return cls(
            kek.get_secret_value() if kek else None,
            previous=previous.get_secret_value() if previous else None,
            keys_directory=settings.keys_directory,
        )

    def enter(self, kek_id: str | None) -> None:
        """A segment begins, whose own key is wrapped by the key-encryption key of this id: keys of before count no more."""
        self._kek_id = kek_id
        self._system = None
        self._commitments.clear()

    def learn(self, line: KeyLine) -> None:
        """Take a key line into account; a wrapped key is held to its commitment. Raises `SealBroken`."""
        if line.wrapped is None:
            self._commitments.setdefault(line.kid, line.commitment)
        elif self._ring is not None:
            # Segments have keys of their own, so only the latest is ever needed again.
            self._system = None
            key = self._unwrapped(self._ring, line.kid, line.wrapped)
            if key is not None and key.commitment != line.commitment:
                raise SealBroken
            self._system = (line.kid, key)

    def open(self, record: RecordLine) -> bytes:
        """The body in clear. Raises `SealBroken` when the key is not there or the body is not what was sealed."""
        if record.plain is not None:
            return record.plain
        if record.kid is None or record.nonce is None or record.sealed is None:
            raise SealBroken
        return self._key(record.kid).open(record.nonce, record.sealed, record.header)

    def _key(self, kid: str) -> DataKey:
        if self._system is not None and self._system[0] == kid:
            if self._system[1] is None:
                raise BodyLost(erased=False)
            return self._system[1]
        if self._ring is None or kid not in self._commitments:
            raise SealBroken
        key = self._stored(kid)
        if key is None:
            raise BodyLost(erased=self._is_erased(kid))
        if key.commitment != self._commitments[kid]:
            raise SealBroken
        return key

    def _unwrapped(self, ring: KeyRing, kid: str, wrapped: bytes) -> DataKey | None:
        try:
            return DataKey(ring.unwrap(wrapped, kid))
        except (SealBroken, ValueError):
            stored = self._stored(kid)
            if stored is None and (self._kek_id is None or self._kek_id in ring):
                raise SealBroken from None
            return stored

    def _stored(self, kid: str) -> DataKey | None:
        try:
            return self._store.key(kid) if self._store else None
        except KeyStoreUnavailable as error:
            raise OperatorError(str(error)) from None

    def _is_erased(self, kid: str) -> bool:
        try:
            return self._store is not None and self._store.is_erased(kid)
        except KeyStoreUnavailable as error:
            raise OperatorError(str(error)) from None


def open_records(
    directory: Path,
    identifier: str,
    keys: BodyOpener | str | None,
    *,
    host_id: str = "",
    also: Path | None = None,
    watch: Watch = iter,
) -> list[Opened]:
    """The records of `find_records` with their bodies; a body that travelled in parts is joined to its record.

    `keys` is an opener, or the key-encryption key alone, which opens what no person's key has sealed. Raises
    `OperatorError` when that is no key at all; a key that does not fit shows as each record's `problem`.
    """
    opener = keys if isinstance(keys, BodyOpener) else BodyOpener(keys)
    found = find_records(directory, identifier, host_id=host_id, also=also, watch=watch)
    opened = []
    keys_of: SegmentFile | None = None
    parts: dict[str, list[bytes]] = {}
    for item in found:
        record = item.line
        if not isinstance(record, RecordLine):
            continue
        if keys_of != item.file:
            keys_of = item.file
            learn_keys(item.file, opener)
        body, problem = opened_body(opener, record)
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


def opened_body(opener: BodyOpener, record: RecordLine) -> tuple[bytes | None, str | None]:
    """The body in clear, or None and why it can't be opened."""
    try:
        return opener.open(record), None
    except BodyLost as lost:
        return None, ERASED if lost.erased else "The key of this body is in no key store here."
    except SealBroken:
        return None, "The body cannot be opened with this key, or is not what was sealed."


def erased_keys_in(segments: Sequence[SegmentFile]) -> list[str]:
    """Names of the keys that the log says were erased, in order; each once."""
    kids: dict[str, None] = {}
    for item in stored_lines(segments):
        line = _parsed(item.raw, FEATURES) if b'"ty":"subject.erased"' in item.raw else None
        if isinstance(line, RecordLine) and line.type == AuditType.SUBJECT_ERASED:
            kids |= dict.fromkeys(str(line.clear.get("kids")).split(","))
    return list(kids)


@dataclass(frozen=True, slots=True)
class SystemKey:
    """A segment's own key as its line names it: wrapped by the key-encryption key of the id `kek`; base64 as it stands."""

    kid: str
    wrapped: str
    commitment: str
    kek: str | None


def system_keys_in(segments: Iterable[SegmentFile]) -> Iterator[SystemKey]:
    """The system key of each segment; only the first lines are read."""
    for file in segments:
        kek_id = None
        try:
            stream = file.open()
        except FileNotFoundError:
            # Retired since they were listed.
            continue
        with stream:
            for raw, whole in raw_lines(stream):
                line = _parsed(raw, FEATURES) if whole else None
                if isinstance(line, SegmentLine):
                    kek_id = line.kek_id
                elif isinstance(line, KeyLine) and line.wrapped is not None:
                    yield SystemKey(line.kid, base64_text(line.wrapped), base64_text(line.commitment), kek_id)
                if not isinstance(line, SegmentLine | TreeLine):
                    break


def learn_keys(file: SegmentFile, opener: BodyOpener) -> None:
    """A key's line stands before the first record that needs it, wherever that is in the segment."""
    with file.open() as stream:
        for number, (raw, whole) in enumerate(raw_lines(stream)):
            # One line in hundreds: the others are not worth a parser's time.
            line = _parsed(raw, ()) if whole and (number == 0 or raw.startswith(b'{"k":"key",')) else None
            if isinstance(line, SegmentLine):
                opener.enter(line.kek_id)
            elif isinstance(line, KeyLine):
                with contextlib.suppress(SealBroken):
                    opener.learn(line)
