"""Health for balancers, status for operators, metrics for Prometheus.

`/health` tells only what an outsider may know (SECURITY A35); reasons stand in `/security/status` and the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
from flask import Blueprint, Response

from secure_llm_proxy import __version__
from secure_llm_proxy.foundation.clock import SystemClock, rfc3339
from secure_llm_proxy.web.headers import SECURITY_HEADERS
from secure_llm_proxy.web.house import the_house

# What a balancer can't mend by sending requests elsewhere: the provider, what the audit log is worth as evidence, its index.
_NOT_NEEDED = frozenset({"upstream", "evidence", "audit_index"})


def make_operations_doors() -> Blueprint:
    doors = Blueprint("operations", __name__)

    @doors.get("/health")
    def health() -> Response:
        return _json(
            {"service": "secure_llm_proxy", **_health(), "security_headers": [name for name, _ in SECURITY_HEADERS]}
        )

    @doors.get("/api/health")
    def api_health() -> Response:
        started = time.monotonic()
        told = _health()
        web = the_house()
        return _json(
            {
                **told,
                "mode": web.settings.server.profile,
                "responseTimeMs": round((time.monotonic() - started) * 1000, 3),
                "dependencies": _dependencies(),
            }
        )

    @doors.get("/health/live")
    def live() -> Response:
        return _json({"status": "alive"})

    @doors.get("/health/ready")
    def ready() -> Response:
        dependencies = _dependencies()
        # Every other part is needed: limits without Redis run on this host's share, which a balancer should know.
        good = all(state == "ok" for name, state in dependencies.items() if name not in _NOT_NEEDED)
        body = {
            "status": "ready" if good else "not_ready",
            "dependencies": dependencies,
            "providers": dict(the_house().providers()),
        }
        return _json(body, 200 if good else 503)

    @doors.get("/security/status")
    def security_status() -> Response:
        web = the_house()
        troubles = {name: trouble for name, ask in web.troubles.items() if (trouble := ask())}
        relaxed = [{"setting": name, "why": why} for name, why in web.relaxed]
        return _json(
            {
                "status": "degraded" if troubles else "ok",
                "timestamp": rfc3339(SystemClock().now()),
                **web.security_status(),
                "relaxed_settings": relaxed,
                "troubles": troubles,
            }
        )

    @doors.get("/metrics")
    def metrics() -> Response:
        text, content_type = the_house().render_metrics()
        return Response(text, headers=[("Content-Type", content_type)])

    return doors


def _health() -> dict[str, object]:
    degraded = any(state != "ok" for state in _dependencies().values())
    return {
        "status": "degraded" if degraded else "healthy",
        "version": __version__,
        "timestamp": rfc3339(SystemClock().now()),
    }


def _dependencies() -> dict[str, str]:
    """`ok` or `unavailable` for each part; the reasons are not for everybody."""
    troubles: dict[str, Callable[[], str | None]] = dict(the_house().troubles)
    return {name: "ok" if ask() is None else "unavailable" for name, ask in troubles.items()}


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, headers=[("Content-Type", "application/json")])
