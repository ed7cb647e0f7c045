"""The four lists together."""

from __future__ import annotations

import pytest

from secure_llm_proxy.admission import AGENT_CHARACTERS_MAX, UNKNOWN_ADDRESS, Admission
from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.settings import AdmissionSettings

PRODUCTION = AdmissionSettings(
    allowed_addresses=("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "127.0.0.0/8", "::1/128"),
    blocked_agents=("curl", "wget", "python-requests", "bot", "spider"),
)
STRICT = AdmissionSettings(
    blocked_addresses=("10.66.0.0/16",),
    allowed_addresses=("10.0.0.0/8",),
    blocked_agents=("*bot",),
    allowed_agents=("openai", "good*"),
)


def test_without_lists_everybody_may_knock() -> None:
    admission = Admission(AdmissionSettings())

    for address in ("203.0.113.9", "2001:db8::1", "127.0.0.1"):
        for agent in ("", "curl/8.5", "x" * 100_000):
            assert admission.admit(address, agent).allowed


@pytest.mark.parametrize(
    ("address", "agent", "code", "rule"),
    [
        ("10.66.0.1", "evilbot/1", ErrorCode.ADDRESS_BLOCKED, "blocked_ips:10.66.0.0/16"),
        ("192.0.2.1", "evilbot/1", ErrorCode.ADDRESS_BLOCKED, "allowed_ips"),
        ("10.0.0.1", "OpenAI/1 goodbot/1", ErrorCode.AGENT_BLOCKED, "blocked_user_agents:*bot"),
        ("10.0.0.1", "curl/8", ErrorCode.AGENT_BLOCKED, "allowed_user_agents"),
        ("10.0.0.1", "", ErrorCode.AGENT_BLOCKED, "allowed_user_agents"),
        ("10.0.0.1", "OpenAI/Python 3.52.0", None, None),
        ("10.0.0.1", "goodness/1", None, None),
        ("::ffff:10.0.0.1", "goodness/1", None, None),
        ("::ffff:10.66.0.1", "goodness/1", ErrorCode.ADDRESS_BLOCKED, "blocked_ips:10.66.0.0/16"),
        ("nonsense", "goodness/1", ErrorCode.ADDRESS_BLOCKED, "client_address:unreadable"),
        (UNKNOWN_ADDRESS, "goodness/1", ErrorCode.ADDRESS_BLOCKED, "allowed_ips"),
    ],
)
def test_the_first_list_that_objects_answers(
    address: str, agent: str, code: ErrorCode | None, rule: str | None
) -> None:
    verdict = Admission(STRICT).admit(address, agent)

    assert (verdict.allowed, verdict.code, verdict.rule) == (code is None, code, rule)


@pytest.mark.parametrize("address", ["10.1.2.3", "172.16.5.5", "192.168.1.1", "127.0.0.1", "::1", "fd12::1"])
def test_production_lets_private_addresses_in_and_chatbots_too(address: str) -> None:
    admission = Admission(PRODUCTION)

    assert admission.admit(address, "chatbot/1.0").allowed
    assert admission.admit(address, "curl/8.5").rule == "blocked_user_agents:curl"


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8", "fe80::1"])
def test_production_keeps_public_addresses_out(address: str) -> None:
    assert Admission(PRODUCTION).admit(address, "openai/3").rule == "allowed_ips"


def test_an_agent_too_long_to_be_searched_is_refused_where_a_list_is_set() -> None:
    agent = "openai/3 " + "x" * AGENT_CHARACTERS_MAX

    for admission in (Admission(PRODUCTION), Admission(AdmissionSettings(allowed_agents=("openai",)))):
        verdict = admission.admit("10.0.0.1", agent)
        assert verdict.code is ErrorCode.AGENT_BLOCKED
        assert verdict.rule == "user_agent:over_4096_characters"


def test_the_client_address_is_found_over_the_configured_proxies_only() -> None:
    behind = Admission(AdmissionSettings(trusted_proxies=("10.0.0.0/8",)))
    direct = Admission(AdmissionSettings())

    assert behind.client_address("10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert direct.client_address("10.0.0.1", "203.0.113.9") == "10.0.0.1"
    assert direct.client_address("", "203.0.113.9") == "203.0.113.9"


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (AdmissionSettings(blocked_addresses=("x",)), "BLOCKED_IPS"),
        (AdmissionSettings(allowed_addresses=("x",)), "ALLOWED_IPS"),
        (AdmissionSettings(trusted_proxies=("x",)), "TRUSTED_PROXIES"),
        (AdmissionSettings(blocked_agents=("a b",)), "BLOCKED_USER_AGENTS"),
        (AdmissionSettings(allowed_agents=("a b",)), "ALLOWED_USER_AGENTS"),
    ],
)
def test_a_wrong_entry_names_its_variable(settings: AdmissionSettings, variable: str) -> None:
    with pytest.raises(OperatorError, match=variable):
        Admission(settings)
