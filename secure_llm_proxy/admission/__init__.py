"""May this address and this agent knock?

For: the gateway's second step, whoever must know the client's address, and who changes the lists while the product runs.
Takes: the peer's address, X-Forwarded-For and User-Agent as they came; the lists of `AdmissionSettings`; address rules in
the database; the codes with which clients were refused.
Gives: the client's address (`Admission.client_address`) and a `Verdict` whose `rule` names the setting and the entry, or
the rule. Its second face, `admission.rules`, stands apart because it loads SQLAlchemy and redis-py, which `manage.py serve`
does without: address rules as frozen values (`AddressRules`), temporary blocks after too many violations (`Violations`).
When it fails: closed. An entry that can't be read stops the start (`OperatorError`); an address that can't be read, or
an agent header too long to be searched while a list of agents is set, is refused. Database away: the last known rules
stay in force. Redis away: violations are counted by each worker. Audit log away: nobody is blocked for violations until
that can be recorded; the refusals themselves stand.
Source: DESIGN §7; SECURITY A01, A02, D9; RFC 9110 §10.1.5 (User-Agent), RFC 4291 §2.5.5.2 (mapped addresses).
"""

from secure_llm_proxy.admission.addresses import UNKNOWN_ADDRESS, Address, parse_address
from secure_llm_proxy.admission.agents import AGENT_CHARACTERS_MAX, AgentList, AgentTooLong
from secure_llm_proxy.admission.client_address import HOPS_MAX, client_address
from secure_llm_proxy.admission.gate import Admission
from secure_llm_proxy.admission.key_lists import admit_for
from secure_llm_proxy.admission.networks import NetworkSet
from secure_llm_proxy.admission.rules_in_force import HeldRule, RulesInForce, RuleTable

__all__ = [
    "AGENT_CHARACTERS_MAX",
    "HOPS_MAX",
    "UNKNOWN_ADDRESS",
    "Address",
    "Admission",
    "AgentList",
    "AgentTooLong",
    "HeldRule",
    "NetworkSet",
    "RuleTable",
    "RulesInForce",
    "admit_for",
    "client_address",
    "parse_address",
]
