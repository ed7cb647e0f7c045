"""`manage.py serve`, and how a server is started after its checks.

What only other commands need is not imported: from here to the first answer everything is waited for.
"""

from __future__ import annotations

import os
from typing import NoReturn

import click

from secure_llm_proxy.cli.schema_glance import is_surely_current
from secure_llm_proxy.cli.usable_settings import require_usable
from secure_llm_proxy.server.start import become_supervisor, require_free_address
from secure_llm_proxy.settings import Settings, load_settings

host_option = click.option("--host", help="Address to listen on; overrides HOST.")
port_option = click.option("--port", type=click.IntRange(1, 65535), help="TCP port; overrides PORT.")


@click.command()
@host_option
@port_option
def serve(host: str | None, port: int | None) -> None:
    """Start the audit writer and the server, keep them alive, stop them on Ctrl-C or SIGTERM."""
    override_address(host, port)
    settings = load_settings()
    check_and_serve(settings, f"Ready at {address_of(settings)}.")


@click.command(name="check-settings", hidden=True)
def check_settings() -> None:
    """Fail when no server could run with the settings of now. Asked by the supervisor before it reloads."""
    require_usable(load_settings())


def check_and_serve(settings: Settings, ready: str) -> NoReturn:
    """Supervise the server until it is stopped; `ready` is said when it answers.

    Raises `OperatorError` before anything is started when the address is taken, the settings can't be used, the schema is
    not this release's, or another server works on the same data.
    """
    require_free_address(settings)
    require_usable(settings)
    if not is_surely_current(settings.database):
        _require_current_schema(settings)
    become_supervisor(settings, ready)


def address_of(settings: Settings) -> str:
    """Where the server listens, as a URL or a socket's path."""
    if settings.server.bind is not None:
        return settings.server.bind
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def override_address(host: str | None, port: int | None) -> None:
    """Options become environment, so that every child sees them."""
    if host is not None:
        os.environ["HOST"] = host
    if port is not None:
        os.environ["PORT"] = str(port)


def _require_current_schema(settings: Settings) -> None:
    # SQLAlchemy and Alembic take 0.3 s to import; only a schema that is not plainly right is worth it.
    from secure_llm_proxy.cli.database_schema import require_current_schema  # noqa: PLC0415
    from secure_llm_proxy.foundation.database import Database  # noqa: PLC0415

    require_current_schema(Database(settings.database))
