"""The gate: lists of addresses and agents, from settings and rules, in a fixed order."""

from __future__ import annotations

from secure_llm_proxy.admission.addresses import Address, parse_address
from secure_llm_proxy.admission.agents import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.client_address import client_address
from secure_llm_proxy.admission.networks import NetworkSet
from secure_llm_proxy.admission.rules_in_force import RulesInForce
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import AdmissionSettings
from secure_llm_proxy.vocabulary.decisions import ALLOWED, Verdict

_LOOPBACK = ("127.0.0.0/8", "::1/128")


class Admission:
    """Addresses blocked by settings, by a rule, after violations; addresses allowed by settings or a rule; agents blocked,
    agents allowed: the first that objects answers.

    An empty list of the allowed (no setting and no rule) allows all. `rules` are looked at anew for each request, and
    changed by whoever reads them. Raises `OperatorError` naming an entry of the settings that can't be read.
    """

    __slots__ = (
        "_all_are_allowed",
        "_allowed_addresses",
        "_allowed_agents",
        "_blocked_addresses",
        "_blocked_agents",
        "_clock",
        "_loopback",
        "_rules",
        "_trusted_proxies",
    )

    def __init__(
        self, settings: AdmissionSettings, rules: RulesInForce | None = None, clock: Clock | None = None
    ) -> None:
        self._blocked_addresses = NetworkSet(settings.blocked_addresses, setting="BLOCKED_IPS")
        self._allowed_addresses = NetworkSet(settings.allowed_addresses, setting="ALLOWED_IPS")
        self._blocked_agents = AgentList(settings.blocked_agents, setting="BLOCKED_USER_AGENTS")
        self._allowed_agents = AgentList(settings.allowed_agents, setting="ALLOWED_USER_AGENTS")
        self._trusted_proxies = NetworkSet(settings.trusted_proxies, setting="TRUSTED_PROXIES")
        self._loopback = NetworkSet(_LOOPBACK)
        self._all_are_allowed = not len(self._allowed_addresses)
        self._rules = rules if rules is not None else RulesInForce()
        self._clock = clock or SystemClock()

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address over the trusted proxies; see the function of that name."""
        return client_address(peer, forwarded_for, self._trusted_proxies)

    def is_proxy(self, peer: str) -> bool:
        """Whether the socket's address `peer` is that of a trusted proxy; "", a unix socket's, always is."""
        if not peer:
            return True
        address = parse_address(peer)
        return address is not None and self._trusted_proxies.find(address) is not None

    def admit(self, address: str, user_agent: str) -> Verdict:
        """Whether `address` (as `client_address` gave it) may ask with `user_agent` ("" when absent).

        `rule` is the origin's name of the list and the entry, `blocked_ips:10.0.0.0/8`, or the rule of the database,
        `address_rule:adr_…:10.0.0.0/8` or `temporary_block:adr_…`; of a list of the allowed, in which nothing matched, the
        name alone.
        """
        return self._admit_address(address) or self._admit_agent(user_agent) or ALLOWED

    def is_exempt(self, address: str) -> bool:
        """Whether `address` is never blocked for its violations: loopback, a trusted proxy, an address that a rule in the
        list `allowed` names, or no client's address at all.
        """
        parsed = parse_address(address)
        return parsed is None or parsed.number == 0 or self._is_exempt(parsed)

    def _admit_address(self, address: str) -> Verdict | None:
        parsed = parse_address(address)
        if parsed is None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule="client_address:unreadable")
        entry = self._blocked_addresses.find(parsed)
        if entry is not None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule=f"blocked_ips:{entry}")
        rules = self._rules
        if rules.blocked is not None and (rule := rules.blocked.find(parsed, self._clock)) is not None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule=rule.name)
        if (
            rules.temporary is not None
            and (rule := rules.temporary.find(parsed, self._clock)) is not None
            and not self._is_exempt(parsed)
        ):
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule=rule.name)
        if self._all_are_allowed and rules.allowed is None:
            return None
        if self._allowed_addresses.find(parsed) is not None or self._has_allowing_rule(parsed):
            return None
        return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule="allowed_ips")

    def _is_exempt(self, address: Address) -> bool:
        return (
            self._loopback.find(address) is not None
            or self._trusted_proxies.find(address) is not None
            or self._has_allowing_rule(address)
        )

    def _has_allowing_rule(self, address: Address) -> bool:
        allowed = self._rules.allowed
        return allowed is not None and allowed.find(address, self._clock) is not None

    def _admit_agent(self, user_agent: str) -> Verdict | None:
        try:
            entry = self._blocked_agents.match(user_agent)
            if entry is not None:
                return Verdict(allowed=False, code=ErrorCode.AGENT_BLOCKED, rule=f"blocked_user_agents:{entry}")
            if len(self._allowed_agents) and self._allowed_agents.match(user_agent) is None:
                return Verdict(allowed=False, code=ErrorCode.AGENT_BLOCKED, rule="allowed_user_agents")
        except AgentTooLong:
            return Verdict(
                allowed=False, code=ErrorCode.AGENT_BLOCKED, rule=f"user_agent:over_{AGENT_CHARACTERS_MAX}_characters"
            )
        return None
