"""The steps of the route: listed in the docstring, done in that order, and nothing leaves before it is recorded."""

from __future__ import annotations

import ast
import inspect
import re
from functools import partial
from pathlib import Path

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.gateway import RelayedStream, list_models
from secure_llm_proxy.gateway import chat as chat_face
from secure_llm_proxy.settings import AdmissionSettings
from secure_llm_proxy.vocabulary.caller import KIND_SESSION, RateClass
from secure_llm_proxy.vocabulary.chat import Completion
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import SmallHouse, code_of, make_caller, make_house, make_inbound, stop_recording_at

READ = partial(read_chat_completion, messages_max=512)
PROJECT = Path(__file__).parents[3]

# What each listed step is called in the body of the function. `forward` and `close once` have a form per kind of answer.
CALLS = {
    "open the docket": {"open_docket"},
    "admit": {"admit"},
    "identify": {"identify"},
    "throttle": {"throttle"},
    "read": {"read"},
    "plan the route": {"plan_route"},
    "write for the provider": {"write"},
    "list": {"listed"},
    "audit the intent": {"audit_intent"},
    "forward": {"ask_providers"},
    "close once": {"close_completed", "finish"},
}


def steps_listed(documentation: str) -> list[str]:
    return [match[1] for line in documentation.splitlines() if (match := re.fullmatch(r"\s*\d+\. (.+?)\s*", line))]


def steps_called(function: object) -> list[str]:
    """The steps in the order in which the body calls them, each once, refusals' handlers left out."""
    definition = ast.parse(inspect.getsource(function)).body[0]  # type: ignore[arg-type]
    assert isinstance(definition, ast.FunctionDef)
    names: list[str] = []
    for statement in definition.body:
        for node in statement.body if isinstance(statement, ast.Try) else [statement]:
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                names += [step for step, spelled in CALLS.items() if name in spelled]
    return list(dict.fromkeys(names))


@pytest.mark.parametrize("function", [chat_face, list_models], ids=["chat", "list_models"])
def test_the_docstring_lists_the_steps_that_the_body_takes_in_that_order(function: object) -> None:
    listed = steps_listed(inspect.getdoc(function) or "")

    assert len(listed) >= 6
    assert set(listed) <= set(CALLS)
    assert steps_called(function) == listed


def test_every_step_of_the_steps_module_has_its_place_on_the_route() -> None:
    from secure_llm_proxy.gateway import steps  # noqa: PLC0415  only this test looks behind the face

    public = {
        name
        for name, function in inspect.getmembers(steps, inspect.isfunction)
        if function.__module__ == steps.__name__ and not name.startswith("_")
    }

    assert public <= set().union(*CALLS.values())


def test_the_page_about_the_route_lists_the_same_steps_and_knows_only_real_codes() -> None:
    page = (PROJECT / "docs" / "request-route.md").read_text(encoding="utf-8")

    rows = re.findall(r"^\| (\d+)\. ([^|]+?) \|(.*)$", page, re.MULTILINE)
    codes = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", "".join(rest for _, _, rest in rows))

    assert [name for _, name, _ in rows] == steps_listed(inspect.getdoc(chat_face) or "")
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert set(codes) <= {code.value for code in ErrorCode}


def test_the_effects_of_a_plain_request_come_in_the_order_of_the_route() -> None:
    small = make_house()

    reply = chat_face(small.house, make_inbound(), READ)

    assert isinstance(reply.outcome, Completion)
    assert small.effects == [
        "open", "admit", "identify", "take", "plan", "record llm.start", "complete", "record llm.end", "release", "count",
    ]  # fmt: skip


def test_the_effects_of_a_stream_come_in_the_order_of_the_route() -> None:
    small = make_house()

    reply = chat_face(small.house, make_inbound({"messages": [{"role": "user", "content": "x"}], "stream": True}), READ)
    assert isinstance(reply.outcome, RelayedStream)
    assert small.effects == ["open", "admit", "identify", "take", "plan", "record llm.start", "stream"]
    list(reply.outcome)

    assert small.effects[7:] == ["close stream", "record llm.end", "release", "count"]


def test_the_effects_of_a_model_list_come_in_the_order_of_its_route() -> None:
    small = make_house()

    reply = list_models(small.house, make_inbound())

    assert reply.outcome == ("small", "large")
    assert small.effects == ["open", "admit", "identify", "take", "list", "release", "count"]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_sent_upstream_when_the_intent_is_not_recorded(stream: bool) -> None:  # noqa: FBT001
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_START)

    reply = chat_face(
        small.house, make_inbound({"messages": [{"role": "user", "content": "x"}], "stream": stream}), READ
    )

    assert code_of(reply.outcome) is ErrorCode.AUDIT_UNAVAILABLE
    assert small.upstream.received == []
    assert small.in_flight() == []
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "not_sent"


def admitted_nobody() -> SmallHouse:
    return make_house(admission=AdmissionSettings(blocked_addresses=("127.0.0.0/8",)))


