"""The files of one host's log: their names, their order, and their raw lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from secure_llm_proxy.audit.format import LINE_BYTES_MAX
from secure_llm_proxy.foundation.errors import OperatorError

GENESIS_NAME = "genesis.json"
LOCK_NAME = ".lock"
LINK_NAME = "audit.jsonl"
RESERVE_NAME = ".reserve"

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
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            return self.now().path.open("rb")


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


def strangers_in(directory: Path) -> list[str]:
    """Names in a host's directory that no part of the format explains."""
    known = {GENESIS_NAME, LOCK_NAME, LINK_NAME, RESERVE_NAME} | {segment.name for segment in segments_in(directory)}
    return sorted(
        entry.name for entry in directory.iterdir() if entry.name not in known and not is_temporary(entry.name)
    )


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


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
    return directory.is_dir() and ((directory / GENESIS_NAME).exists() or bool(segments_in(directory)))
