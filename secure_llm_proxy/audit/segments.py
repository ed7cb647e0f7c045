"""The files of one host's log: their names, their order, and their raw lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

from secure_llm_proxy.audit.format import LINE_BYTES_MAX
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.regular_files import open_file, read_file

GENESIS_NAME = "genesis.json"
LOCK_NAME = ".lock"
LINK_NAME = "audit.jsonl"
RESERVE_NAME = ".reserve"
SINK_NAME = ".sink"
# What is left to know of segments that were retired; beside genesis.json.
RETIRED_NAME = "retired.jsonl"
# In the first directory: a second one belongs to this log. In the second: it is that one.
SECOND_NAME = ".second"

_LISTINGS_MAX = 5
# A segment is born with these on disk: its own line, the tree's edge, the key of the segment.
_FIRST_LINES = 3
_FIRST_OPENINGS = (b'{"k":"seg"', b'{"k":"tr",', b'{"k":"key"')

_NAME = re.compile(r"(\d{8,})-(\d{8}T\d{6}Z)(\.jsonl\.open|\.crashed\.jsonl|\.jsonl)")


class SegmentState(StrEnum):
    """The value is the end of the file's name."""

    OPEN = ".jsonl.open"
    CLOSED = ".jsonl"
    CRASHED = ".crashed.jsonl"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """`started` is the UTC second of its first line, as in the name: `20261121T001203Z`."""

    directory: Path
    number: int
    started: str
    state: SegmentState

    @property
    def stem(self) -> str:
        return f"{self.number:08d}-{self.started}"

    @property
    def name(self) -> str:
        return self.stem + self.state.value

    @property
    def path(self) -> Path:
        return self.directory / self.name

    def now(self) -> SegmentFile:
        """The same segment under the name that it has now; the writer may have renamed it meanwhile."""
        for state in SegmentState:
            moved = SegmentFile(self.directory, self.number, self.started, state)
            if moved.path.exists():
                return moved
        return self

    def open(self) -> BinaryIO:
        """For reading. Raises `OSError`, `NotAFileError` among them."""
        try:
            return open_file(self.path)
        except FileNotFoundError:
            return open_file(self.now().path)

    def size(self) -> int:
        """In bytes, under whichever name it has now."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return self.now().path.stat().st_size


def started_of(t: str) -> str:
    """`2026-11-21T00:12:03.104233Z` → `20261121T001203Z`."""
    return t[:19].replace("-", "").replace(":", "") + "Z"


def segments_in(directory: Path) -> list[SegmentFile]:
    """Every segment file of a host's directory, in order of number, then of name."""
    found = []
    for name in sorted(entry.name for entry in directory.iterdir()):
        match = _NAME.fullmatch(name)
        if match and name == f"{int(match[1]):08d}-{match[2]}{match[3]}":
            found.append(SegmentFile(directory, int(match[1]), match[2], SegmentState(match[3])))
    return sorted(found, key=lambda segment: segment.number)


@dataclass(frozen=True, slots=True)
class LogDirectories:
    """Where one host's log lies. The first holds the root of trust; the second, which need not be there, the segments
    that could not be opened in the first. Numbers run over both.
    """

    first: Path
    second: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def segments(self) -> list[SegmentFile]:
        """Every segment, in order of number, then of directory. A second directory that is not there holds none."""
        files = self._files()
        given_up = set(_given_up(files))
        return [segment for segment in files if segment not in given_up]

    def given_up(self) -> list[SegmentFile]:
        """Files that were begun and given up before they took a record, whose removal a failing disk or a power cut undid.

        They are not part of the log: another file has their number, and whatever continues the log continues that one.
        """
        return _given_up(self._files())

    def _files(self) -> list[SegmentFile]:
        """A directory that is read while a file gets its last name may tell both names of it, or none: then once more."""
        found: list[SegmentFile] = []
        for _ in range(_LISTINGS_MAX):
            found = [segment for directory in self.all if directory.is_dir() for segment in segments_in(directory)]
            found.sort(key=lambda segment: segment.number)
            if all(later.number == earlier.number + 1 for earlier, later in pairwise(found)):
                break
        return found

    def strangers(self) -> list[str]:
        """Names that no part of the format explains."""
        return [name for directory in self.all if directory.is_dir() for name in strangers_in(directory)]


