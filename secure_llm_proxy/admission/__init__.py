"""May this address and this agent knock?

For: the gateway's second step, and whoever must know the client's address.
Takes: the peer's address, X-Forwarded-For and User-Agent as they came; the lists of `AdmissionSettings`.
Gives: the client's address (`Admission.client_address`) and a `Verdict` whose `rule` names the setting and the entry.
When it fails: closed. An entry that can't be read stops the start (`OperatorError`); an address that can't be read, or
an agent header too long to be searched while a list of agents is set, is refused. It depends on nothing outside.
Source: DESIGN §7; SECURITY A01, A02, D9; RFC 9110 §10.1.5 (User-Agent), RFC 4291 §2.5.5.2 (mapped addresses).
"""

from secure_llm_proxy.admission.addresses import UNKNOWN_ADDRESS, Address, parse_address
from secure_llm_proxy.admission.agents import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.client_address import HOPS_MAX, client_address
from secure_llm_proxy.admission.gate import Admission
from secure_llm_proxy.admission.networks import NetworkSet

__all__ = [
    "AGENT_CHARACTERS_MAX",
    "HOPS_MAX",
    "UNKNOWN_ADDRESS",
    "Address",
    "Admission",
    "AgentList",
    "AgentTooLong",
    "NetworkSet",
    "client_address",
    "parse_address",
]
