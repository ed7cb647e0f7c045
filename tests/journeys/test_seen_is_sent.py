"""Over real sockets: what a client sends and what the provider gets are read alike by any parser, or nothing is sent (A09, A10)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode
from tests.support.clients import Answer, connection_to
from tests.support.generated_requests import RequestGenerator
from tests.support.json_corpus import ACCEPTED, REFUSED
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy
from tests.support.seen_and_sent import strictly
from tests.support.upstream_faults import UNLIMITED

_AT_ONCE = 6


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def direct(far_end: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    settings = {**UNLIMITED, "LLM_API_URL": far_end.base_url, "LLM_API_KEY": "sk-test-provider", "LLM_MODELS": "m"}
    with RunningProxy(short_folder / "seen", settings) as proxy:
        yield proxy


def _ask_all(proxy: RunningProxy, bodies: list[bytes]) -> list[Answer]:
    """Each body once, over a few connections that stay."""
    headers = {"Authorization": f"Bearer {proxy.shared_api_key}", "Content-Type": "application/json"}

    def ask_some(start: int) -> dict[int, Answer]:
        answers = {}
        with connection_to(proxy) as connection:
            for number in range(start, len(bodies), _AT_ONCE):
                connection.request(
                    "POST",
                    "/v1/chat/completions",
                    body=bodies[number],
                    headers={**headers, "X-Correlation-ID": f"n{number}"},
                )
                answer = connection.getresponse()
                named = {name.lower(): value for name, value in answer.getheaders()}
                answers[number] = Answer(answer.status, named, answer.read())
        return answers

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found: dict[int, Answer] = {}
        for part in pool.map(ask_some, range(_AT_ONCE)):
            found |= part
    return [found[number] for number in range(len(bodies))]


def _with_parameter(text: bytes, number: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"n%d"}],"x":%b}' % (number, text)


def test_every_text_that_is_json_reaches_the_provider_as_it_is_and_every_other_is_refused(
    direct: RunningProxy, far_end: Provider
) -> None:
    # A parameter lies one level deep.
    accepted = [text for name, text in ACCEPTED.items() if not name.startswith("64 ")]
    refused = [(text, code) for text, code in REFUSED.values() if code is not ErrorCode.EMPTY_BODY]
    far_end.clear()

    good = _ask_all(direct, [_with_parameter(text, number) for number, text in enumerate(accepted)])
    bad = _ask_all(direct, [text for text, _ in refused])

    assert Counter(answer.status for answer in good) == {200: len(accepted)}
    assert Counter(answer.status for answer in bad) == {400: len(refused)}
    assert [str(answer.error_code) for answer in bad] == [code.value for _, code in refused]
    got = {_number_of(request.json): strictly(request.body)["x"] for request in far_end.chats}
    assert len(far_end.chats) == len(accepted)
    assert [json.dumps(got[number]) for number in range(len(accepted))] == [
        json.dumps(json.loads(text)) for text in accepted
    ]


def test_generated_requests_arrive_as_they_were_sent_or_not_at_all(direct: RunningProxy, far_end: Provider) -> None:
    generator = RequestGenerator(6)
    requests = [generator.request("openai_chat") for _ in range(400)]
    far_end.clear()

    answers = _ask_all(direct, [request.body for request in requests])

    taken = [request.payload for request, answer in zip(requests, answers, strict=True) if answer.status == 200]
    assert all(
        (answer.status == 200) == (request.payload is not None)
        for request, answer in zip(requests, answers, strict=True)
    )
    assert Counter(_canonical(payload) for payload in taken if payload) == Counter(
        _canonical(strictly(request.body)) for request in far_end.chats
    )


def _number_of(payload: object) -> int:
    assert isinstance(payload, dict)
    return int(payload["messages"][0]["content"][1:])


def _canonical(payload: Mapping[str, object]) -> str:
    """As text, which tells 1 from 1.0 and True, and keeps the order."""
    return json.dumps(
        {name: value for name, value in payload.items() if name not in {"model", "stream", "stream_options"}}
    )
