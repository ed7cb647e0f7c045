"""create_app: the Flask application around the house."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine

from secure_llm_proxy.foundation.database import Database, Model
from secure_llm_proxy.services import Services, build_services
from secure_llm_proxy.settings import Settings
from secure_llm_proxy.settings.loading import relaxed_settings
from secure_llm_proxy.telemetry import configure_logs, render_metrics, start_error_reports
from secure_llm_proxy.vocabulary.connection import UNREAD
from secure_llm_proxy.web.admin.mount import ManagementMount
from secure_llm_proxy.web.anthropic.views import make_anthropic_doors
from secure_llm_proxy.web.chat.views import make_chat_door
from secure_llm_proxy.web.hooks import install_hooks
from secure_llm_proxy.web.hot_doors import HotDoors
from secure_llm_proxy.web.house import WebHouse, attach
from secure_llm_proxy.web.openai.views import make_openai_doors
from secure_llm_proxy.web.operations.views import make_operations_doors
from secure_llm_proxy.web.refusals import record_unread

_SERVICES = "secure_llm_proxy.services"
MANAGEMENT = "secure_llm_proxy.management"


def create_app(settings: Settings) -> Flask:
    """Build and start one worker's application. Call `stop_services(app)` at its end."""
    configure_logs(settings.telemetry, together=True)
    start_error_reports(settings.telemetry, environment=settings.server.profile)
    app = Flask("secure_llm_proxy", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    services = build_services(settings)
    app.extensions[_SERVICES] = services
    _wrap_database(app, services.database)
    web = _web_house(settings, services)
    attach(app, web)
    app.extensions[UNREAD] = partial(record_unread, web)
    install_hooks(app)
    for doors in (make_chat_door(), make_openai_doors(), make_anthropic_doors(), make_operations_doors()):
        app.register_blueprint(doors)
    management = ManagementMount(app.wsgi_app, lambda: _management_app(web, services))
    app.wsgi_app = management  # type: ignore[method-assign]  # Flask's own way to mount middleware
    app.extensions[MANAGEMENT] = management
    if settings.server.hot_path:
        app.wsgi_app = HotDoors(app.wsgi_app, web)  # type: ignore[method-assign]
    services.start()
    return app


def end_running(app: Flask) -> None:
    """Exchanges that still run end now, each with a word to its client; waits for none."""
    services: Services = app.extensions[_SERVICES]
    services.end_running()


def stop_services(app: Flask) -> None:
    """End the background work, flush, hang up."""
    services: Services = app.extensions[_SERVICES]
    services.stop()


def _management_app(web: WebHouse, services: Services) -> Flask:
    # What only management needs (Flask-Login, Flask-WTF, Flask-Limiter, its models) is loaded when it is asked for first.
    from secure_llm_proxy.web.admin.app import make_management_app  # noqa: PLC0415
    from secure_llm_proxy.web.admin.house import ManagementHouse  # noqa: PLC0415

    return make_management_app(
        web,
        ManagementHouse(
            database=services.database,
            clock=services.clock,
            journal=services.journal,
            sign_in=services.sign_in,
            sessions=services.sessions,
            second_factors=services.second_factors,
            accounts=services.accounts,
            keys=services.keys,
            organisations=services.organisations,
            kill_switches=services.kill_switches,
            address_rules=services.address_rules,
            refresh_address_rules=services.rule_reader.refresh,
            identify=services.identity.identify,
            announce=services.announce,
            csrf_key=services.csrf_key,
            previous_csrf_keys=services.previous_csrf_keys,
            person_key=services.house.person_key,
            evidence=services.evidence,
            audit_index=services.audit_index,
            audit_records=services.audit_records,
        ),
    )


def _wrap_database(app: Flask, database: Database) -> None:
    """Flask-SQLAlchemy and Flask-Migrate work on the one engine that `foundation` owns."""

    class SharedEngine(SQLAlchemy):
        def _make_engine(self, _bind_key: str | None, _options: dict[str, Any], _app: Flask) -> Engine:
            return database.engine

    app.config["SQLALCHEMY_DATABASE_URI"] = database.engine.url
    db = SharedEngine(app, metadata=Model.metadata)
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        # `flask db`; a worker has no use for it, and Alembic would cost it 11 MB and 75 ms.
        from flask_migrate import Migrate  # noqa: PLC0415

        Migrate(app, db, directory="migrations")


def _web_house(settings: Settings, services: Services) -> WebHouse:
    def security_status() -> dict[str, object]:
        admission, throttling, audit = settings.admission, settings.throttling, settings.audit
        counts = services.metrics.security_counts()
        rules = services.rule_reader.counts()
        return {
            "security_metrics": {
                "active_clients": counts.in_progress,
                "total_requests_processed": counts.requests,
                "rate_limit_violations": counts.rate_limited,
                "blocked_requests": counts.blocked,
                "blocked_ips_count": len(admission.blocked_addresses) + rules.blocked + rules.temporary,
                "allowed_ips_count": len(admission.allowed_addresses) + rules.allowed,
                "temporary_blocks_count": rules.temporary,
            },
            "security_config": {
                "profile": settings.server.profile,
                "authentication_required": settings.identity.authentication_required,
                "max_request_bytes": settings.limits.body_bytes_max,
                "rate_limiting": {
                    "requests_per_minute": throttling.key_requests_per_minute,
                    "burst": throttling.key_burst,
                    "concurrent": throttling.key_concurrent,
                    "shared": settings.redis.url is not None,
                },
                "blocked_user_agents": list(admission.blocked_agents),
                "provider": "demo" if services.demo else next(iter(services.upstream.all), None),
                "provider_certificate_checked": settings.upstream.ssl_verify,
            },
            "audit": {
                "encrypted": audit.encryption_enabled,
                "state": services.troubles["audit"]() or "ok",
                **services.standing.told(),
            },
            "providers": services.provider_report(),
            "licence": None,
            "compliance_status": None,
        }

    return WebHouse(
        house=services.house,
        settings=settings,
        address_of=services.admission.client_address,
        is_proxy=services.admission.is_proxy,
        troubles=services.troubles,
        security_status=security_status,
        render_metrics=lambda: render_metrics(services.metrics),
        relaxed=tuple(relaxed_settings(settings)),
        providers=services.provider_states,
    )
