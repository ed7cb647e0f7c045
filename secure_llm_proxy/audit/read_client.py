"""Asking the audit log: what web workers and commands read of it, through the writer's read socket.

A call is one connection, one request, one bounded answer. Sockets are the `socket` module's, so a gevent worker's other
greenlets go on meanwhile; a client object may be shared by threads, greenlets and forks. No call takes longer than its
patience (30 s unless said otherwise): then, and when nobody answers, `Unavailable(audit_unavailable)`.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import orjson

from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    EvidenceBroken,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ProxyError,
    RateLimited,
    Unavailable,
)

if TYPE_CHECKING:
    from secure_llm_proxy.settings import AuditSettings
    from secure_llm_proxy.vocabulary.audit import ClearValue

_PATIENCE_S = 30.0
_PACE_S = 0.05
# The longest answer is 2 MiB of rows and one line of the log more, each byte of it escaped at worst.
_ANSWER_BYTES_MAX = 64 << 20
_PIECE_BYTES = 256 << 10
_PUBLIC = "The audit log cannot be read now. Try again shortly."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands: index in the log, segment number, byte offset and length there, leaf hash (base64)."""

    n: int
    segment: int
    offset: int
    size: int
    h: str


@dataclass(frozen=True, slots=True)
class Row:
    """A record by its clear metadata. `t` is the writer's wall clock."""

    place: Place
    t: str
    type: str
    event: str | None
    id: str
    exchange_id: str
    kid: str | None
    clear: Mapping[str, ClearValue]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """The tree over lines 0 … n-1 had `root` (base64); `note` is what was signed. Its signature was not looked at."""

    place: Place
    t: str
    root: str
    note: str


@dataclass(frozen=True, slots=True)
class Break:
    """Nothing of segment `segment` from line `n` on could be shown: it is not what was written."""

    segment: int
    n: int
    offset: int
    what: str


