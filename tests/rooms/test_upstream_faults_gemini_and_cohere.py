"""Providers that speak Gemini's and Cohere's formats, and lie, break or hang: the answer is whole, or an error says so (R14)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.conversations import talk
from tests.support.provider import Mode, Provider
from tests.support.upstream_faults import ENDS

_TEXT = "Grüße, Welt: all is well."
_SETTINGS = UpstreamSettings.model_validate(
    {
        # Longer than a good answer takes among all the others, whose far ends run in this process, too.
        "first_byte_timeout_s": 10.0,
        "idle_timeout_s": 10.0,
        "total_timeout_s": 15.0,
        "event_bytes_max": 65_536,
        "answer_bytes_max": 2**20,
    }
)


class Case(NamedTuple):
    kind: str
    mode: Mode
    stream: bool


def outcome_of(case: Case) -> str:
    with Provider(reply_text=_TEXT, stream_chunks=5) as far_end:
        # So slow that the shortest answer in single bytes takes longer than the whole patience.
        far_end.script(case.mode, at_byte=250, pause_s=0.2)
        url = far_end.base_url.removesuffix("/v1") + ("/v1beta" if case.kind == "gemini" else "")
        providers = Providers(_SETTINGS, [ProviderDefinition("p", case.kind, url)])
        conversation = talk(stream=case.stream)
        asked = ChatRequest("m", case.stream, {}, read=lambda _payload: conversation)
        request = providers.write(Target("p", "m"), asked)
        try:
            if not case.stream:
                said = providers.complete(request, Cancellation()).text
            else:
                stream = providers.stream(request, Cancellation())
                try:
                    said = "".join([event.text for event in stream])
                finally:
                    stream.close()
        except UpstreamFailed as error:
            return "upstream_timeout" if error.failure is FailureKind.TIMEOUT else "upstream_error"
        finally:
            providers.close()
        return "complete" if said.startswith(_TEXT) else f"said {said!r}"


def test_whatever_the_provider_does_there_is_a_whole_answer_or_an_error() -> None:
    cases = [Case(kind, mode, stream) for kind in ("gemini", "cohere") for mode in Mode for stream in (False, True)]

    with ThreadPoolExecutor(40) as threads:
        outcomes = dict(zip(cases, threads.map(outcome_of, cases), strict=True))

    wrong = {
        case: outcome
        for case, outcome in outcomes.items()
        if (expected := ENDS[case.mode][case.stream]) is not None and outcome != expected
    }
    assert wrong == {}
    assert set(outcomes.values()) == {"complete", "upstream_error", "upstream_timeout"}
