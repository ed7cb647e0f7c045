"""The room's second face: address rules in the database, and blocks after violations. See the package."""

from secure_llm_proxy.admission.address_rules import (
    NOTE_CHARACTERS_MAX,
    AddressRule,
    AddressRuleChanged,
    AddressRuleExists,
    AddressRules,
    NoSuchAddressRule,
    RuleList,
    RuleSource,
    canonical_network,
    new_address_rule_id,
)
from secure_llm_proxy.admission.rule_reading import REFRESH_S, RuleReader
from secure_llm_proxy.admission.violation_tallies import ProcessTally, RedisTally, Tally
from secure_llm_proxy.admission.violations import (
    COUNT_S,
    VIOLATIONS,
    CountedViolations,
    NoViolations,
    TemporaryBlocks,
    Violations,
    network_of,
    open_violations,
)

__all__ = [
    "COUNT_S",
    "NOTE_CHARACTERS_MAX",
    "REFRESH_S",
    "VIOLATIONS",
    "AddressRule",
    "AddressRuleChanged",
    "AddressRuleExists",
    "AddressRules",
    "CountedViolations",
    "NoSuchAddressRule",
    "NoViolations",
    "ProcessTally",
    "RedisTally",
    "RuleList",
    "RuleReader",
    "RuleSource",
    "Tally",
    "TemporaryBlocks",
    "Violations",
    "canonical_network",
    "network_of",
    "new_address_rule_id",
    "open_violations",
]
