"""Sentry, only with a DSN, and stripped to the class of an error and the places in our code (STACK: it would otherwise
take local variables, request bodies, breadcrumbs of every library: prompts and keys).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from secure_llm_proxy import __version__
from secure_llm_proxy.settings import TelemetrySettings

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

_KEPT = ("event_id", "timestamp", "platform", "level", "logger", "release", "environment", "exception")
_OF_FRAME = ("filename", "module", "function", "lineno", "in_app")


def start_error_reports(settings: TelemetrySettings, *, environment: str) -> bool:
    """Start sending; False, and nothing is even imported, without a DSN."""
    if settings.sentry_dsn is None:
        return False
    import sentry_sdk  # noqa: PLC0415  not imported at all where it is not wanted
    from sentry_sdk.integrations.logging import LoggingIntegration  # noqa: PLC0415

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        release=__version__,
        environment=environment,
        default_integrations=False,
        auto_enabling_integrations=False,
        # What we log at ERROR becomes an event; nothing else of any library does.
        integrations=[LoggingIntegration(level=None, event_level=logging.ERROR)],
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        send_default_pii=False,
        max_breadcrumbs=0,
        traces_sample_rate=0.0,
        send_client_reports=False,
        auto_session_tracking=False,
        server_name="",
        before_send=strip_event,
    )
    return True


def strip_event(event: Event, _hint: Hint) -> Event | None:
    """Keep an allow-list of an event; of its exceptions the class and where, not the message.

    A log line's sentence is kept where it is ours, since ours are constant. A line of somebody else without an
    exception tells nothing after that and is dropped.
    """
    kept = cast("Event", {name: value for name, value in event.items() if name in _KEPT})
    sentence = (event.get("logentry") or {}).get("message")
    if str(event.get("logger", "")).partition(".")[0] == "secure_llm_proxy" and isinstance(sentence, str):
        kept["logentry"] = {"message": sentence}
    elif "exception" not in kept:
        return None
    if "exception" in kept:
        kept["exception"] = {"values": [_stripped(exception) for exception in kept["exception"].get("values", [])]}
    return kept


def _stripped(exception: dict[str, Any]) -> dict[str, Any]:
    frames = (exception.get("stacktrace") or {}).get("frames", [])
    places = [{name: frame[name] for name in _OF_FRAME if name in frame} for frame in frames]
    named: dict[str, Any] = {name: exception[name] for name in ("type", "module") if name in exception}
    return {**named, "value": "", "stacktrace": {"frames": places}}
