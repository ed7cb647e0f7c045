"""Every way in which a provider can fail, asked for through a running proxy, and what must come of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from tests.support.clients import Answer, ask
from tests.support.dialects import Dialect
from tests.support.provider import LATE_TEXT, Mode
from tests.support.running_proxy import RunningProxy

UNLIMITED = {
    "RATE_LIMIT_PER_MINUTE": "1000000",
    "RATE_LIMIT_BURST": "100000",
    "ADDRESS_RATE_LIMIT_PER_MINUTE": "1000000",
    "ADDRESS_RATE_LIMIT_BURST": "100000",
}
# Patience of two seconds with the provider, and few bytes, so that all of it happens soon.
IMPATIENT = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "2",
    "UPSTREAM_IDLE_TIMEOUT_S": "2",
    "UPSTREAM_TOTAL_TIMEOUT_S": "4",
    "MAX_EVENT_SIZE": "65536",
    "MAX_RESPONSE_SIZE": "1048576",
    "GRACEFUL_TIMEOUT_S": "20",
    "LLM_MODELS": ",".join(["test-model", *Mode]),
}
TOTAL_S = 4.0

_COMPLETE, _ERROR, _TIMEOUT = "complete", "upstream_error", "upstream_timeout"
# What the log must say, plain and streamed; None: either, as long as answer and log agree.
ENDS: Mapping[Mode, tuple[str | None, str | None]] = {
    **dict.fromkeys(
        (
            Mode.OK, Mode.INTERIM, Mode.UNTIL_CLOSE, Mode.CUT_IN_CHARACTERS, Mode.CR_EVENTS, Mode.MULTILINE_DATA,
            Mode.TEXT_AFTER_THE_END, Mode.UNASKED_ANSWER, Mode.RESET_AFTER_THE_END,
        ),
        (_COMPLETE, _COMPLETE),
    ),
    **dict.fromkeys(
        (
            Mode.ERROR, Mode.RATE_LIMITED, Mode.UNAUTHORIZED, Mode.REDIRECT, Mode.NO_CONTENT, Mode.EARLY_CLOSE,
            Mode.LENGTH_TOO_LONG, Mode.TWO_LENGTHS, Mode.BAD_CHUNK_SIZE, Mode.NOT_HTTP, Mode.HEADER_FLOOD,
            Mode.HEADER_ENDLESS, Mode.GZIP, Mode.INVALID_JSON, Mode.NOT_AN_OBJECT, Mode.DUPLICATE_KEYS,
            Mode.LONE_SURROGATE, Mode.BAD_UTF8, Mode.NO_CHOICES, Mode.ERROR_WITH_200, Mode.HUGE_BODY,
            Mode.HUGE_CHUNKED_BODY, Mode.SWITCHING_PROTOCOLS, Mode.FOLDED_HEADER, Mode.NUL_IN_HEADER,
            Mode.STATUS_OF_TWO_DIGITS, Mode.LENGTH_NOT_A_NUMBER, Mode.TWO_DIFFERENT_LENGTHS, Mode.CODED_TRANSFER,
            Mode.GZIP_BOMB, Mode.GZIP_BOMB_AS_ERROR, Mode.TRUNCATED_CHUNK, Mode.HUGE_CHUNK_SIZE, Mode.EMPTY_BODY,
            Mode.HTML, Mode.DEEP_JSON, Mode.HUGE_NUMBER, Mode.NAN, Mode.WRONG_SHAPES, Mode.MALFORMED_EVENTS,
            Mode.NUL_IN_EVENT, Mode.HALF_AN_EVENT, Mode.BARE_LF_HEAD,
            Mode.ENDLESS_INTERIM,
        ),
        (_ERROR, _ERROR),
    ),
    **dict.fromkeys(
        (
            Mode.HANG_BEFORE_HEADERS, Mode.HANG_IN_HEADERS, Mode.HANG_MID_STREAM, Mode.SLOW_DRIP, Mode.SLOW_HEAD,
            Mode.ENDLESS_COMMENTS,
        ),
        (_TIMEOUT, _TIMEOUT),
    ),
    # A stream is no answer to a plain request, and JSON none to the other.
    **dict.fromkeys(
        (Mode.NO_DONE, Mode.COMMENTS, Mode.CRLF_EVENTS, Mode.NO_LAST_NEWLINE, Mode.LATE_LAST_CHUNK), (_ERROR, _COMPLETE)
    ),
    Mode.CHUNKED: (_COMPLETE, _ERROR),
    # A plain request has no stream to break.
    **dict.fromkeys(
        (Mode.HUGE_EVENT, Mode.NO_END, Mode.ONLY_DONE, Mode.ERROR_EVENT, Mode.NAMED_ERROR_EVENT, Mode.PLAIN_FOR_A_STREAM),
        (None, _ERROR),
    ),
    # Either the framing is found wrong, or the patience ends first.
    **dict.fromkeys((Mode.ENDLESS_CHUNK_EXTENSION, Mode.TRAILER_FLOOD), (None, None)),
    # It depends on the byte.
    **dict.fromkeys((Mode.RESET_AT_BYTE, Mode.CLOSE_AT_BYTE), (_ERROR, None)),
    # Shorter than announced: no JSON, and for a stream no event.
    Mode.LENGTH_TOO_SHORT: (_ERROR, _ERROR),
    # The text and the finish are there.
    Mode.HANG_BEFORE_THE_END: (_TIMEOUT, None),
}  # fmt: skip
# A second answer that nobody asked for must come while its connection is idle: HTTP/1.1 has no name for the request that an
# answer belongs to, so whoever asked meanwhile would get it (docs/request-route.md).
ALONE = frozenset({Mode.UNASKED_ANSWER})
SECRETS = (b"10.0.0.7", b"sk-test-provider", LATE_TEXT.encode())


class Case(NamedTuple):
    mode: Mode
    stream: bool
    dialect: Dialect
    at_byte: int = 0


@dataclass(frozen=True, slots=True)
class Tried:
    case: Case
    answer: Answer
    seconds: float


def every_case(
    dialects: Iterable[Dialect], modes: Iterable[Mode] = Mode, *, at_bytes: Iterable[int] = (0,)
) -> list[Case]:
    positions = list(at_bytes)
    return [
        Case(mode, stream, dialect, at_byte)
        for mode in modes
        for stream in (False, True)
        for dialect in dialects
        for at_byte in (positions if mode in {Mode.RESET_AT_BYTE, Mode.CLOSE_AT_BYTE} else (0,))
    ]


def attempt_all(
    proxy: RunningProxy, cases: Iterable[Case], *, key: str, at_once: int = 12, prefix: str = ""
) -> list[Tried]:
    """Ask for every case. `prefix` stands before the model's name, as a route to a certain provider."""

    def attempt(case: Case) -> Tried:
        began_s = time.monotonic()
        body = case.dialect.body(f"{prefix}{case.mode}", f"fault at_byte={case.at_byte}", case.stream)
        answer = ask(proxy, "POST", case.dialect.door, key=key, body=body, headers=case.dialect.headers)
        return Tried(case, answer, time.monotonic() - began_s)

    together = [case for case in cases if case.mode not in ALONE]
    alone = [case for case in cases if case.mode in ALONE]
    with ThreadPoolExecutor(at_once) as pool:
        tried = list(pool.map(attempt, together))
    for case in alone:
        tried.append(attempt(case))
        time.sleep(0.1)
    return tried


def wrong_among(tried: Iterable[Tried], ends: Mapping[object, object]) -> list[str]:
    """A sentence for each answer that is not what it must be; `ends` is the `st` of each exchange in the log."""
    wrong = []
    for one in tried:
        case, answer = one.case, one.answer
        end = ends.get(answer.headers.get("x-request-id"))
        where = f"{case.mode} at {case.at_byte}, {'stream' if case.stream else 'plain'}, {case.dialect.name}"
        expected = ENDS[case.mode][case.stream]
        if expected is not None and end != expected:
            wrong.append(f"{where}: ended as {end}, not as {expected} ({answer.status} {answer.body[-200:]!r})")
        if (why := case.dialect.wrong_with(answer, complete=end == _COMPLETE, stream=case.stream)) is not None:
            wrong.append(f"{where}: {why} (log: {end}, status {answer.status}, {answer.body[-300:]!r})")
        wrong += [f"{where}: repeats {secret!r}" for secret in SECRETS if secret in answer.body]
    return wrong