@dataclass(frozen=True, slots=True)
class Tail:
    """Rows in order. Go on with `after`; `more` says that there is more already."""

    rows: tuple[Row | CheckpointRow, ...]
    after: int
    more: bool
    broken: Break | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What rows must be. Times are UTC as in the log, `since` included, `until` not.

    `user` is a `usr_…` id, as caller, subject or actor. `clear` holds further members by their names in the log (`ak` key,
    `mdl` model, `dec` decision, `sub` pseudonym, `ipx` blind index …), each equal to the value given.
    """

    since: str | None = None
    until: str | None = None
    type: str | None = None
    event: str | None = None
    id: str | None = None
    exchange_id: str | None = None
    user: str | None = None
    clear: Mapping[str, ClearValue] = field(default_factory=dict)

    def members(self) -> dict[str, object]:
        given = {
            "since": self.since,
            "until": self.until,
            "type": self.type,
            "event": self.event,
            "id": self.id,
            "rid": self.exchange_id,
            "user": self.user,
        }
        return {name: value for name, value in given.items() if value is not None} | {"clear": dict(self.clear)}


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that fit, in the order asked for. `more`: the search ended before the log did; go on with `next`."""

    rows: tuple[Row, ...]
    more: bool
    next: int | None
    broken: tuple[Break, ...] = ()


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of the log as it stands there, without its newline."""

    place: Place
    raw: bytes


@dataclass(frozen=True, slots=True)
class RawLines:
    """`more`: go on with `after`."""

    lines: tuple[RawLine, ...]
    more: bool
    after: int
    broken: tuple[Break, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """A record with its body in clear. `body` is None when it could not be opened, and `problem` says why."""

    row: Row
    body: bytes | None = field(repr=False)
    problem: str | None = None


class AuditReader:
    """The read side of the audit room, as other processes see it. Holds nothing between two calls."""

    def __init__(self, settings: AuditSettings, *, patience_s: float = _PATIENCE_S) -> None:
        self._address = str(settings.read_address)
        self._patience_s = patience_s

    def tail(self, after: int = -1, *, limit: int = 200) -> Tail:
        """At most `limit` (1,000) rows of the lines behind line `after`, oldest first; -1 begins with the first.

        Where a segment is damaged, `broken` says so, and `after` leads on to the next segment.
        """
        rows, end = self._ask({"op": "tail", "after": after, "limit": limit})
        broken = end.get("broken")
        return Tail(
            rows=tuple(_checkpoint(row) if row["k"] == "cp" else _row(row) for row in rows),
            after=int(end["after"]),
            more=bool(end["more"]),
            broken=_break(broken) if broken else None,
        )

    def search(
        self,
        search: Search,
        *,
        limit: int = 200,
        order: Literal["newest", "oldest"] = "newest",
        position: int | None = None,
    ) -> Found:
        """At most `limit` (1,000) rows that fit, after at most about 5 s; go on with `position` = `Found.next`."""
        request: dict[str, object] = {"op": "search", "filters": search.members(), "limit": limit, "order": order}
        if position is not None:
            request["before" if order == "newest" else "after"] = position
        rows, end = self._ask(request)
        return Found(
            rows=tuple(_row(row) for row in rows),
            more=bool(end["more"]),
            next=end.get("next"),
            broken=tuple(_break(each) for each in end.get("broken", ())),
        )

    def lines(self, numbers: Sequence[int], *, hashes: Sequence[str] | None = None) -> tuple[RawLine, ...]:
        """The lines of these indexes (at most 1,000), in order of index; what the log does not hold is left out.

        Each was checked to stand in its place. Raises `EvidenceBroken` when one does not, or has not the hash given.
        """
        hash_of = dict(zip(numbers, hashes, strict=True)) if hashes is not None else {}
        found: list[RawLine] = []
        left = list(numbers)
        while left:
            request: dict[str, object] = {"op": "lines", "n": left}
            if hashes is not None:
                request["h"] = [hash_of[n] for n in left]
            lines, end = self._ask(request)
            found += [_line(line) for line in lines]
            left = list(end["rest"])
        return tuple(found)

    def find(self, identifier: str, *, after: int = -1, limit: int = 200) -> RawLines:
        """Record lines whose own id, exchange, start or whole is `identifier`. Raises `NotFound` when there is none."""
        lines, end = self._ask({"op": "find", "id": identifier, "after": after, "limit": limit})
        return RawLines(
            tuple(_line(line) for line in lines),
            more=bool(end["more"]),
            after=int(end["after"]),
            broken=tuple(_break(each) for each in end.get("broken", ())),
        )

    def blind(self, name: str, value: str) -> str:
        """The index under which records stand with this address (`ipx`), user agent (`uax`) or e-mail (`emx`), as
        `vocabulary.audit.indexed_values` writes them: search for it in `Search.clear`.
        """
        return str(self._ask({"op": "blind", "name": name, "value": value})[1]["index"])

    def reveal(self, identifier: str, *, reader: str, code: str, by: str) -> tuple[OpenedRecord, ...]:
        """The records of `find` with their bodies in clear, after the look at them was recorded.

        `reader` was enrolled on the log's host and `code` is what its app shows now, good once; `by` is who asks
        (`user:usr_…`, `host:root`). Raises `PermissionDenied(reader_code_refused)`, `RateLimited` above
        AUDIT_REVEALS_PER_HOUR, `NotFound`; each refusal is on record.
        """
        rows, _ = self._ask({"op": "reveal", "id": identifier, "reader": reader, "code": code, "by": by})
        return tuple(
            OpenedRecord(_row(row), None if row["body"] is None else base64.b64decode(row["body"]), row["problem"])
            for row in rows
        )

    def state(self) -> Mapping[str, Any]:
        """What the log holds: `log`, `lines`, `segments`, `oldest`, `newest`, `reveals`; `writer` is what the writer says."""
        return self._ask({"op": "state"})[1]

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _ask(self, request: Mapping[str, object]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows of the answer and its last line. Waits its turn while too many readers are connected."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                rows = list(self._answer(orjson.dumps(request) + b"\n", deadline))
            except OSError as error:
                raise _away(f"{self._address}: {error.strerror or error}") from None
            except orjson.JSONDecodeError:
                raise _away(f"{self._address}: the answer is not JSON") from None
            last = rows.pop() if rows else {}
            if last.get("end") is True:
                return rows, last
            told = last.get("error")
            if not isinstance(told, dict):
                raise _away(f"{self._address}: the answer broke off")
            if told.get("code") != "busy" or time.monotonic() + _PACE_S > deadline:
                raise _error(told)
            time.sleep(_PACE_S)

    def _answer(self, request: bytes, deadline: float) -> Iterator[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            _limit(peer, deadline)
            peer.connect(self._address)
            with contextlib.suppress(ConnectionError):
                # Who is not let in is told so and hung up on, maybe before it has asked.
                peer.sendall(request)
            rest, size = b"", 0
            while True:
                _limit(peer, deadline)
                try:
                    piece = peer.recv(_PIECE_BYTES)
                except ConnectionResetError:
                    piece = b""
                if not piece:
                    return
                size += len(piece)
                if size > _ANSWER_BYTES_MAX:
                    raise _away(f"{self._address}: the answer has no end")
                *lines, rest = (rest + piece).split(b"\n") if b"\n" in piece else (rest + piece,)
                for line in lines:
                    yield cast("dict[str, Any]", orjson.loads(line))


def _limit(peer: socket.socket, deadline: float) -> None:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer in time")
    peer.settimeout(left_s)


def _away(detail: str) -> Unavailable:
    return Unavailable(_PUBLIC, code=ErrorCode.AUDIT_UNAVAILABLE, detail=detail, retry_after_s=2)


def _error(told: Mapping[str, Any]) -> ProxyError:
    text = str(told.get("text"))
    match told.get("code"):
        case "invalid_value":
            return InvalidRequest(text)
        case "not_found":
            return NotFound(text)
        case "reader_code_refused":
            return PermissionDenied(text, code=ErrorCode.READER_CODE_REFUSED)
        case "rate_limit_exceeded":
            return RateLimited(text, retry_after_s=told.get("retry_after_s", 1))
        case "audit_broken":
            return EvidenceBroken(text)
        case "busy" | "audit_unavailable":
            return Unavailable(
                text, code=ErrorCode.AUDIT_UNAVAILABLE, detail=text, retry_after_s=told.get("retry_after_s", 2)
            )
        case _:
            return InternalError(detail=f"the audit reader answered: {text}")


def _place(row: Mapping[str, Any]) -> Place:
    return Place(row["n"], row["seg"], row["off"], row["len"], row["h"])


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        place=_place(row),
        t=row["t"],
        type=row["ty"],
        event=row["ev"],
        id=row["id"],
        exchange_id=row["rid"],
        kid=row["kid"],
        clear=row["clear"],
    )


def _checkpoint(row: Mapping[str, Any]) -> CheckpointRow:
    return CheckpointRow(_place(row), row["t"], row["root"], row["note"])


def _line(line: Mapping[str, Any]) -> RawLine:
    return RawLine(_place(line), line["raw"].encode())


def _break(told: Mapping[str, Any]) -> Break:
    return Break(told["seg"], told["n"], told["off"], told["what"])
