"""A key is held to what it is bound to, by the running product in each shape, and the log says by which rule."""

from __future__ import annotations

from tests.support.clients import Answer, ask, records_of
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(proxy: RunningProxy, key: str, agent: str = "OpenAI/Python 2.0", **parameters: object) -> Answer:
    body = {"messages": MESSAGES, **parameters}
    return ask(proxy, "POST", "/v1/chat/completions", key=key, body=body, headers={"User-Agent": agent})


def refused(proxy: RunningProxy, answer: Answer) -> tuple[object, ...]:
    (record,) = records_of(proxy, answer.headers["x-request-id"])
    return answer.status, answer.error_code, record["ev"], record.get("rule")


def test_a_key_is_held_to_what_it_is_bound_to(proxy: RunningProxy, provider: Provider) -> None:
    user = proxy.create_user(role="admin")
    elsewhere = proxy.create_api_key(user, "--allow-ip", "192.0.2.0/24,2001:db8::/32")
    bound = proxy.create_api_key(
        user, "--allow-ip", "127.0.0.0/8,::1", "--allow-agent", "openai*", "--max-tokens", "50", "--rpm", "6",
        "--burst", "4", "--kind", "test",
    )  # fmt: skip
    administers = proxy.create_api_key(user, "--kind", "adm")
    provider.clear()

    wrong_place = chat(proxy, elsewhere)
    wrong_agent = chat(proxy, bound, agent="Mozilla/5.0")
    wrong_kind = chat(proxy, administers)
    filled_in = chat(proxy, bound)
    within = chat(proxy, bound, max_tokens=50)
    too_many = chat(proxy, bound, max_tokens=51)
    others = [chat(proxy, bound) for _ in range(12)]

    assert refused(proxy, wrong_place) == (403, "address_not_allowed", "BLOCKED_IP", "api_key_addresses")
    assert refused(proxy, wrong_agent) == (403, "agent_not_allowed", "SECURITY_EVENT", "api_key_agents")
    assert refused(proxy, wrong_kind)[:2] == (403, "wrong_key_kind")
    assert (filled_in.status, within.status) == (200, 200)
    sent = [request.json for request in provider.chats[:2]]
    assert [isinstance(body, dict) and body.get("max_completion_tokens") for body in sent] == [50, None]
    assert [isinstance(body, dict) and body.get("max_tokens") for body in sent] == [None, 50]
    assert (too_many.status, too_many.error_code, too_many.error["param"]) == (400, "max_tokens_exceeded", "max_tokens")
    assert within.headers["x-ratelimit-limit"] == "6"
    assert "rate_limit_exceeded" in {answer.error_code for answer in others if answer.status != 200}
    assert {record["kind"] for record in records_of(proxy, within.headers["x-request-id"])} == {"test"}
