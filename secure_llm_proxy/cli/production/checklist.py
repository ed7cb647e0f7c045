"""The whole checklist, in the order in which one would set a host up."""

from __future__ import annotations

from collections.abc import Iterator

from secure_llm_proxy.cli.context import CommandContext
from secure_llm_proxy.cli.host.check import Check
from secure_llm_proxy.cli.host.places import Places
from secure_llm_proxy.cli.production.attempts import guarded
from secure_llm_proxy.cli.production.edge import edge_checks
from secure_llm_proxy.cli.production.file_rights import audit_file_checks, code_checks, settings_file_checks
from secure_llm_proxy.cli.production.keeping import anchor_checks, backup_checks, clock_checks, rotation_checks
from secure_llm_proxy.cli.production.network import firewall_checks, port_checks
from secure_llm_proxy.cli.production.people import people_checks
from secure_llm_proxy.cli.production.service_units import unit_checks
from secure_llm_proxy.cli.production.settings_in_force import credential_checks, settings_checks
from secure_llm_proxy.cli.production.stores import postgresql_checks, redis_checks


def production_checks(context: CommandContext, places: Places) -> Iterator[Check]:
    """What doctor tells of every host (secrets, database, audit writer, anchors off the host …) is not told again. Needs settings
    that can be loaded.
    """
    settings = context.settings
    yield from settings_checks(settings)
    yield from guarded("credentials", lambda: credential_checks(places))
    yield from guarded(f"files in {places.settings}", lambda: settings_file_checks(places))
    yield from guarded(f"code in {places.code}", lambda: code_checks(places))
    yield from guarded("audit log and keys, for the web user", lambda: audit_file_checks(places))
    yield from unit_checks()
    yield from guarded("nginx's site", lambda: edge_checks(settings, places))
    yield from guarded("PostgreSQL", lambda: postgresql_checks(settings, places))
    yield from guarded("Redis", lambda: redis_checks(settings))
    yield from guarded("open ports", lambda: port_checks(places))
    yield from firewall_checks()
    yield from guarded("backup", lambda: backup_checks(places))
    yield from guarded("kept anchors", lambda: anchor_checks(places))
    yield from guarded("log rotation", lambda: rotation_checks(places))
    yield from clock_checks()
    yield from people_checks(context)
