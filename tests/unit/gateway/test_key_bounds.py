"""What a key is bound to, as the corridor holds it: origin, kind, tokens, its own rate."""

from __future__ import annotations

from functools import partial

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest, PermissionDenied
from secure_llm_proxy.gateway import Reply, chat, list_models
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import KEY, SmallHouse, code_of, make_caller, make_house, make_inbound

READ = partial(read_chat_completion, messages_max=512)
MESSAGES = [{"role": "user", "content": "Hi."}]


def house_of(**bounds: object) -> SmallHouse:
    small = make_house()
    small.identity.keys[KEY] = make_caller(**bounds)
    return small


def ask(small: SmallHouse, body: dict[str, object] | None = None, **inbound: object) -> Reply:
    return chat(small.house, make_inbound({"messages": MESSAGES, **(body or {})}, **inbound), READ)


def refusal(small: SmallHouse) -> AuditEvent:
    (event,) = small.journal.of(AuditType.REFUSED)
    return event


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"])
def test_a_key_bound_to_networks_works_from_there(address: str) -> None:
    small = house_of(allowed_addresses=("10.0.0.0/8", "2001:db8::/32"))

    assert isinstance(ask(small, address=address).outcome, Completion)


@pytest.mark.parametrize(
    ("networks", "address", "rule"),
    [
        (("10.0.0.0/8",), "11.0.0.1", "api_key_addresses"),
        (("10.0.0.0/8",), "::10.1.2.3", "api_key_addresses"),
        ((), "127.0.0.1", "api_key_addresses"),
        (("10.0.0.0/8", "nonsense"), "10.0.0.1", "api_key_addresses:unreadable"),
    ],
)
def test_elsewhere_it_is_refused_and_the_rule_recorded(networks: tuple[str, ...], address: str, rule: str) -> None:
    small = house_of(allowed_addresses=networks)

    reply = ask(small, address=address)

    assert code_of(reply.outcome) is ErrorCode.ADDRESS_NOT_ALLOWED
    event = refusal(small)
    assert (event.event, event.clear["rule"], event.clear["ak"]) == (EventName.BLOCKED_IP, rule, "key_test")
    assert small.house.running == {}
    assert code_of(list_models(small.house, make_inbound(address=address)).outcome) is ErrorCode.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize(
    ("agents", "agent", "rule"),
    [
        (("openai*",), "curl/8.5", "api_key_agents"),
        (("openai*",), "", "api_key_agents"),
        ((), "OpenAI/Python 2.0", "api_key_agents"),
        (("two words",), "OpenAI/Python 2.0", "api_key_agents:unreadable"),
        (("openai*",), "OpenAI " + "x" * 5000, "api_key_agents:over_4096_characters"),
    ],
)
def test_a_key_bound_to_agents_refuses_others(agents: tuple[str, ...], agent: str, rule: str) -> None:
    small = house_of(allowed_agents=agents)

    reply = ask(small, user_agent=agent)

    assert code_of(reply.outcome) is ErrorCode.AGENT_NOT_ALLOWED
    assert (refusal(small).event, refusal(small).clear["rule"]) == (EventName.SECURITY_EVENT, rule)
    assert isinstance(ask(house_of(allowed_agents=("openai*",)), user_agent="OpenAI/Python 2.0").outcome, Completion)


def test_an_administration_key_asks_no_model_and_a_test_key_is_marked() -> None:
    small, tested = house_of(kind="adm"), house_of(kind="test")

    assert code_of(ask(small).outcome) is ErrorCode.WRONG_KEY_KIND
    assert code_of(list_models(small.house, make_inbound()).outcome) is ErrorCode.WRONG_KEY_KIND
    assert isinstance(ask(tested).outcome, Completion)
    assert [event.clear["kind"] for event in tested.journal.handed_over] == ["test", "test"]


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({}, {"max_completion_tokens": 50}),
        ({"max_tokens": None}, {"max_tokens": 50}),
        ({"max_completion_tokens": None}, {"max_completion_tokens": 50}),
        ({"max_tokens": 50}, {"max_tokens": 50}),
        ({"max_completion_tokens": 1, "n": 128}, {"max_completion_tokens": 1, "n": 128}),
        ({"n_predict": 50}, {"n_predict": 50, "max_completion_tokens": 50}),
    ],
)
def test_a_request_within_the_ceiling_passes_and_one_without_a_number_gets_it(
    body: dict[str, object], sent: dict[str, object]
) -> None:
    small = house_of(tokens_max=50)

    assert isinstance(ask(small, body).outcome, Completion)

    (payload,) = small.upstream.payloads
    assert {name: payload.get(name) for name in payload if name not in {"messages", "model", "stream"}} == sent
    assert b'"max_' in small.journal.of(AuditType.LLM_START)[0].body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_completion_tokens": 2**62}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 51}, "max_completion_tokens"),
        ({"max_tokens": 5, "n_predict": -1}, "n_predict"),
        ({"max_tokens": 5, "max_new_tokens": "many"}, "max_new_tokens"),
        ({"max_tokens": 5, "num_predict": True}, "num_predict"),
        ({"max_tokens": 5, "max_output_tokens": 5.5}, "max_output_tokens"),
    ],
)
def test_a_request_for_more_is_refused_before_it_is_sent(body: dict[str, object], param: str) -> None:
    small = house_of(tokens_max=50)

    reply = ask(small, body)

    assert isinstance(reply.outcome, InvalidRequest)
    assert (reply.outcome.status, reply.outcome.code) == (400, ErrorCode.MAX_TOKENS_EXCEEDED)
    assert reply.outcome.param == param
    assert small.upstream.received == []