def _given_up(files: Sequence[SegmentFile]) -> list[SegmentFile]:
    by_number: dict[int, list[SegmentFile]] = {}
    for segment in files:
        by_number.setdefault(segment.number, []).append(segment)
    given_up = []
    for doubles in by_number.values():
        if len(doubles) > 1:
            begun = [segment for segment in doubles if segment.state is SegmentState.OPEN and _is_only_begun(segment)]
            begun.sort(key=lambda segment: segment.started)
            given_up += begun if len(begun) < len(doubles) else begun[:-1]
    return given_up


def find_log(directory: Path, host_id: str = "", also: Path | None = None) -> LogDirectories:
    """The directories of one host's log: below (or at) `directory`, and below (or at) `also`, its second one; without
    `also` the one that the writer has used, where that is there.

    Raises `OperatorError` when `directory` holds no log, or several.
    """
    first = host_directory(directory, host_id)
    if also is None:
        return LogDirectories(first, second_of(first))
    return LogDirectories(first, also if _holds_log(also) else also / first.name)


def second_mark(log: str, second: Path | None = None) -> bytes:
    """What `.second` says: the log's name, and in the first directory where the second one is."""
    return (f"{log}\n{second}\n" if second else f"{log}\n").encode()


def second_of(first: Path) -> Path | None:
    """Where the writer had the second directory of this log; None when it has none."""
    try:
        lines = read_file(first / SECOND_NAME).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return Path(lines[1]) if len(lines) > 1 else None


def strangers_in(directory: Path) -> list[str]:
    """Names in a host's directory that no part of the format explains."""
    known = {GENESIS_NAME, LOCK_NAME, LINK_NAME, RESERVE_NAME, SINK_NAME, RETIRED_NAME, SECOND_NAME} | {
        segment.name for segment in segments_in(directory)
    }
    return sorted(
        entry.name for entry in directory.iterdir() if entry.name not in known and not is_temporary(entry.name)
    )


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _is_only_begun(segment: SegmentFile) -> bool:
    """Whether it holds what a segment begins with, whole, and nothing else. What can't be read is more than that."""
    try:
        with segment.open() as stream:
            lines = [raw[:10] for raw, _ in islice(raw_lines(stream), _FIRST_LINES + 1)]
    except OSError:
        return False
    return len(lines) <= _FIRST_LINES and all(opening in _FIRST_OPENINGS for opening in lines)


def raw_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield (bytes without newline, whether a newline ended them). Memory stays below two lines on any input:
    what is longer than a line may be comes in pieces, which no parser accepts.
    """
    while piece := stream.readline(LINE_BYTES_MAX + 2):
        if piece.endswith(b"\n"):
            yield piece[:-1], True
        else:
            yield piece, False


def host_directory(directory: Path, host_id: str = "") -> Path:
    """The directory of one host's log below (or at) `directory`. Raises `OperatorError` when there is none, or several."""
    if _holds_log(directory):
        return directory
    hosts = [host_id] if host_id and _holds_log(directory / host_id) else [] if host_id else hosts_in(directory)
    if len(hosts) == 1:
        return directory / hosts[0]
    if not hosts:
        wanted = f" of the host {host_id}" if host_id else ""
        raise OperatorError(f"{directory} holds no audit log{wanted} yet; `manage.py audit init` begins one.")
    raise OperatorError(
        f"{directory} holds the logs of several hosts ({', '.join(hosts)}); name one of these directories."
    )


def hosts_in(directory: Path) -> list[str]:
    """Names of the subdirectories that hold a log, or what is left of one."""
    if not directory.is_dir():
        return []
    return sorted(entry.name for entry in directory.iterdir() if _holds_log(entry))


def _holds_log(directory: Path) -> bool:
    marks = (directory / GENESIS_NAME, directory / SECOND_NAME)
    return directory.is_dir() and (any(mark.exists() for mark in marks) or bool(segments_in(directory)))
