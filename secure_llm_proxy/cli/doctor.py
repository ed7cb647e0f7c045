"""`manage.py doctor`: every dependency, setting and file permission, each with the fix."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import redis

from secure_llm_proxy.audit import GenesisBroken, read_genesis
from secure_llm_proxy.audit.segments import host_directory
from secure_llm_proxy.audit.standing import NOT_ANCHORED, standing_of
from secure_llm_proxy.audit.state import OLD_S, WriterState, read_state
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.host.check import Check, Level, as_table
from secure_llm_proxy.cli.host.places import places_of
from secure_llm_proxy.cli.output import json_option, show_json
from secure_llm_proxy.cli.serve import address_of
from secure_llm_proxy.cli.status import fetch_health
from secure_llm_proxy.cli.usable_settings import unusable
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.routing import configured_providers, models_file_of
from secure_llm_proxy.routing.stored_providers import StoredProvider
from secure_llm_proxy.settings import Settings, SettingsError
from secure_llm_proxy.settings.loading import load_audit_writer_settings, relaxed_settings
from secure_llm_proxy.settings.strength import weakness_of
from secure_llm_proxy.upstream import Provider
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds

_PYTHON_MIN = (3, 11)
# So many heartbeats late, a checkpoint is missing and not only awaited.
_CHECKPOINTS_MISSED = 3


@click.command()
@click.option(
    "--production",
    "for_production",
    is_flag=True,
    help="The checklist of a host that serves others, too: files, units, nginx, stores, firewall, backups, people. As root.",
)
@json_option
@pass_context
def doctor(context: CommandContext, *, for_production: bool, as_json: bool) -> None:
    """Look at everything this product stands on, and tell what to do about what is wrong. Exit 1 when something is.

    What this user may not see, or this host has no tool for, is `unknown`, which is not ok.
    """
    checks = list(_examine(context, for_production=for_production))
    if as_json:
        show_json([{"what": c.what, "level": c.level.value, "found": c.found, "fix": c.fix} for c in checks])
    else:
        click.echo(as_table(checks))
    sys.exit(1 if any(check.level is Level.FAILED for check in checks) else 0)


def _examine(context: CommandContext, *, for_production: bool) -> Iterator[Check]:
    yield _python()
    try:
        settings = context.settings
    except SettingsError as error:
        for mistake in error.mistakes:
            yield Check(f"setting {mistake.name}", Level.FAILED, mistake.problem, "see docs/configuration.md")
        return
    yield Check("settings", Level.OK, f"profile {settings.server.profile}")
    for sentence in unusable(settings):
        yield Check("settings", Level.FAILED, sentence, "no server starts like this")
    for name, why in relaxed_settings(settings):
        yield Check(f"setting {name}", Level.WARNING, why, f"remove {name}; production refuses it")
    yield from _secrets(settings)
    yield from _files(settings)
    yield _guarded("database", lambda: _database(context))
    if settings.redis.url is not None:
        yield _guarded("redis", lambda: _redis(settings))
    yield _guarded("audit root of trust", lambda: _genesis(context))
    yield _audit_writer(settings)
    yield _disk(settings)
    yield from _evidence(context)
    stored = _stored_providers(context)
    yield from _providers(settings, also_stored=any(definition is not None for _, definition in stored))
    for shown, definition in stored:
        yield _stored_provider(settings, shown, definition)
    yield _server(settings)
    if for_production:
        from secure_llm_proxy.cli.production.checklist import production_checks  # noqa: PLC0415  asked for by few

        yield from production_checks(context, places_of())


def _guarded(what: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except OperatorError as error:
        return Check(what, Level.FAILED, "not usable", str(error))
    except ProxyError as error:
        return Check(what, Level.FAILED, error.public, error.detail or "see the log")


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON_MIN:
        return Check("python", Level.FAILED, version, "install Python 3.11 or newer")
    return Check("python", Level.OK, version)


def _secrets(settings: Settings) -> Iterator[Check]:
    for name, secret in (
        ("SECRET_KEY", settings.secrets.secret_key),
        ("ENCRYPTION_KEY", settings.secrets.encryption_key),
    ):
        weakness = weakness_of(secret.get_secret_value()) if secret is not None else "is missing"
        if weakness:
            yield Check(
                name, Level.WARNING, weakness, "replace it as docs/operations.md tells, or what was made with it dies"
            )
        else:
            yield Check(name, Level.OK, "strong")
    for name, others in (
        ("SECRET_KEY_PREVIOUS", settings.secrets.secret_keys_previous),
        ("ENCRYPTION_KEY_PREVIOUS", settings.secrets.encryption_keys_previous),
    ):
        if others is not None:
            yield Check(name, Level.WARNING, "is set", "when `manage.py secrets status` says that it can go, remove it")


def _files(settings: Settings) -> Iterator[Check]:
    private = (
        Path(os.environ.get("ENV_FILE", ".env")),
        settings.audit.keys_directory,
        settings.server.instance_directory / "app.db",
    )
    for path in private:
        if not path.exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        folder = path.resolve().parent.stat().st_mode
        # Whom the folder keeps out does not get at the file, whatever its own mode.
        mode &= ~(0 if folder & stat.S_IXOTH else stat.S_IRWXO) & ~(0 if folder & stat.S_IXGRP else stat.S_IRWXG)
        forbidden = 0o077 if path.name != "app.db" else 0o007
        if mode & forbidden:
            yield Check(
                f"file {path.name}", Level.FAILED, f"others may read it (mode {mode:04o})", f"chmod go-rwx {path}"
            )
        else:
            yield Check(f"file {path.name}", Level.OK, f"mode {mode:04o}")
    log = settings.telemetry.log_directory
    if log is not None and log.exists() and not os.access(log, os.W_OK):
        yield Check("log directory", Level.FAILED, "not writable", f"give this user the right to write in {log}")


def _database(context: CommandContext) -> Check:
    database = context.database
    trouble = database.trouble()
    if trouble is not None:
        return Check("database", Level.FAILED, trouble, "start it, or correct DATABASE_URL")
    return Check("database", Level.OK, "SQLite, schema current" if database.is_sqlite else "PostgreSQL, schema current")


def _redis(settings: Settings) -> Check:
    url = settings.redis.connection_url() or ""
    try:
        with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            policy = client.config_get("maxmemory-policy")
            name = policy.get("maxmemory-policy") if isinstance(policy, dict) else None
    except redis.ResponseError:
        return Check("redis", Level.OK, "answers (CONFIG is not allowed, its policy is unknown)")
    except (redis.RedisError, ValueError) as error:  # ValueError: a URL that can't be read
        return Check("redis", Level.FAILED, type(error).__name__, "start it, or correct REDIS_URL and REDIS_PASSWORD")
    if name != "noeviction":
        return Check(
            "redis",
            Level.WARNING,
            f"maxmemory-policy {name}",
            "set maxmemory-policy noeviction: eviction forgets limits",
        )
    return Check("redis", Level.OK, "answers, noeviction")


def _genesis(context: CommandContext) -> Check:
    audit = context.settings.audit
    try:
        genesis = read_genesis(host_directory(audit.directory, audit.host_id))
    except FileNotFoundError:
        return Check("audit root of trust", Level.FAILED, "there is none", "run: manage.py audit init")
    except GenesisBroken as error:
        return Check("audit root of trust", Level.FAILED, str(error), "restore genesis.json from the backup")
    return Check("audit root of trust", Level.OK, f"log {genesis.log}")


def _audit_writer(settings: Settings) -> Check:
    try:
        load_audit_writer_settings()
    except SettingsError as error:
        return Check("audit writer", Level.WARNING, "AUDIT_KEK can't be read here", str(error.mistakes[0]))
    if not settings.audit.socket.exists():
        return Check(
            "audit writer", Level.WARNING, "not running", "start it: manage.py serve, or secure-llm-audit.service"
        )
    return Check("audit writer", Level.OK, "socket is there")


def _disk(settings: Settings) -> Check:
    audit = settings.audit
    place = audit.directory
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    needed = max(audit.free_bytes_min, int(found.f_blocks * found.f_frsize * audit.free_percent_min / 100))
    told = f"{free / (1 << 30):.1f} GiB free for the audit log, new requests need {needed / (1 << 30):.1f}"
    if free < needed:
        return Check(
            "disk",
            Level.FAILED,
            told,
            "free some, move AUDIT_DIR, or retire segments (AUDIT_RETENTION_DAYS): docs/audit.md",
        )
    if free < 2 * needed:
        return Check("disk", Level.WARNING, told, "free some soon: below that no request is served")
    return Check("disk", Level.OK, told)


def _evidence(context: CommandContext) -> Iterator[Check]:
    """What the writer says of itself: its newest checkpoint, anchors and sinks. Nothing while none is running."""
    settings = context.settings
    state = read_state(settings.audit.state_path)
    if state is None:
        return
    if state.age_s > OLD_S:
        fix = "look at its log; restart secure-llm-audit.service"
        yield Check("audit writer's state", Level.FAILED, f"{state.age_s:.0f} s old", fix)
        return
    age_s = state.checkpoint_age_s
    if age_s is None or age_s > _CHECKPOINTS_MISSED * settings.audit.heartbeat_s:
        found = "none since the start" if age_s is None else f"the newest is {age_s:.0f} s old"
        level = Level.WARNING if age_s is not None else Level.OK
        yield Check("audit checkpoints", level, found, "look at the audit writer's log" if age_s is not None else "")
    else:
        yield Check("audit checkpoints", Level.OK, f"the newest covers {state.checkpoint_n} lines, {age_s:.0f} s old")
    for sink in state.sinks:
        level = Level.OK if sink.trouble is None else Level.FAILED if sink.policy == "all" else Level.WARNING
        fix = "" if sink.trouble is None else "bring it back, or correct AUDIT_SINK; it gets what it missed by itself"
        yield Check("audit sink", level, sink.trouble or f"{sink.name}, {sink.behind} lines behind", fix)
    for anchor in state.anchors:
        if anchor.trouble is not None:
            fix = f"bring it back, or correct AUDIT_ANCHOR_{anchor.name.upper()}"
            yield Check(f"audit anchor {anchor.name}", Level.WARNING, anchor.trouble, fix)
        elif anchor.n is not None:
            yield Check(f"audit anchor {anchor.name}", Level.OK, f"a checkpoint over {anchor.n} lines stands there")
    yield _guarded("audit anchors", lambda: _anchored(context, state))


def _anchored(context: CommandContext, state: WriterState) -> Check:
    standing = standing_of(context.settings.audit, context.database, required=context.settings.is_production)
    if standing.is_anchored_off_host(state):
        return Check("audit anchors", Level.OK, "checkpoints leave this host")
    what, _, fix = NOT_ANCHORED.partition(". ")
    return Check("audit anchors", Level.WARNING, what, fix.removesuffix("."))


def _providers(settings: Settings, *, also_stored: bool) -> Iterator[Check]:
    """Those of the environment and the models file; `also_stored`: the database has one that answers, too."""
    try:
        definitions = configured_providers(
            settings.upstream, models_file_of(settings.upstream, production=settings.is_production).providers
        )
    except OperatorError:
        # Told already, as something with which no server starts.
        return
    if not definitions and not also_stored:
        yield Check(
            "provider",
            Level.WARNING,
            "none: no model is on offer" if settings.is_production else "none: the demo model answers",
            "set LLM_API_URL and LLM_API_KEY, or a provider's key: docs/providers.md",
        )
    for definition in definitions:
        yield _guarded(f"provider {definition.name}", lambda definition=definition: _provider(settings, definition))  # type: ignore[misc]  # mypy#12557


def _stored_providers(context: CommandContext) -> list[tuple[StoredProvider, ProviderDefinition | None]]:
    """Those of the database, each with what asks it; without that, its key is missing. Empty when the database has trouble."""
    try:
        usable = {definition.name: definition for definition in context.stored_providers.definitions()}
        shown = context.database.run(context.stored_providers.list_providers)
    except (OperatorError, ProxyError):
        # Told already, as the database's trouble.
        return []
    return [(each, usable.get(each.definition.name)) for each in shown]


def _stored_provider(settings: Settings, shown: StoredProvider, definition: ProviderDefinition | None) -> Check:
    name = shown.definition.name
    if definition is not None:
        return _guarded(f"provider {name}", lambda: _provider(settings, definition))
    return Check(
        f"provider {name}",
        Level.WARNING,
        f"not asked: its key is {shown.key_state}",
        f"give it one: manage.py providers set-key {name}",
    )


def _provider(settings: Settings, definition: ProviderDefinition) -> Check:
    what = f"provider {definition.name}"
    if definition.models:
        return Check(what, Level.OK, f"{len(definition.models)} models named for it, not asked")
    if provider_kinds()[definition.kind].models is None:
        return Check(what, Level.OK, "lists no models, not asked")
    provider = Provider(definition, settings.upstream)
    try:
        models = provider.list_models(Cancellation())
    finally:
        provider.close()
    return Check(what, Level.OK, f"answers, {len(models)} models")


def _server(settings: Settings) -> Check:
    try:
        status, told = fetch_health(settings, "/health/ready")
    except OSError:
        return Check(
            "server",
            Level.WARNING,
            f"nobody answers at {address_of(settings)}",
            "start it: manage.py serve, or secure_llm_proxy.service; elsewhere it is told by HOST, PORT or BIND",
        )
    if status != 200:  # noqa: PLR2004
        return Check(
            "server", Level.FAILED, f"not ready: {told.get('dependencies')}", "see the checks above and the log"
        )
    return Check("server", Level.OK, "ready")
