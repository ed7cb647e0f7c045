"""A change that a browser asks for with its cookie must have been asked for by our own page.

Three things in a row: `SameSite=Strict` keeps the cookie from other sites; `Sec-Fetch-Site` and `Origin`, where the browser
sends them, must name this site; and the request must carry the session's token in `X-CSRF-Token`, which Flask-WTF signs and
checks. The token's raw half is derived from the session's secret, so a token of another session is worth nothing, and nothing
of it is stored anywhere. Source: ASVS 5.0 3.5.1 to 3.5.3; OWASP CSRF cheat sheet (2026), "signed double-submit".
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from flask import Flask, Request, Response, current_app, request, session
from flask.sessions import SessionInterface, SessionMixin
from flask_wtf.csrf import CSRFProtect, generate_csrf, validate_csrf
from werkzeug.exceptions import BadRequest
from wtforms import ValidationError  # type: ignore[import-untyped]  # ships none

from secure_llm_proxy.foundation.errors import ErrorCode, PermissionDenied, UnsupportedMedia
from secure_llm_proxy.web.admin.cookies import session_cookie
from secure_llm_proxy.web.arrival import Arrival

CSRF_HEADER = "X-CSRF-Token"
_FIELD = "csrf_token"
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "application/x-url-encoded"})


class RequestSession(dict[str, object], SessionMixin):
    """What Flask calls the session: it lives as long as the request. Ours are in the database (identity)."""


class RequestSessions(SessionInterface):
    """Gives each request with a session cookie the raw half of its CSRF token, and keeps nothing.

    A token that was made under one of `previous_keys` is good too, for pages that were open when SECRET_KEY changed.
    """

    def __init__(self, key: bytes, previous_keys: Sequence[bytes] = ()) -> None:
        self._key = key
        self.previous_keys = tuple(previous_keys)

    def open_session(self, app: Flask, request: Request) -> RequestSession:  # noqa: ARG002
        return RequestSession()

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Nothing: no cookie of Flask's own is ever set."""

    def bind(self, secret: str, key: bytes | None = None) -> None:
        """The CSRF token of this request is the one that belongs to the session with that secret."""
        session[_FIELD] = hmac.new(key or self._key, secret.encode(), sha256).hexdigest()


def csrf_token_for(secret: str) -> str:
    """The token that changes with this session's cookie must carry."""
    _bind(secret)
    token: str = generate_csrf()
    return token


def require_own_page(csrf: CSRFProtect, arrival: Arrival) -> None:
    """Raises `PermissionDenied(csrf_failed)`. For a request that is known by its cookie."""
    require_own_origin(arrival)
    if request.mimetype in _FORMS:
        # Flask-WTF would look for its token in there: nobody here takes a form.
        raise UnsupportedMedia("Send the body as JSON, with `Content-Type: application/json`.")
    secret = session_cookie(arrival) or ""
    interface = _bind(secret)
    try:
        csrf.protect()
    except BadRequest:
        token = request.headers.get(CSRF_HEADER)
        if not any(_is_earlier_token(interface, token, secret, key) for key in interface.previous_keys):
            raise _refused("The CSRF token is missing, not that of this session, or too old.") from None


def require_own_origin(arrival: Arrival) -> None:
    """Raises `PermissionDenied(csrf_failed)` when the browser says that another site asks."""
    environ = arrival.environ
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in {"same-origin", "none"}:
        raise _refused("The request comes from another site.")
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return
    host = environ.get("HTTP_HOST", "")
    try:
        told, own = urlsplit(origin), urlsplit(f"//{host}")
        same = told.scheme in {"http", "https"} and told.hostname is not None and told.hostname == own.hostname
        # nginx hands the host on without its port; where there is one, it counts.
        same = same and (own.port is None or own.port == told.port)
    except ValueError:
        same = False
    if not same:
        raise _refused("The request comes from another site.")


def _bind(secret: str) -> RequestSessions:
    interface = current_app.session_interface
    assert isinstance(interface, RequestSessions)
    interface.bind(secret)
    return interface


def _is_earlier_token(interface: RequestSessions, token: str | None, secret: str, key: bytes) -> bool:
    interface.bind(secret, key)
    try:
        validate_csrf(token, secret_key=key)
    except ValidationError:
        return False
    finally:
        interface.bind(secret)
    return True


def _refused(public: str) -> PermissionDenied:
    return PermissionDenied(public, code=ErrorCode.CSRF_FAILED)
