"""What is left of segments that were retired: one line each in `retired.jsonl`, enough to verify the log behind them.

A line names the segment and carries every key roll in it, its last checkpoint, and the edge of the tree there, so that
the signing key in force and the tree behind the segment follow without its lines. The newest `segment.retired` record of
the log holds the hash of its own line here, and every line the hash of the one before it: none can be made or altered
without the log's own key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from secure_llm_proxy.audit.format import (
    FEATURES,
    NO_HASH,
    CheckpointLine,
    FormatError,
    KeyRollLine,
    RecordLine,
    base64_text,
    leaf,
    parse_line,
    strict_base64,
)
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.segments import RETIRED_NAME, SegmentFile
from secure_llm_proxy.audit.signed_tree import SignedTree
from secure_llm_proxy.foundation.regular_files import NotAFileError, read_file
from secure_llm_proxy.vocabulary.audit import ClearValue

_MEMBERS = ("seg", "n", "last", "h", "sha256", "cp", "kr", "edge", "tail", "p")
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class RetiredSegment:
    """`first` and `last` are the indices of its lines, `h` the hash of the last one, `sha256` the digest of its file.

    `checkpoint` is its last one, as the line stood, None when it holds none; `rolls` are its key rolls. `edge` is that of
    the tree that the checkpoint signs, `tail` the hashes of the lines behind the checkpoint; without a checkpoint `edge`
    is that of the tree behind the segment. `p` is the hash of the line before in `retired.jsonl`.
    """

    number: int
    first: int
    last: int
    h: bytes
    sha256: bytes
    checkpoint: bytes | None
    rolls: tuple[bytes, ...]
    edge: tuple[bytes, ...]
    tail: tuple[bytes, ...]
    p: bytes

    def line(self) -> bytes:
        return orjson.dumps(
            {
                "seg": self.number,
                "n": self.first,
                "last": self.last,
                "h": base64_text(self.h),
                "sha256": base64_text(self.sha256),
                "cp": None if self.checkpoint is None else self.checkpoint.decode(),
                "kr": [roll.decode() for roll in self.rolls],
                "edge": [base64_text(each) for each in self.edge],
                "tail": [base64_text(each) for each in self.tail],
                "p": base64_text(self.p),
            }
        )

    def clear(self) -> dict[str, ClearValue]:
        """What its `segment.retired` record says."""
        return {
            "retired": self.number,
            "first": self.first,
            "last": self.last,
            "hash": base64_text(self.h),
            "sha256": base64_text(self.sha256),
            "entry": base64_text(leaf(self.line())),
        }

    def checkpoint_line(self) -> CheckpointLine | None:
        """Raises `FormatError`."""
        if self.checkpoint is None:
            return None
        line = parse_line(self.checkpoint, FEATURES)
        if not isinstance(line, CheckpointLine) or not self.first <= line.n <= self.last:
            raise FormatError("its checkpoint is none of this segment")
        return line

    def roll_lines(self) -> list[KeyRollLine]:
        """Raises `FormatError`."""
        lines: list[KeyRollLine] = []
        for raw in self.rolls:
            line = parse_line(raw, FEATURES)
            after = lines[-1].n + 1 if lines else self.first
            if not isinstance(line, KeyRollLine) or not after <= line.n <= self.last:
                raise FormatError("a key roll is none of this segment")
            lines.append(line)
        return lines

    def tree(self) -> TreeEdge:
        """The tree over every line up to and with this segment. Raises `FormatError`."""
        checkpoint = self.checkpoint_line()
        try:
            if checkpoint is None:
                tree = TreeEdge(self.last + 1, self.edge)
            else:
                tree = TreeEdge(checkpoint.n, self.edge)
                tree.append(leaf(self.checkpoint or b""))
        except ValueError as error:
            raise FormatError(str(error)) from None
        for each in self.tail:
            tree.append(each)
        if tree.size != self.last + 1 or (checkpoint is None and self.tail):
            raise FormatError("its checkpoint and what follows it do not reach its end")
        if checkpoint is not None and self.h != (self.tail[-1] if self.tail else leaf(self.checkpoint or b"")):
            raise FormatError("its hash is not that of its last line")
        return tree


def read_retired(directory: Path) -> tuple[list[RetiredSegment], str | None]:
    """What `retired.jsonl` says, up to its first line that is not as it must be, and what is wrong with that one.

    A last line without its newline was never finished, and is left out: its segment is still there.
    """
    try:
        content = read_file(directory / RETIRED_NAME)
    except FileNotFoundError:
        return [], None
    except NotAFileError as error:
        return [], str(error.strerror)
    found: list[RetiredSegment] = []
    p = NO_HASH
    for raw in content.split(b"\n")[:-1]:
        try:
            entry = _parse(raw)
            _check_order(entry, found, p)
            entry.tree()
            entry.roll_lines()
        except FormatError as error:
            return found, str(error)
        found.append(entry)
        p = leaf(raw)
    return found, None


def retired_before(directory: Path, segments: Sequence[SegmentFile]) -> list[RetiredSegment]:
    """What is left of the segments before the first of `segments`, which are those that are still there."""
    return read_retired(directory)[0][: segments[0].number - 1 if segments else 0]


def was_retired(directory: Path, segment: SegmentFile) -> bool:
    """Whether a segment that was listed before is gone by now, and listed as retired."""
    return not segment.now().path.exists() and segment.number <= len(read_retired(directory)[0])


def _check_order(entry: RetiredSegment, before: Sequence[RetiredSegment], p: bytes) -> None:
    number, first = (before[-1].number + 1, before[-1].last + 1) if before else (1, 0)
    if (entry.number, entry.first) != (number, first) or entry.last < entry.first:
        raise FormatError(f"segment {number} must stand here, from line {first} of the log")
    if entry.p != p:
        raise FormatError("it does not continue the line before it (`p`)")


def _parse(raw: bytes) -> RetiredSegment:
    try:
        members: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise FormatError("the line is not JSON") from None
    if not isinstance(members, dict) or tuple(members) != _MEMBERS:
        raise FormatError("its members are not those of a retired segment")
    try:
        checkpoint = members["cp"]
        entry = RetiredSegment(
            number=_integer(members["seg"]),
            first=_integer(members["n"]),
            last=_integer(members["last"]),
            h=_hash(members["h"]),
            sha256=_hash(members["sha256"]),
            checkpoint=None if checkpoint is None else checkpoint.encode(),
            rolls=tuple(each.encode() for each in members["kr"]),
            edge=tuple(_hash(each) for each in members["edge"]),
            tail=tuple(_hash(each) for each in members["tail"]),
            p=_hash(members["p"]),
        )
    except (TypeError, AttributeError, UnicodeEncodeError):
        raise FormatError("a member has the wrong type") from None
    if entry.line() != raw:
        raise FormatError("the line is not in compact form")
    return entry


def _integer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise FormatError("a number is not a whole number")
    return value


def _hash(value: object) -> bytes:
    if not isinstance(value, str):
        raise FormatError("a hash is not text")
    digest = strict_base64(value)
    if len(digest) != _HASH_BYTES:
        raise FormatError("a hash has not 32 bytes")
    return digest


class RetiredPrefix:
    """For the verifier: the part of a log that is retired, and whether the rest of the log says so."""

    def __init__(self, directory: Path | None) -> None:
        self.entries, self.broken = read_retired(directory) if directory else ([], None)
        self._told: dict[int, int] = {}

    def before(self, number: int) -> list[RetiredSegment]:
        """The entries of segments before that one."""
        return self.entries[: max(0, number - 1)]

    def follow(self, signed: SignedTree, entries: Sequence[RetiredSegment]) -> Iterator[tuple[int, str]]:
        """Bring `signed` behind the entries, as their lines would have. Yields (line of retired.jsonl, what is wrong)."""
        for position, entry in enumerate(entries, 1):
            rolls, checkpoint = entry.roll_lines(), entry.checkpoint_line()
            later = [roll for roll in rolls if checkpoint is None or roll.n > checkpoint.n]
            for roll in rolls[: len(rolls) - len(later)]:
                yield from ((position, what) for what in signed.at_roll(roll))
            if checkpoint is not None:
                signed.tree = TreeEdge(checkpoint.n, entry.edge)
                yield from ((position, what) for what in signed.at_checkpoint(checkpoint))
                yield from ((position, what) for what in signed.pass_over(checkpoint.n))
            for roll in later:
                yield from ((position, what) for what in signed.at_roll(roll))
            signed.tree = entry.tree()
            yield from ((position, what) for what in signed.pass_over(entry.last + 1))

    def at_record(self, record: RecordLine) -> Iterator[str]:
        """A `segment.retired` record."""
        said: Mapping[str, ClearValue] = record.clear
        number = said.get("retired")
        if type(number) is not int or number < 1:
            yield "it does not say which segment was retired"
        elif number <= len(self.entries):
            self._told[number] = self._told.get(number, 0) + 1
            expected = self.entries[number - 1].clear()
            if {name: said.get(name) for name in expected} != expected:
                yield f"segment {number} was retired as another than {RETIRED_NAME} says"

    def unmatched(self, number: int) -> int | None:
        """The last of the segments up to `number` that are retired, when no record says that it was. Those before it are
        bound to it by `p`, and their records may be retired, too.
        """
        last = min(number, len(self.entries))
        return last if last and last not in self._told else None
