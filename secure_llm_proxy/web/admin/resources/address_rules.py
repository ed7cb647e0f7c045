"""The lists of addresses that are in force beside BLOCKED_IPS and ALLOWED_IPS. They are the whole deployment's."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import Annotated

from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.admission.rules import (
    NOTE_CHARACTERS_MAX,
    AddressRule,
    RuleList,
    RuleSource,
    new_address_rule_id,
)
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import Conflict, OperatorError, client_error_of
from secure_llm_proxy.web.admin.frame import Body, Call, Endpoint, Moment, Nothing, Told, endpoint, foreign
from secure_llm_proxy.web.admin.paging import PageQuery, page_of

_HOURS_MAX = 24 * 365 * 10


class AddressRuleTold(Told):
    id: str
    list: RuleList
    network: str
    note: str
    source: RuleSource
    created_by: str
    created_at: Moment
    expires_at: Moment | None
    version: int


class AddressRuleQuery(PageQuery):
    list: RuleList | None = None


class AddressRulePage(Told):
    items: list[AddressRuleTold]
    next_cursor: str | None


class NewAddressRule(Body):
    list: RuleList
    network: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    note: Annotated[str, StringConstraints(max_length=NOTE_CHARACTERS_MAX)] = ""
    expires_hours: Annotated[float, Field(gt=0, le=_HOURS_MAX)] | None = None
    force: bool = Field(
        default=False, description="Even when it shuts out everybody, everybody else, or whoever asks for it."
    )


def list_address_rules(call: Call, asked: AddressRuleQuery) -> AddressRulePage:
    found = call.read(
        lambda session: call.house.address_rules.list_rules(
            session, asked.list, after=asked.after() or "", limit=asked.limit + 1
        )
    )
    items, cursor = page_of(found, asked.limit)
    return AddressRulePage(items=[AddressRuleTold.model_validate(rule) for rule in items], next_cursor=cursor)


def read_address_rule(call: Call, _asked: Nothing) -> AddressRuleTold:
    return AddressRuleTold.model_validate(call.read(lambda session: _found(call, session)))


def add_address_rule(call: Call, asked: NewAddressRule) -> AddressRuleTold:
    rules = call.house.address_rules
    hours = asked.expires_hours
    expires_at = None if hours is None else call.house.clock.now() + timedelta(hours=hours)
    try:
        network = rules.require_addable(asked.list, asked.network, expires_at=expires_at, force=asked.force)
    except OperatorError as error:
        raise client_error_of(error) from error
    if not asked.force:
        _require_harmless(call, asked.list, network)
    rule_id = new_address_rule_id()
    made = call.change(
        "address_rule.add",
        rule_id,
        lambda session: rules.add(
            session,
            asked.list,
            network,
            note=asked.note,
            created_by=call.actor.name_in_log,
            expires_at=expires_at,
            force=asked.force,
            rule_id=rule_id,
        ),
        clear={"list": asked.list, "until": None if expires_at is None else rfc3339(expires_at)},
        body={"network": network, "note": asked.note},
    )
    call.house.refresh_address_rules()
    return AddressRuleTold.model_validate(made)


def remove_address_rule(call: Call, _asked: Nothing) -> AddressRuleTold:
    found = call.read(lambda session: _found(call, session))
    call.require_version(None, found.version)
    removed = call.change(
        "address_rule.remove",
        found.id,
        lambda session: call.house.address_rules.remove(session, found.id, version=found.version),
        clear={"list": found.list, "source": found.source},
        body={"network": found.network, "note": found.note},
    )
    call.house.refresh_address_rules()
    return AddressRuleTold.model_validate(removed)


def _found(call: Call, session: Session) -> AddressRule:
    rule_id = call.path["rule_id"]
    try:
        found = call.house.address_rules.find(session, rule_id)
    except OperatorError:
        raise foreign() from None
    if found.id != rule_id:
        raise foreign()
    return found


def _require_harmless(call: Call, which: RuleList, network: str) -> None:
    """Raises `Conflict` for a rule that shuts out whoever asks for it, or everybody that it does not name."""
    own = ipaddress.ip_address(call.arrival.address)
    if which is RuleList.BLOCKED and own in ipaddress.ip_network(network):
        raise Conflict("That would shut yourself out; `force` it if that is meant.")
    if which is RuleList.ALLOWED and call.read(call.house.address_rules.is_first_allowed):
        raise Conflict("ALLOWED_IPS is empty: from now on only that network might ask; `force` it if that is meant.")


ENDPOINTS: dict[str, Endpoint] = {
    "list_address_rules": endpoint(list_address_rules, AddressRuleQuery, AddressRulePage),
    "read_address_rule": endpoint(read_address_rule, Nothing, AddressRuleTold),
    "add_address_rule": endpoint(add_address_rule, NewAddressRule, AddressRuleTold, status=201, conflicts=True),
    "remove_address_rule": endpoint(remove_address_rule, Nothing, AddressRuleTold, conflicts=True, versioned=True),
}
