"""Every way in which a provider can fail, asked for through a running proxy, and what must come of each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.clients import Answer, ask
from tests.support.dialects import Dialect
from tests.support.provider import LATE_TEXT, Mode, Provider
from tests.support.running_proxy import RunningProxy

UNLIMITED = {
    "RATE_LIMIT_PER_MINUTE": "1000000",
    "RATE_LIMIT_BURST": "100000",
    "ADDRESS_RATE_LIMIT_PER_MINUTE": "1000000",
    "ADDRESS_RATE_LIMIT_BURST": "100000",
    # A disk that is busy for some seconds is not what is asked about.
    "AUDIT_PATIENCE_S": "30",
    # Each answer is that of one attempt.
    "LLM_RETRIES": "0",
    "CIRCUIT_FAILURES": "0",
}
# Little patience with the provider, and few bytes, so that all of it happens soon.
IMPATIENT = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "3",
    "UPSTREAM_IDLE_TIMEOUT_S": "3",
    "UPSTREAM_TOTAL_TIMEOUT_S": "5",
    "MAX_EVENT_SIZE": "65536",
    "MAX_RESPONSE_SIZE": "1048576",
    "GRACEFUL_TIMEOUT_S": "20",
    # Nobody is left alone for failing: each failure is asked for.
    "CIRCUIT_FAILURES": "0",
}
PATIENCE_S, TOTAL_S = 3.0, 5.0
# Providers of every format that is spoken to models: the configured name, the kind, what stands behind the origin.
PROVIDERS = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta", "cohere": ""}


def write_models_file(folder: Path, provider: Provider, models: Iterable[str]) -> dict[str, str]:
    """A file of models in which `KIND/MODEL` is that model at the one test provider, spoken to as a provider of that kind.

    Returns the settings with which it is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "models.yaml"
    origin = provider.base_url.removesuffix("/v1")
    written = {
        "providers": {
            kind: {"kind": kind, "base_url": origin + base, "api_keys": "env:TEST_PROVIDER_KEY"}
            for kind, base in PROVIDERS.items()
        },
        "models": {
            f"{kind}/{model}": {"routes": [{"provider": kind, "model": model}]}
            for kind in PROVIDERS
            for model in models
        },
    }
    # Every JSON text is a YAML text.
    path.write_text(json.dumps(written, indent=1), "utf-8")
    return {"MODELS_FILE": str(path), "TEST_PROVIDER_KEY": "sk-test-provider"}


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
# Where a format differs from OpenAI's.
ENDS_ELSEWHERE: Mapping[str, Mapping[Mode, tuple[str | None, str | None]]] = {}
# A second answer that nobody asked for must come while its connection is idle: HTTP/1.1 has no name for the request that an
# answer belongs to, so whoever asked meanwhile would get it (docs/request-route.md).
_LATE_MAX = 12
ALONE = frozenset({Mode.UNASKED_ANSWER})
SECRETS = (b"10.0.0.7", b"sk-test-provider")


class Case(NamedTuple):
    mode: Mode
    stream: bool
    dialect: Dialect
    provider: str
    at_byte: int = 0

    def __str__(self) -> str:
        how = "stream" if self.stream else "plain"
        return f"{self.mode} at {self.at_byte}, {how}, {self.dialect.name} over {self.provider}"


@dataclass(frozen=True, slots=True)
class Tried:
    case: Case
    answer: Answer
    seconds: float


def every_case(
    dialects: Sequence[Dialect], *, at_bytes: Iterable[int] = (0,), providers: Sequence[str] = tuple(PROVIDERS)
) -> list[Case]:
    """Every mode, plain and streamed, through each door to each provider."""
    positions = list(at_bytes)
    return [
        Case(mode, stream, dialect, provider, at_byte)
        for mode in Mode
        for stream in (False, True)
        for dialect in dialects
        for provider in providers
        for at_byte in (positions if mode in {Mode.RESET_AT_BYTE, Mode.CLOSE_AT_BYTE} else (0,))
    ]


def one_of_each(cases: Iterable[Case]) -> list[Case]:
    """Of the providers of each mode, direction, door and byte only one, by turns."""
    chosen: dict[tuple[Mode, bool, str, int], list[Case]] = {}
    for case in cases:
        chosen.setdefault((case.mode, case.stream, case.dialect.name, case.at_byte), []).append(case)
    return [found[number % len(found)] for number, found in enumerate(chosen.values())]


def attempt_all(proxy: RunningProxy, cases: Iterable[Case], *, key: str, at_once: int = 12) -> list[Tried]:
    def attempt(case: Case) -> Tried:
        began_s = time.monotonic()
        body = case.dialect.body(f"{case.provider}/{case.mode}", f"fault at_byte={case.at_byte}", case.stream)
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


def wrong_among(tried: Iterable[Tried], ends: Mapping[object, object], *, strictly: bool = False) -> list[str]:
    """A sentence for each answer that is not what it must be; `ends` is the `st` of each exchange in the log.

    On a machine with much other work the test provider may be too slow to fail otherwise in time: unless `strictly`, the
    truth about a few such answers is that patience ended.
    """
    wrong: list[str] = []
    late: list[str] = []
    for one in tried:
        case, answer = one.case, one.answer
        end = ends.get(answer.headers.get("x-request-id"))
        where = str(case)
        expected = ENDS_ELSEWHERE.get(case.provider, {}).get(case.mode, ENDS[case.mode])[case.stream]
        starved = end == _TIMEOUT and one.seconds >= PATIENCE_S and not strictly
        if starved and expected not in {None, _TIMEOUT}:
            late.append(where)
        elif expected is not None and end != expected:
            wrong.append(f"{where}: ended as {end}, not as {expected} ({answer.status} {answer.body[-200:]!r})")
        if (why := case.dialect.wrong_with(answer, complete=end == _COMPLETE, stream=case.stream)) is not None:
            wrong.append(f"{where}: {why} (log: {end}, status {answer.status}, {answer.body[-300:]!r})")
        wrong += [f"{where}: repeats {secret!r}" for secret in SECRETS if secret in answer.body]
        # A stream of Gemini's ends with the connection's answer alone.
        if LATE_TEXT.encode() in answer.body and case.provider != "gemini":
            wrong.append(f"{where}: says what stands behind the end")
    return [*wrong, *(late if len(late) > _LATE_MAX else [])]
