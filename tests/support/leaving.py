"""Clients that leave a stream at a chosen byte, and what must be known of each afterwards."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from tests.support.clients import CLIENT_PATIENCE_S, ask, audit_lines
from tests.support.dialects import Dialect
from tests.support.programs import ServerFailed, wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

# Long enough that a client can leave at thousands of places, and slow enough that it always leaves before the end.
LONG_ANSWER = " ".join(f"word-{number:03}" for number in range(300))
CHUNKS = 60
PAUSE_S = 0.01
# Who leaves while so much is still to come leaves in any case before the answer is whole. (The last of it comes at once.)
_LAST_BYTES = 4_000
_BUSY_S = 1.0
_MARK = re.compile(r"leaving-(\d+)-")


@dataclass(frozen=True, slots=True)
class Left:
    """A client that has left. `at_s` by the monotonic clock, `at` by the wall clock."""

    number: int
    dialect: Dialect
    at_byte: int
    request_id: str | None
    at_s: float
    at: datetime


def length_of_a_whole_stream(proxy: RunningProxy, dialect: Dialect, *, key: str, model: str) -> int:
    """Bytes of the answer to one who stays, head included."""
    return len(_read(proxy, _request(dialect, key, model, "staying"), 2**30)[0])


def leave_at(
    proxy: RunningProxy, dialect: Dialect, at_bytes: Iterable[int], *, key: str, model: str, at_once: int = 24
) -> list[Left]:
    """Ask for a stream for each place, and hang up when so many bytes have come: in good order, or every other one by a reset."""

    def leave(case: tuple[int, int]) -> Left:
        number, at_byte = case
        request = _request(dialect, key, model, f"leaving-{number}-{at_byte}")
        received, at_s, at = _read(proxy, request, at_byte, reset=number % 2 == 1)
        named = re.search(rb"(?im)^x-request-id: (\S+)\r$", received)
        return Left(number, dialect, at_byte, named[1].decode() if named else None, at_s, at)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(leave, enumerate(at_bytes)))


def places_in(length: int, *, step: int) -> range:
    return range(step, length, step)


def _was_late(end: Mapping[str, object], one: Left) -> bool:
    """The whole answer was out about when this client hung up: a busy machine kept one of the two waiting. `wrong_among` sees
    that these are few.
    """
    return (datetime.fromisoformat(str(end["t"])) - one.at).total_seconds() < _BUSY_S


def wrong_among(
    proxy: RunningProxy, provider: Provider, left: list[Left], *, model: str, length: int
) -> tuple[list[str], Mapping[str, float]]:
    """Sentences on what is missing once all is quiet, and the longest times: until the provider's work was ended, and until the
    end was on record. `model` was asked by them alone, and by the one who stayed, for `length` bytes.
    """
    try:
        wait_until(lambda: len(_ends(proxy, model)) > len(left), what="every end is on record")
    except ServerFailed as late:
        return [str(late)], {}
    ends = _ends(proxy, model)
    by_request = {str(end["rid"]): end for end in ends}
    wrong = [f"{len(ends)} ends for {len(left)} clients and one"] if len(ends) != len(left) + 1 else []
    unknown = [end["st"] for end in ends if end["rid"] not in {one.request_id for one in left}]
    if sorted(map(str, unknown)) != ["client_abort"] * (len(unknown) - 1) + ["complete"]:
        wrong.append(f"those who left before they knew their request's id ended as {unknown}")
    gone = [one for one in left if one.request_id is None]
    for one in left:
        if one.request_id is None:
            continue
        where = f"{one.dialect.name}, byte {one.at_byte} of {length}"
        end = by_request.get(one.request_id)
        if end is None:
            wrong.append(f"{where}: no end on record")
        elif end["st"] == "client_abort":
            gone.append(one)
        elif end["st"] != "complete" or (one.at_byte < length - _LAST_BYTES and not _was_late(end, one)):
            wrong.append(f"{where}: ended as {end['st']}")
    due = [one for one in left if one.at_byte < length - _LAST_BYTES]
    unseen = [one for one in due if one not in gone]
    if len(unseen) * 4 > len(due):
        wrong.append(f"{len(unseen)} of {len(due)} who left well before the end were not seen leaving")
    slowest = {"upstream_closed_s": 0.0, "recorded_s": 0.0}
    try:
        wait_until(
            lambda: {one.number for one in gone} <= set(_departures(provider)), what="the provider was let go each time"
        )
    except ServerFailed as late:
        return [*wrong, str(late)], {}
    departed = _departures(provider)
    for one in gone:
        slowest["upstream_closed_s"] = max(slowest["upstream_closed_s"], departed[one.number] - one.at_s)
        if one.request_id is not None:
            late_s = (datetime.fromisoformat(str(by_request[one.request_id]["t"])) - one.at).total_seconds()
            slowest["recorded_s"] = max(slowest["recorded_s"], late_s)
    return wrong, slowest


def under_way(proxy: RunningProxy) -> object:
    counts = ask(proxy, "GET", "/security/status").json["security_metrics"]
    assert isinstance(counts, dict)
    return counts["active_clients"]


def _ends(proxy: RunningProxy, model: str) -> list[dict[str, object]]:
    return [line for line in audit_lines(proxy) if line.get("ty") == "llm.end" and line.get("mdl") == model]


def _departures(provider: Provider) -> dict[int, float]:
    gone = {}
    for departure in provider.departures:
        mark = _MARK.search(departure.request.body.decode())
        if mark is not None:
            gone[int(mark[1])] = departure.at_s
    return gone


def _request(dialect: Dialect, key: str, model: str, text: str) -> bytes:
    body = json.dumps(dialect.body(model, f"{text}-end", True)).encode()
    headers = {
        "Host": "localhost",
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **dialect.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {dialect.door} HTTP/1.1\r\n{head}\r\n".encode() + body


def _read(proxy: RunningProxy, request: bytes, at_byte: int, *, reset: bool = False) -> tuple[bytes, float, datetime]:
    parts = urlsplit(proxy.base_url)
    received = b""
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=CLIENT_PATIENCE_S) as line:
        line.sendall(request)
        while len(received) < at_byte and (more := line.recv(at_byte - len(received))):
            received += more
        if reset:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left_s, left = time.monotonic(), datetime.now(UTC)
    return received, left_s, left