def limited() -> SmallHouse:
    small = make_house(key_class=RateClass(requests=1, burst=1, concurrent=10))
    chat_face(small.house, make_inbound(), READ)
    small.effects.clear()
    return small


def test_a_refused_address_meets_no_other_room() -> None:
    small = admitted_nobody()

    chat_face(small.house, make_inbound(), READ)

    assert small.effects == ["open", "admit", "record llm.refused", "count"]


def test_an_unknown_key_is_not_throttled_and_its_body_not_read() -> None:
    small = make_house()

    reply = chat_face(small.house, make_inbound(AssertionError("the body was read"), credentials=("wrong",)), READ)

    assert code_of(reply.outcome) is ErrorCode.INVALID_API_KEY
    assert small.effects == ["open", "admit", "identify", "record llm.refused", "count"]


def test_a_throttled_request_is_not_read() -> None:
    small = limited()

    reply = chat_face(small.house, make_inbound(AssertionError("the body was read")), READ)

    assert code_of(reply.outcome) is ErrorCode.RATE_LIMIT_EXCEEDED
    assert small.effects == ["open", "admit", "identify", "take", "record llm.refused", "count"]


def test_a_key_in_the_url_is_refused_before_anybody_looks_at_it() -> None:
    small = make_house()

    reply = chat_face(small.house, make_inbound(key_in_url=True), READ)

    assert code_of(reply.outcome) is ErrorCode.API_KEY_IN_URL
    assert "identify" not in small.effects


def test_what_is_sent_is_the_request_written_anew_with_every_unknown_parameter() -> None:
    small = make_house()
    body = b'{ "messages": [ {"role":"user", "content":"\\u0048i", "odd": [1, {"x": null}]} ], "seed" : 7, "new_one":{"a":[]} }'

    chat_face(small.house, make_inbound(body), READ)

    assert small.upstream.payloads == [
        {
            "messages": [{"role": "user", "content": "Hi", "odd": [1, {"x": None}]}],
            "seed": 7,
            "new_one": {"a": []},
            "model": "small",
            "stream": False,
        }
    ]
    assert b" " not in small.upstream.received[0].body


def test_what_is_recorded_is_byte_for_byte_what_is_sent() -> None:
    small = make_house()

    chat_face(small.house, make_inbound({"messages": [{"role": "user", "content": "äöü 😀"}], "model": "large"}), READ)

    (start,) = small.journal.of(AuditType.LLM_START)
    payload = small.upstream.received[0].body
    assert start.body.startswith(b'{"request":' + payload + b',"from":')
    assert start.clear["n_in"] == len(payload)
    assert start.event is EventName.CHAT_REQUEST


def test_a_key_for_some_models_reaches_these_only() -> None:
    small = make_house()
    small.identity.keys["few"] = make_caller(models=frozenset({"large"}))
    ask = partial(make_inbound, credentials=("few",))

    allowed = chat_face(small.house, ask({"messages": [{"role": "user", "content": "x"}], "model": "large"}), READ)
    refused = chat_face(small.house, ask({"messages": [{"role": "user", "content": "x"}], "model": "small"}), READ)
    by_default = chat_face(small.house, ask({"messages": [{"role": "user", "content": "x"}]}), READ)
    listed = list_models(small.house, ask())
    other = list_models(small.house, ask(), "small")

    assert isinstance(allowed.outcome, Completion)
    assert code_of(refused.outcome) is code_of(by_default.outcome) is ErrorCode.MODEL_NOT_ALLOWED
    assert listed.outcome == ("large",)
    assert code_of(other.outcome) is ErrorCode.MODEL_NOT_FOUND
    assert len(small.upstream.received) == 1


def test_a_key_with_its_own_rate_is_held_to_it() -> None:
    small = make_house(key_class=RateClass(requests=600, burst=2, concurrent=10))
    small.identity.keys["slow"] = make_caller(key_id="key_slow", requests_per_minute=1)

    outcomes = [chat_face(small.house, make_inbound(credentials=("slow",)), READ) for _ in range(3)]
    small.clock.advance(1)
    later = chat_face(small.house, make_inbound(credentials=("slow",)), READ)

    assert code_of(outcomes[2].outcome) is code_of(later.outcome) is ErrorCode.RATE_LIMIT_EXCEEDED
    assert outcomes[0].facts.decision is not None
    assert outcomes[0].facts.decision.limit == 1


def test_all_sessions_of_a_person_share_one_rate() -> None:
    small = make_house(key_class=RateClass(requests=60, burst=2, concurrent=10))
    for number in range(3):
        small.identity.keys[f"token {number}"] = make_caller(key_id=f"ses_{number}", kind=KIND_SESSION)

    outcomes = [
        chat_face(small.house, make_inbound(credentials=(f"token {number}",)), READ).outcome for number in range(3)
    ]

    assert [isinstance(outcome, Completion) for outcome in outcomes] == [True, True, False]
    assert code_of(outcomes[2]) is ErrorCode.RATE_LIMIT_EXCEEDED
