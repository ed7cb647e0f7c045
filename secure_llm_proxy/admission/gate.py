"""The gate: four lists in a fixed order."""

from __future__ import annotations

from secure_llm_proxy.admission.addresses import parse_address
from secure_llm_proxy.admission.agents import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.client_address import client_address
from secure_llm_proxy.admission.networks import NetworkSet
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import AdmissionSettings
from secure_llm_proxy.vocabulary.decisions import ALLOWED, Verdict


class Admission:
    """Blocked addresses, allowed addresses, blocked agents, allowed agents: the first that objects answers.

    An empty list of the allowed allows all. Raises `OperatorError` naming an entry that can't be read.
    """

    __slots__ = ("_allowed_addresses", "_allowed_agents", "_blocked_addresses", "_blocked_agents", "_trusted_proxies")

    def __init__(self, settings: AdmissionSettings) -> None:
        self._blocked_addresses = NetworkSet(settings.blocked_addresses, setting="BLOCKED_IPS")
        self._allowed_addresses = NetworkSet(settings.allowed_addresses, setting="ALLOWED_IPS")
        self._blocked_agents = AgentList(settings.blocked_agents, setting="BLOCKED_USER_AGENTS")
        self._allowed_agents = AgentList(settings.allowed_agents, setting="ALLOWED_USER_AGENTS")
        self._trusted_proxies = NetworkSet(settings.trusted_proxies, setting="TRUSTED_PROXIES")

    def client_address(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address over the trusted proxies; see the function of that name."""
        return client_address(peer, forwarded_for, self._trusted_proxies)

    def admit(self, address: str, user_agent: str) -> Verdict:
        """Whether `address` (as `client_address` gave it) may ask with `user_agent` ("" when absent).

        `rule` is the origin's name of the list and the entry, `blocked_ips:10.0.0.0/8`; of a list of the allowed, in
        which nothing matched, the name alone.
        """
        return self._admit_address(address) or self._admit_agent(user_agent) or ALLOWED

    def _admit_address(self, address: str) -> Verdict | None:
        parsed = parse_address(address)
        if parsed is None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule="client_address:unreadable")
        entry = self._blocked_addresses.find(parsed)
        if entry is not None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule=f"blocked_ips:{entry}")
        if len(self._allowed_addresses) and self._allowed_addresses.find(parsed) is None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_BLOCKED, rule="allowed_ips")
        return None

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
