"""`show-status` and `show-events`: what runs here, and what happened lately."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from pathlib import Path

import click

from secure_llm_proxy import __version__
from secure_llm_proxy.audit import Selection, newest_records, segments_of, size_of
from secure_llm_proxy.audit.standing import NOT_ANCHORED, standing_of
from secure_llm_proxy.audit.state import OLD_S, read_state
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import json_option, show_json, show_table
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.cli.serve import address_of
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.settings import Settings
from secure_llm_proxy.settings.loading import relaxed_settings

_PATIENCE_S = 5.0


@click.command(name="show-status")
@json_option
@pass_context
def show_status(context: CommandContext, *, as_json: bool) -> None:
    """Tell whether the server answers, what it stands on, and which settings are relaxed."""
    settings = context.settings
    told: dict[str, object] = {
        "version": __version__,
        "profile": settings.server.profile,
        "server": _server_state(settings),
        "database": _database_state(context),
        "redis": "configured" if settings.redis.url is not None else "not used (one worker)",
        "audit_log": _audit_state(settings),
        "audit_evidence": _audit_evidence(context),
        "provider": _provider_state(context),
        "relaxed_settings": [f"{name} {why}" for name, why in relaxed_settings(settings)],
    }
    if as_json:
        show_json(told)
    else:
        show_table(("part", "state"), list(told.items()), empty="")


@click.command(name="show-events")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many, the newest.")
@click.option("--event", "wanted", help="Only this event, e.g. AUTHENTICATION_FAILED.")
@json_option
@pass_context
def show_events(context: CommandContext, limit: int, wanted: str | None, *, as_json: bool) -> None:
    """Print the newest events of the audit log; contents stay sealed."""
    segments = segments_of(context.settings.audit)
    with Progress("looking for events", size_of(segments)) as progress:
        found = newest_records(segments, Selection(event=wanted, named=True), limit, watch=progress.over)
    if as_json:
        show_json(
            [
                {
                    "time": record.t,
                    "event": record.event,
                    "type": record.type,
                    "id": record.id,
                    "exchange": record.exchange_id,
                    **record.clear,
                }
                for record in found
            ]
        )
        return
    rows = [
        (
            record.t,
            record.event,
            record.clear.get("code") or record.clear.get("act") or record.clear.get("dec"),
            record.clear.get("rt") or record.clear.get("subject") or record.clear.get("target"),
            record.clear.get("ak") or record.clear.get("by"),
            record.id,
        )
        for record in found
    ]
    show_table(("time", "event", "what", "where", "who", "record"), rows, empty="No event is recorded.")


def fetch_health(settings: Settings, path: str = "/health") -> tuple[int, dict[str, object]]:
    """Ask the running server. Raises `OSError` when nobody answers."""
    connection: http.client.HTTPConnection
    if settings.server.bind is not None:
        connection = _UnixConnection(Path(settings.server.bind.removeprefix("unix:")))
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)  # noqa: S104
        connection = http.client.HTTPConnection(host, settings.server.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path, headers=_host_of(settings))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(type(error).__name__) from error
    finally:
        connection.close()


def _host_of(settings: Settings) -> dict[str, str]:
    """A name that the server answers to: any other is refused, and recorded as an attack."""
    names = settings.limits.server_names
    return {"Host": names[0].replace("*", "localhost", 1)} if names else {}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PATIENCE_S)
        self.sock.connect(str(self._path))


def _provider_state(context: CommandContext) -> str:
    if context.settings.upstream.names_a_provider:
        return "configured"
    with suppress(OperatorError, ProxyError):  # the database's trouble, told there
        if context.stored_providers.definitions():
            return "stored in the database"
    return "none, the demo model answers"


def _server_state(settings: Settings) -> str:
    try:
        _status, health = fetch_health(settings)
    except OSError:
        return f"nobody answers at {address_of(settings)}"
    return f"{health.get('status')}, version {health.get('version')}"


def _database_state(context: CommandContext) -> str:
    try:
        users, keys = context.database.run(
            lambda session: (context.accounts.list_users(session), context.keys.list_api_keys(session))
        )
    except ProxyError as error:
        return f"unavailable ({error.detail})"
    except OperatorError as error:
        return str(error)
    now = context.clock.now()
    active = sum(key.status(now) == "active" for key in keys)
    return f"{len(users)} users, {active} active API keys"


def _audit_state(settings: Settings) -> str:
    try:
        segments = segments_of(settings.audit)
    except OperatorError:
        segments = []
    if not segments:
        return "empty"
    sealed = "sealed" if settings.audit.encryption_enabled else "READABLE"
    return f"{len(segments)} segments, {size_of(segments) / 1024:.0f} KiB, {sealed}"


def _audit_evidence(context: CommandContext) -> str:
    """What the audit writer tells of its disk, sinks and anchors."""
    audit = context.settings.audit
    state = read_state(audit.state_path)
    if state is None or state.age_s > OLD_S:
        return "no audit writer tells of it"
    standing = standing_of(audit, context.database, required=context.settings.is_production)
    told = list(state.troubles)
    try:
        if not standing.is_anchored_off_host(state):
            told.append(NOT_ANCHORED.partition(". ")[0] + ".")
    except OperatorError as error:
        told.append(str(error))
    checkpoint = f"{state.n} lines" + (
        f", {state.checkpoint_n} of them under a checkpoint" if state.checkpoint_n else ""
    )
    return " ".join([f"{checkpoint}.", *told])