@pytest.mark.parametrize(
    ("wire_format", "put_in"),
    [
        (WireFormat.OPENAI_COMPLETIONS, {"max_tokens": 50}),
        (WireFormat.OPENAI_RESPONSES, {"max_output_tokens": 50}),
        (WireFormat.ANTHROPIC_MESSAGES, {"max_tokens": 50}),
        (WireFormat.OPENAI_EMBEDDINGS, {}),
        (WireFormat.ANTHROPIC_COUNT_TOKENS, {}),
    ],
)
def test_each_format_gets_the_ceiling_by_its_own_name(wire_format: WireFormat, put_in: dict[str, int]) -> None:
    small = house_of(tokens_max=50)

    chat(
        small.house,
        make_inbound({"messages": MESSAGES}),
        lambda body: ChatRequest("small", stream=False, payload=body, format=wire_format),
    )

    [sent] = small.upstream.payloads
    assert sent == {"messages": MESSAGES, "model": "small", "stream": False, **put_in}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"models": ["large"]}, "models"),
        ({"fallbacks": [{"model": "large"}]}, "fallbacks"),
        ({"preset": "@preset/ours"}, "preset"),
    ],
)
def test_a_key_for_some_models_names_no_others_for_the_provider_to_choose(body: dict[str, object], param: str) -> None:
    small, free = house_of(models=("small",)), house_of()

    reply = ask(small, {"model": "small", **body})

    assert isinstance(reply.outcome, PermissionDenied)
    assert (reply.outcome.code, reply.outcome.param) == (ErrorCode.MODEL_NOT_ALLOWED, param)
    assert small.upstream.received == []
    assert isinstance(ask(free, {"model": "small", **body}).outcome, Completion)


@pytest.mark.parametrize("bounds", [{"models": ("small",)}, {"tokens_max": 50}])
@pytest.mark.parametrize(
    ("name", "meant"), [("MODEL", "model"), ("Max_Tokens", "max_tokens"), ("max_to\u212aens", "max_tokens")]
)
def test_what_a_key_is_bound_to_has_one_spelling(bounds: dict[str, object], name: str, meant: str) -> None:
    small = house_of(**bounds)

    reply = ask(small, {"model": "small", name: 10**6})

    assert isinstance(reply.outcome, InvalidRequest)
    assert reply.outcome.param == meant
    assert small.upstream.received == []
    assert isinstance(ask(house_of(), {"model": "small", name: 10**6}).outcome, Completion)


def test_without_a_ceiling_nothing_is_put_in() -> None:
    small = house_of()

    ask(small, {"max_tokens": 10**9, "n_predict": -1})

    (payload,) = small.upstream.payloads
    assert (payload["max_tokens"], payload["n_predict"]) == (10**9, -1)
    assert "max_completion_tokens" not in payload


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ({"requests_per_minute": 1, "burst": 1}, ErrorCode.RATE_LIMIT_EXCEEDED),
        ({"burst": 1}, None),
        ({"concurrent": 1}, None),
    ],
)
def test_a_key_s_own_limits_apply(bounds: dict[str, object], code: ErrorCode | None) -> None:
    small = house_of(**bounds)

    outcomes = [ask(small).outcome for _ in range(2)]
    decision = ask(small).facts.decision

    assert isinstance(outcomes[0], Completion)
    assert decision is not None
    if code is None:
        # "burst": the deployment's 6000 a minute with one at once; "concurrent": none is left beside this one
        assert decision.remaining == 0
    else:
        assert code_of(outcomes[1]) is code
        assert decision.limit == 1


def test_keys_with_the_same_limits_share_one_class() -> None:
    from secure_llm_proxy.gateway.steps import _own_class  # noqa: PLC0415  throttling knows the last class by its identity

    default = RateClass(600, 100, 50, window_s=10)

    assert _own_class(default, 5, None, 2) is _own_class(default, 5, None, 2)
    assert _own_class(default, 5, None, 2) == RateClass(5, 100, 2, window_s=60)
    assert _own_class(default, None, 7, None) == RateClass(600, 7, 50, window_s=10)
