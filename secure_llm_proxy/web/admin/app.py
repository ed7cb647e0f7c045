"""make_management_app: the Flask application of `/auth`, `/api/v1` and `/audit`, with all that only these need."""

from __future__ import annotations

from flask import Flask
from flask_wtf.csrf import CSRFProtect

from secure_llm_proxy.audit.report import Configured
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.admin.catalogue import ENDPOINTS
from secure_llm_proxy.web.admin.csrf import CSRF_HEADER, RequestSessions
from secure_llm_proxy.web.admin.errors import management_error_body
from secure_llm_proxy.web.admin.frame import BODY_BYTES_MAX, make_management_doors
from secure_llm_proxy.web.admin.guard import ManagementGuard
from secure_llm_proxy.web.admin.house import ManagementHouse, attach_management
from secure_llm_proxy.web.admin.loader import make_login_manager
from secure_llm_proxy.web.admin.rates import ManagementRates
from secure_llm_proxy.web.auditor.views import make_auditor_doors
from secure_llm_proxy.web.auth.views import make_auth_doors
from secure_llm_proxy.web.hooks import Manner, install_hooks
from secure_llm_proxy.web.house import WebHouse, attach

_CSRF_TOKEN_S = 12 * 3600
"""As long as a session lasts at most."""


def make_management_app(web: WebHouse, house: ManagementHouse) -> Flask:
    app = Flask("secure_llm_proxy", static_folder=None)
    app.config.update(
        PROVIDE_AUTOMATIC_OPTIONS=False,
        SECRET_KEY=house.csrf_key,
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_HEADERS=[CSRF_HEADER],
        # `csrf.require_own_origin` asks for more than a Referer, which our pages don't send.
        WTF_CSRF_SSL_STRICT=False,
        WTF_CSRF_TIME_LIMIT=_CSRF_TOKEN_S,
        MAX_CONTENT_LENGTH=BODY_BYTES_MAX,
    )
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.session_interface = RequestSessions(house.csrf_key, house.previous_csrf_keys)
    attach(app, web)
    attach_management(app, house)
    csrf = CSRFProtect()
    rates = ManagementRates(app, web.settings.throttling, web.settings.redis)
    guard = ManagementGuard(house, rates, csrf)
    install_hooks(app, Manner(judge=guard, recorded_as=AuditType.AUTH_EVENT, body_of=management_error_body))
    csrf.init_app(app)
    make_login_manager().init_app(app, add_context_processor=False)
    audit = web.settings.audit
    configured = Configured(audit.retention_days, backup=audit.backup_enabled)
    for doors in (make_auth_doors(), make_auditor_doors(configured), make_management_doors(ENDPOINTS)):
        app.register_blueprint(doors)
    return app
