"""Points in time as operators type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from secure_llm_proxy.foundation.clock import rfc3339

_AGO = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WRITTEN = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_EXAMPLES = "2026-11-21, 2026-11-21T14:05, 2026-11-21T14:05:00+01:00 or 24h (ago; s, m, h, d, w)"


class Moment(click.ParamType[str]):
    """A time of the log (RFC 3339, UTC, microseconds). Without a zone it is UTC; a day is its first moment."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return rfc3339(_read(value.strip()))
        except (ValueError, OverflowError):
            self.fail(f"{value[:64]!r} is no time; write {_EXAMPLES}.", param, ctx)


def _read(text: str) -> datetime:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    if not _WRITTEN.fullmatch(text):
        raise ValueError
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


MOMENT = Moment()


def check_order(since: str | None, until: str | None) -> None:
    """Raise click's usage error when nothing can lie between them."""
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since must be before --until.")
