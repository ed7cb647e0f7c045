"""The lists that a single API key is bound to, passed as values: who holds them is no business of this room."""

from __future__ import annotations

from functools import lru_cache

from secure_llm_proxy.admission.agents import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.networks import NetworkSet
from secure_llm_proxy.foundation.errors import ErrorCode, OperatorError
from secure_llm_proxy.vocabulary.decisions import ALLOWED, Verdict

_ADDRESSES = "api_key_addresses"
_AGENTS = "api_key_agents"
# Keys in use that are bound so; a list that isn't remembered is read again, some 10 µs an entry.
_LISTS_REMEMBERED = 1024


def admit_for(
    networks: tuple[str, ...] | None, agents: tuple[str, ...] | None, address: str, user_agent: str
) -> Verdict:
    """Whether a key that is bound to `networks` and `agents` (None: not bound) may be used from there with that.

    An empty list allows nobody, and neither does one that can't be read.
    """
    if networks is not None:
        allowed = _networks(networks)
        if allowed is None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_NOT_ALLOWED, rule=f"{_ADDRESSES}:unreadable")
        if allowed.match(address) is None:
            return Verdict(allowed=False, code=ErrorCode.ADDRESS_NOT_ALLOWED, rule=_ADDRESSES)
    if agents is not None:
        rule = _agents_rule(agents, user_agent)
        if rule is not None:
            return Verdict(allowed=False, code=ErrorCode.AGENT_NOT_ALLOWED, rule=rule)
    return ALLOWED


def _agents_rule(agents: tuple[str, ...], user_agent: str) -> str | None:
    """What refuses the agent; None when it is allowed."""
    globs = _globs(agents)
    if globs is None:
        return f"{_AGENTS}:unreadable"
    try:
        return _AGENTS if globs.match(user_agent) is None else None
    except AgentTooLong:
        return f"{_AGENTS}:over_{AGENT_CHARACTERS_MAX}_characters"


@lru_cache(maxsize=_LISTS_REMEMBERED)
def _networks(entries: tuple[str, ...]) -> NetworkSet | None:
    try:
        return NetworkSet(entries)
    except OperatorError:
        return None


@lru_cache(maxsize=_LISTS_REMEMBERED)
def _globs(entries: tuple[str, ...]) -> AgentList | None:
    try:
        return AgentList(entries)
    except OperatorError:
        return None
