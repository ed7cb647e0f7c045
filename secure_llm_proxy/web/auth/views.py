"""Doors of `/auth`. A view reads, calls one function of the identity room, records, answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

import orjson
from flask import Blueprint, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from secure_llm_proxy.audit import Change
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InvalidRequest,
    NotFound,
    OperatorError,
    ProxyError,
)
from secure_llm_proxy.identity import (
    EnrolmentWanted,
    LiveSession,
    OpenedSession,
    SecondFactorWanted,
    SignedIn,
    qr_svg,
)
from secure_llm_proxy.vocabulary.events import EventName
from secure_llm_proxy.web.admin.cookies import (
    delete_session_cookie,
    device_cookie,
    session_cookie,
    set_device_cookie,
    set_session_cookie,
)
from secure_llm_proxy.web.admin.csrf import csrf_token_for
from secure_llm_proxy.web.admin.errors import management_error_object
from secure_llm_proxy.web.admin.frame import asked_in_body
from secure_llm_proxy.web.admin.house import the_management
from secure_llm_proxy.web.admin.loader import the_actor
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.auth.records import record_event
from secure_llm_proxy.web.auth.wire import (
    CodeRequest,
    LoginRequest,
    PasswordRequest,
    SecondFactorRequest,
    SessionTold,
    SetupRequest,
    user_of,
)
from secure_llm_proxy.web.errors import error_headers
from secure_llm_proxy.web.flask_shell import arrival_of_request

Asked = TypeVar("Asked", bound=BaseModel)

_DEVICE_KEPT = timedelta(days=90)


def make_auth_doors() -> Blueprint:
    doors = Blueprint("auth", __name__, url_prefix="/auth")

    @doors.post("/login")
    def login() -> Response:
        arrival = arrival_of_request()
        asked = _asked(LoginRequest)
        arrival.person = asked.username
        before = session_cookie(arrival)
        outcome = the_management().sign_in.password(
            asked.username,
            asked.password,
            mfa_code=asked.mfa_code,
            recovery_code=asked.recovery_code,
            address=arrival.address,
            agent=arrival.user_agent,
            kind="browser" if asked.cookie else "token",
            device=device_cookie(arrival) if asked.cookie else asked.device_token,
        )
        if not isinstance(outcome, SignedIn):
            _record_or_end(arrival, outcome.session, "login.password", None)
            return _owed(outcome)
        _record_or_end(arrival, outcome.session, "login", EventName.LOGIN, second_factor=_shown(outcome))
        if asked.cookie and before is not None:
            _end_replaced(before)
        return _welcome(arrival, outcome)

    @doors.post("/mfa")
    def second_factor() -> Response:
        arrival = arrival_of_request()
        asked = _asked(SecondFactorRequest)
        if (asked.mfa_code is None) == (asked.recovery_code is None):
            raise InvalidRequest("Send either `mfa_code` or `recovery_code`.", param="mfa_code")
        house = the_management()
        before = session_cookie(arrival)
        pending = house.database.run(lambda session: house.sessions.find(session, asked.pending_token))
        if pending is not None:
            arrival.person, arrival.person_id = pending.username, pending.user_id
        signed_in = house.sign_in.second_factor(
            asked.pending_token,
            mfa_code=asked.mfa_code,
            recovery_code=asked.recovery_code,
            address=arrival.address,
            agent=arrival.user_agent,
            device=asked.device_token or device_cookie(arrival),
        )
        how = "totp" if asked.recovery_code is None else "recovery_code"
        _record_or_end(arrival, signed_in.session, "login", EventName.LOGIN, second_factor=how)
        if signed_in.session.kind == "browser" and before is not None:
            _end_replaced(before)
        return _welcome(arrival, signed_in)

    @doors.post("/setup")
    def set_up() -> Response:
        house = the_management()
        asked = _asked(SetupRequest)
        try:
            holder = house.database.run(lambda session: house.accounts.token_holder(session, asked.token))
        except OperatorError:
            raise InvalidRequest(
                "The one-time token is not valid (any more); ask for a new one.", code=ErrorCode.SETUP_TOKEN_INVALID
            ) from None
        change = Change(
            "user.password_set",
            holder.id,
            f"user:{holder.id}",
            {"with": "token"},
            _where(arrival_of_request()),
            EventName.PASSWORD_CHANGED,
        )
        house.change(change, lambda: house.sign_in.set_up(asked.token, asked.password))
        return _json({"status": "success", "username": holder.username})

    @doors.post("/mfa/enrol")
    def begin_enrolment() -> Response:
        live = the_actor().own_session()
        house = the_management()
        enrolment = house.change(
            _change("mfa.begin", live, EventName.MFA_CHANGED), lambda: house.sign_in.begin_enrolment(live)
        )
        return _json(
            {
                "status": "success",
                "secret": enrolment.secret_base32,
                "otpauth_uri": enrolment.uri,
                "qr_svg": qr_svg(enrolment.uri),
            }
        )

    @doors.post("/mfa/confirm")
    def confirm_enrolment() -> Response:
        live = the_actor().own_session()
        asked = _asked(CodeRequest)
        house = the_management()
        signed_in, codes = house.change(
            _change("mfa.confirm", live, EventName.MFA_CHANGED),
            lambda: house.sign_in.confirm_enrolment(live, asked.mfa_code),
        )
        return _welcome(arrival_of_request(), signed_in, {"recovery_codes": list(codes)})

    @doors.post("/mfa/recovery-codes")
    def renew_recovery_codes() -> Response:
        live = the_actor().own_session()
        house = the_management()
        codes = house.change(
            _change("mfa.recovery_codes", live, EventName.MFA_CHANGED),
            lambda: house.database.run(lambda session: house.second_factors.new_recovery_codes(session, live.user_id)),
        )
        return _json({"status": "success", "recovery_codes": list(codes)})

    @doors.post("/mfa/step-up")
    def step_up() -> Response:
        live = the_actor().own_session()
        asked = _asked(CodeRequest)
        opened = the_management().sign_in.step_up(live, asked.mfa_code)
        arrival = arrival_of_request()
        _record_or_end(arrival, opened.session, "step_up", None)
        return _welcome(arrival, opened)

    @doors.post("/password")
    def change_password() -> Response:
        live = the_actor().own_session()
        asked = _asked(PasswordRequest)
        house = the_management()
        signed_in = house.change(
            _change("user.password_set", live, EventName.PASSWORD_CHANGED, subject=live.user_id),
            lambda: house.sign_in.change_password(live, asked.old_password, asked.new_password),
        )
        return _welcome(arrival_of_request(), signed_in)

    @doors.post("/logout")
    def logout() -> Response:
        live = the_actor().own_session()
        arrival = arrival_of_request()
        house = the_management()
        record_event(house.journal, arrival, live, "logout", EventName.LOGOUT)
        house.sign_in.sign_out(live)
        response = _json({"status": "success"})
        if live.kind == "browser":
            delete_session_cookie(response, arrival)
        return response

    @doors.get("/csrf")
    def csrf() -> Response:
        the_actor()
        secret = session_cookie(arrival_of_request())
        return _json({"csrf_token": None if secret is None else csrf_token_for(secret)})

    @doors.get("/me")
    def me() -> Response:
        live = the_actor().own_session()
        house = the_management()
        factor = house.database.run(lambda session: house.second_factors.state(session, live.user_id))
        return _json(
            {
                "user": user_of(live).model_dump(mode="json"),
                "session": SessionTold.model_validate(live).model_dump(mode="json"),
                "mfa": {"enrolled": factor.enrolled, "recovery_codes_left": factor.recovery_codes_left},
            }
        )

    @doors.get("/sessions")
    def list_sessions() -> Response:
        live = the_actor().own_session()
        house = the_management()
        found = house.database.run(lambda session: house.sessions.listing(session, live.user_id))
        return _json(
            {
                "items": [
                    {**SessionTold.model_validate(each).model_dump(mode="json"), "current": each.id == live.id}
                    for each in found
                ]
            }
        )

    @doors.delete("/sessions/<session_id>")
    def end_session(session_id: str) -> Response:
        live = the_actor().own_session()
        house = the_management()
        own = {each.id for each in house.database.run(lambda session: house.sessions.listing(session, live.user_id))}
        if session_id not in own:
            raise NotFound("There is no such session of yours.")
        house.change(
            _change("session.end", live, EventName.SESSION_ENDED, subject=session_id),
            lambda: house.database.run(lambda session: house.sessions.end(session, session_id, "ended_by_user")),
        )
        response = _json({"status": "success"})
        if session_id == live.id and live.kind == "browser":
            delete_session_cookie(response, arrival_of_request())
        return response

    return doors


def _asked(model: type[Asked]) -> Asked:
    return asked_in_body(model, arrival_of_request())


def _owed(outcome: SecondFactorWanted | EnrolmentWanted) -> Response:
    """401 as the origin says it: the password was right, and something is owed. `pending_token` carries the rest."""
    enrol = isinstance(outcome, EnrolmentWanted)
    error = AuthenticationFailed(
        "Set up a second factor first." if enrol else "The second factor is still owed.",
        code=ErrorCode.SECOND_FACTOR_REQUIRED,
    )
    told = {
        **management_error_object(error),
        "status": "mfa_enrolment_required" if enrol else "mfa_required",
        "requires_mfa": not enrol,
        "requires_enrolment": enrol,
        "pending_token": outcome.secret,
        "expires_at": rfc3339(outcome.session.expires_at),
    }
    return Response(orjson.dumps(told), error.status, error_headers(error))


def _welcome(
    arrival: Arrival, opened: SignedIn | OpenedSession, further: Mapping[str, object] | None = None
) -> Response:
    """The session's new secret: a browser gets it as a cookie that its scripts can't read, a tool in the body."""
    live = opened.session
    told: dict[str, object] = {
        "status": "success",
        "expires_at": rfc3339(live.expires_at),
        "user": user_of(live).model_dump(mode="json"),
        **(further or {}),
    }
    device = opened.device if isinstance(opened, SignedIn) else None
    if isinstance(opened, SignedIn) and opened.recovery_codes_left is not None:
        told["recovery_codes_left"] = opened.recovery_codes_left
    if live.kind == "browser":
        told["csrf_token"] = csrf_token_for(opened.secret)
        response = _json(told)
        set_session_cookie(response, arrival, opened.secret)
        if device is not None:
            set_device_cookie(response, arrival, device, the_management().clock.now() + _DEVICE_KEPT)
        return response
    told["session_token"] = opened.secret
    if device is not None:
        told["device_token"] = device
    return _json(told)


def _record_or_end(arrival: Arrival, live: LiveSession, act: str, event: EventName | None, **clear: str | None) -> None:
    """What can't be recorded has not happened: the session that was opened ends. Raises `Unavailable` then."""
    house = the_management()
    try:
        record_event(house.journal, arrival, live, act, event, **clear)
    except ProxyError:
        house.database.run(lambda session: house.sessions.end(session, live.id, "not_recorded"))
        raise


def _end_replaced(secret: str) -> None:
    """The browser's session of before: whoever knows its cookie has nothing of the new one."""
    house = the_management()

    def end(session: Session) -> None:
        live = house.sessions.find(session, secret)
        if live is not None and live.kind == "browser":
            house.sessions.end(session, live.id, "replaced")

    house.database.run(end)


def _change(action: str, live: LiveSession, event: EventName, *, subject: str | None = None) -> Change:
    arrival = arrival_of_request()
    clear = {"ses": live.id, "req": arrival.exchange_id}
    return Change(action, subject or live.user_id, f"user:{live.user_id}", clear, _where(arrival), event)


def _where(arrival: Arrival) -> dict[str, object]:
    return {"from": {"address": arrival.address, "agent": arrival.user_agent[:1024]}}


def _shown(signed_in: SignedIn) -> str:
    if signed_in.recovery_codes_left is not None:
        return "recovery_code"
    return "none" if signed_in.session.second_factor_at is None else "totp"


def _json(told: Mapping[str, object]) -> Response:
    return Response(orjson.dumps(dict(told)), content_type="application/json")
