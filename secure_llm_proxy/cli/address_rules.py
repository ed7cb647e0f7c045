"""Commands about address rules: networks blocked or allowed while the product runs."""

from __future__ import annotations

import getpass
import math
from dataclasses import asdict
from datetime import timedelta

import click

from secure_llm_proxy.admission.rules import AddressRule, AddressRules, RuleList, new_address_rule_id
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.vocabulary.audit import ClearValue

_HOURS_MAX = 10 * 366 * 24
_LISTS = click.Choice([each.value for each in RuleList])


def _a_number(_context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # which no range keeps out
        raise click.BadParameter("not a number.", param=option)
    return value


@click.group(name="address-rules")
def address_rules() -> None:
    """Networks that are blocked or allowed beside BLOCKED_IPS and ALLOWED_IPS, without a restart."""


@address_rules.command("list")
@click.option("--list", "which", type=_LISTS, help="Only this list.")
@json_option
@pass_context
def list_rules(context: CommandContext, which: str | None, *, as_json: bool) -> None:
    """List the rules in force, temporary blocks after violations among them."""
    rules = context.database.run(lambda session: _rules(context).list_rules(session, _list_named(which)))
    if as_json:
        show_json([asdict(rule) for rule in rules])
        return
    show_table(
        ("list", "network", "source", "note", "by", "made", "expires", "id"),
        [
            (
                rule.list,
                rule.network,
                rule.source,
                rule.note or None,
                rule.created_by,
                rule.created_at,
                "never" if rule.expires_at is None else rule.expires_at,
                rule.id,
            )
            for rule in rules
        ],
        empty="There are no address rules; the lists of the settings are in force.",
    )


@address_rules.command("add")
@click.option("--list", "which", type=_LISTS, required=True, help="The list that it joins.")
@click.argument("network")
@click.option("--note", default="", help="Why, for whoever looks at it later.")
@click.option(
    "--expires",
    "hours",
    type=click.FloatRange(0, _HOURS_MAX, min_open=True),
    callback=_a_number,
    help="Hours after which it ends by itself. Default: never.",
)
@click.option("--force", is_flag=True, help="Block even 0.0.0.0/0 or ::/0, which is everybody.")
@yes_option
@json_option
@pass_context
def add_rule(
    context: CommandContext,
    which: str,
    network: str,
    note: str,
    hours: float | None,
    *,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Block or allow NETWORK, an address or CIDR, v4 or v6. In force everywhere within 5 s."""
    rules, chosen = _rules(context), RuleList(which)
    expires_at = None if hours is None else context.clock.now() + timedelta(hours=hours)
    canonical = rules.require_addable(chosen, network, expires_at=expires_at, force=force)
    if chosen is RuleList.ALLOWED and context.database.run(rules.is_first_allowed):
        confirm(f"ALLOWED_IPS is empty, so everybody may ask; from now on only {canonical} may. Go on?", yes=yes)
    rule_id = new_address_rule_id()
    by = f"host:{getpass.getuser()}"
    clear: dict[str, ClearValue] = {"list": chosen, "until": None if expires_at is None else rfc3339(expires_at)}
    rule = context.change(
        "address_rule.add",
        rule_id,
        clear,
        {"network": canonical, "note": note},
        lambda session: rules.add(
            session,
            chosen,
            canonical,
            note=note,
            created_by=by,
            expires_at=expires_at,
            force=force,
            rule_id=rule_id,
        ),
    )
    if as_json:
        show_json(asdict(rule))
        return
    end = "" if rule.expires_at is None else f" until {as_cell(rule.expires_at)}"
    click.echo(f"{rule.network} is {rule.list}{end} ({rule.id}), everywhere within 5 s.")


@address_rules.command("remove")
@click.argument("rule")
@click.option("--list", "which", type=_LISTS, help="The list that is meant, where a network stands in both.")
@yes_option
@pass_context
def remove_rule(context: CommandContext, rule: str, which: str | None, *, yes: bool) -> None:
    """Remove RULE, an adr_… id or the network it is for. Its end is in force everywhere within 5 s."""
    rules = _rules(context)
    found = context.database.run(lambda session: rules.find(session, rule, _list_named(which)))
    confirm(f"Remove {found.network} from the list {found.list}{_consequence(context, rules, found)}?", yes=yes)
    context.change(
        "address_rule.remove",
        found.id,
        {"list": found.list, "source": found.source},
        {"network": found.network, "note": found.note},
        lambda session: rules.remove(session, found.id, version=found.version),
    )
    click.echo(f"{found.network} is no longer {found.list} by a rule, everywhere within 5 s.")


def _list_named(name: str | None) -> RuleList | None:
    return None if name is None else RuleList(name)


def _consequence(context: CommandContext, rules: AddressRules, found: AddressRule) -> str:
    if found.list is not RuleList.ALLOWED or context.settings.admission.allowed_addresses:
        return ""
    left = context.database.run(lambda session: rules.list_rules(session, RuleList.ALLOWED, limit=2))
    return "" if len(left) > 1 else ", the last one, after which everybody may ask"


def _rules(context: CommandContext) -> AddressRules:
    return AddressRules(context.settings.admission, context.clock)
