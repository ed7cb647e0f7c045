"""Lists of the settings and rules of the database, judged together."""

from __future__ import annotations

from datetime import timedelta

import pytest

from secure_llm_proxy.admission import UNKNOWN_ADDRESS, Admission, HeldRule, RulesInForce, RuleTable
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import AdmissionSettings
from tests.support.house import ManualClock

SETTINGS = AdmissionSettings(
    blocked_addresses=("10.66.0.0/16",),
    allowed_addresses=("10.0.0.0/8",),
    blocked_agents=("curl",),
    trusted_proxies=("10.9.0.0/16",),
)


def table(kind: str, *networks: str) -> RuleTable:
    return RuleTable((network, HeldRule(f"{kind}:{network}", None)) for network in networks)


def make_rules() -> RulesInForce:
    rules = RulesInForce()
    rules.blocked = table("address_rule", "10.66.1.0/24", "10.1.2.0/24", "198.51.100.0/24", "10.9.9.9/32")
    rules.temporary = table("temporary_block", "10.1.2.3/32", "10.5.5.5/32", "10.9.0.1/32", "203.0.113.7/32")
    rules.allowed = table("allowed", "203.0.113.0/24", "198.51.100.0/24")
    return rules


@pytest.mark.parametrize(
    ("address", "agent", "rule"),
    [
        ("10.66.1.1", "curl/8", "blocked_ips:10.66.0.0/16"),
        ("10.1.2.3", "curl/8", "address_rule:10.1.2.0/24"),
        ("::ffff:10.1.2.3", "openai", "address_rule:10.1.2.0/24"),
        ("198.51.100.1", "openai", "address_rule:198.51.100.0/24"),
        ("10.5.5.5", "curl/8", "temporary_block:10.5.5.5/32"),
        ("192.0.2.1", "curl/8", "allowed_ips"),
        ("203.0.113.9", "curl/8", "blocked_user_agents:curl"),
        ("203.0.113.9", "openai", None),
        ("10.0.0.1", "openai", None),
        # a rule in the list allowed, and a trusted proxy, are exempt from temporary blocks and from nothing else
        ("203.0.113.7", "openai", None),
        ("10.9.0.1", "openai", None),
        ("10.9.9.9", "openai", "address_rule:10.9.9.9/32"),
    ],
)
def test_the_first_that_objects_answers(address: str, agent: str, rule: str | None) -> None:
    verdict = Admission(SETTINGS, make_rules()).admit(address, agent)

    assert (verdict.allowed, verdict.rule) == (rule is None, rule)
    if rule is not None:
        assert verdict.code is (ErrorCode.AGENT_BLOCKED if "agent" in rule else ErrorCode.ADDRESS_BLOCKED)


def test_rules_that_change_are_in_force_at_the_next_request() -> None:
    rules = RulesInForce()
    admission = Admission(AdmissionSettings(), rules)
    before = admission.admit("192.0.2.1", "")

    rules.blocked = table("address_rule", "192.0.2.0/24")
    blocked = admission.admit("192.0.2.1", "")
    rules.blocked = None
    lifted = admission.admit("192.0.2.1", "")

    assert (before.allowed, blocked.allowed, lifted.allowed) == (True, False, True)


def test_the_first_allowing_rule_shuts_out_everybody_else_where_the_setting_is_empty() -> None:
    rules = RulesInForce()
    rules.allowed = table("allowed", "192.0.2.0/24")
    admission = Admission(AdmissionSettings(), rules)

    assert admission.admit("192.0.2.1", "").allowed
    assert admission.admit("198.51.100.1", "").rule == "allowed_ips"
    assert admission.admit("2001:db8::1", "").rule == "allowed_ips"


def test_an_allowing_rule_at_its_end_lets_nobody_in() -> None:
    clock = ManualClock()
    rules = RulesInForce()
    rules.allowed = RuleTable([("192.0.2.0/24", HeldRule("x", clock.now() + timedelta(seconds=60)))])
    admission = Admission(SETTINGS, rules, clock)

    before = admission.admit("192.0.2.1", "openai").allowed
    clock.advance(60)
    after = admission.admit("192.0.2.1", "openai")

    assert before
    assert after.rule == "allowed_ips"


@pytest.mark.parametrize(
    ("address", "exempt"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.9.1.1", True),
        ("203.0.113.9", True),
        (UNKNOWN_ADDRESS, True),
        ("::", True),
        ("nonsense", True),
        ("10.0.0.1", False),
        ("2001:db8::1", False),
        ("::2", False),
    ],
)
def test_loopback_trusted_proxies_and_allowed_by_rule_are_exempt_the_setting_s_networks_are_not(
    address: str,
    exempt: bool,  # noqa: FBT001  a column of the table
) -> None:
    assert Admission(SETTINGS, make_rules()).is_exempt(address) is exempt
