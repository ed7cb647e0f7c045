"""What the last day's logs say: how many requests failed (nginx's JSON access log) and who could not sign in (app.jsonl)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, Level, judged, ok, unknown
from secure_llm_proxy.cli.host.log_lines import recent

# A share of fewer requests says nothing.
_REQUESTS_LEAST = 50
_SERVER_ERROR, _CLIENT_ERROR = 500, 400
_LOGIN_REFUSED = "login_failed"
_PLACES_SHOWN = 3


@dataclass(slots=True)
class Traffic:
    """Requests of the access log, by their status."""

    total: int = 0
    client_errors: int = 0
    server_errors: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


def traffic_in(access_log: Path, since: datetime) -> Traffic:
    """Raises `OSError`."""
    found = Traffic()
    for line in recent(access_log, since, time_member="time"):
        status = line.get("status")
        if not isinstance(status, int):
            continue
        found.total += 1
        if status >= _CLIENT_ERROR:
            found.statuses[status] += 1
        if status >= _SERVER_ERROR:
            found.server_errors += 1
        elif status >= _CLIENT_ERROR:
            found.client_errors += 1
    return found


def traffic_checks(
    access_log: Path, since: datetime, *, client_warning: float, server_warning: float, server_failed: float
) -> list[Check]:
    try:
        found = traffic_in(access_log, since)
    except OSError as error:
        fix = "run this as root or a member of adm; the path stands in nginx's site"
        return [unknown("requests", f"{error.filename or access_log}: {error.strerror}", fix)]
    if not found.total:
        return [ok("requests", "none in the last 24 h")]
    if found.total < _REQUESTS_LEAST:
        told = f"{found.total} in the last 24 h: {found.client_errors} of 4xx, {found.server_errors} of 5xx; too few for shares"
        return [ok("requests", told)]
    of_client, of_server = 100 * found.client_errors / found.total, 100 * found.server_errors / found.total
    shown = f"{{:.2f}} % of {found.total} requests ({{}})"
    return [
        judged(
            "answers 4xx",
            of_client,
            shown.format(of_client, _most(found, _CLIENT_ERROR, _SERVER_ERROR)),
            "see who and what: the access log has `status`, `path` and `client`; 429 are limits, 401 are keys",
            warning_from=client_warning,
            failed_from=101,
        ),
        judged(
            "answers 5xx",
            of_server,
            shown.format(of_server, _most(found, _SERVER_ERROR, 1000)),
            "journalctl -u secure_llm_proxy -u secure-llm-audit -u nginx --since -24h; secure-llm-health-check",
            warning_from=server_warning,
            failed_from=server_failed,
        ),
    ]


def _most(found: Traffic, lowest: int, below: int) -> str:
    common = [(status, count) for status, count in found.statuses.most_common() if lowest <= status < below]
    return ", ".join(f"{count} of {status}" for status, count in common[:_PLACES_SHOWN]) or "none"


def login_check(app_log: Path, since: datetime, *, warning_from: float, failed_from: float) -> Check:
    """`app_log` is app.jsonl, whose refusals name a code and the address."""
    addresses: Counter[str] = Counter()
    try:
        for line in recent(app_log, since, time_member="timestamp"):
            if line.get("code") == _LOGIN_REFUSED:
                addresses[str(line.get("address", "?"))] += 1
    except FileNotFoundError:
        return Check("failed logins", Level.UNKNOWN, f"there is no {app_log}", "LOG_DIR must name a folder")
    except OSError as error:
        return unknown("failed logins", f"{error.filename or app_log}: {error.strerror}", "run this as root")
    total = addresses.total()
    told = f"{total} in the last 24 h"
    if total:
        most = ", ".join(f"{count} from {address}" for address, count in addresses.most_common(_PLACES_SHOWN))
        told += f": {most}"
    fix = "manage.py show-events --event AUTHENTICATION_FAILED; manage.py address-rules can block an address"
    return judged("failed logins", total, told, fix, warning_from=warning_from, failed_from=failed_from)
