"""`/auth`: logging in and out, second factors, cookies with CSRF, one's own sessions, and what of it is on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.cookies import SimpleCookie
from pathlib import Path

import pyotp
import pytest
from werkzeug.test import TestResponse

from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.settings import Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.admin.app import make_management_app
from tests.support.house import LogCapture, make_web_house, stop_recording_at
from tests.support.management_house import PASSWORD, ManagementClient, ManagementRoom, make_management_room

ROOMY = Settings(throttling=ThrottlingSettings(login_requests_per_minute=10_000))
LOGIN = {"username": "alice", "password": PASSWORD}
NEW_PASSWORD = "another horse battery staple 8"


@pytest.fixture
def management(tmp_path: Path) -> Iterator[ManagementRoom]:
    made = make_management_room(tmp_path, ROOMY)
    yield made
    made.room.database.close()


def code_of(answer: TestResponse) -> str:
    error = answer.get_json()["error"]
    assert set(error) == {"message", "type", "param", "code", "field", "hint", "docs_url"}
    return str(error["code"])


def login(management: ManagementRoom, **more: object) -> TestResponse:
    return management.client().ask("POST", "/auth/login", {**LOGIN, **more})


def events(management: ManagementRoom) -> list[tuple[object, object]]:
    return [(event.event, event.clear.get("act")) for event in management.small.journal.of(AuditType.AUTH_EVENT)]


def enrolled(management: ManagementRoom) -> tuple[ManagementClient, pyotp.TOTP, list[str]]:
    """A member who has just set up a second factor, their app and their recovery codes."""
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])
    begun = client.ask("POST", "/auth/mfa/enrol", {}).get_json()
    app = pyotp.TOTP(begun["secret"])
    confirmed = client.ask("POST", "/auth/mfa/confirm", {"mfa_code": now_of(management, app)}).get_json()
    return management.client(confirmed["session_token"]), app, confirmed["recovery_codes"]


def now_of(management: ManagementRoom, app: pyotp.TOTP) -> str:
    return app.at(management.room.clock.now())


def next_of(management: ManagementRoom, app: pyotp.TOTP) -> str:
    """A code that was not used yet."""
    management.room.clock.advance(30)
    return now_of(management, app)


def browser(management: ManagementRoom) -> tuple[dict[str, str], str]:
    """Headers of a browser that has logged in, and its CSRF token."""
    answer = login(management, cookie=True)
    assert answer.status_code == 200, answer.data
    return {"Cookie": cookie_of(answer)}, answer.get_json()["csrf_token"]


def cookie_of(answer: TestResponse, name: str = "slp_sid") -> str:
    found = SimpleCookie()
    for header in answer.headers.getlist("Set-Cookie"):
        found.load(header)
    return f"{name}={found[name].value}"


# --- logging in -------------------------------------------------------------------------------------------------------


def test_a_password_gives_a_token_that_is_good_and_on_record(management: ManagementRoom) -> None:
    user = management.with_password("alice")

    answer = login(management)
    told = answer.get_json()
    me = management.client(told["session_token"]).ask("GET", "/auth/me")

    assert answer.status_code == 200
    assert told["status"] == "success"
    assert told["session_token"].startswith("slp_sess_")
    assert told["user"] == {
        "id": user.id, "username": "alice", "role": "member", "organisation_id": user.organisation_id,
    }  # fmt: skip
    assert "Set-Cookie" not in answer.headers
    assert me.get_json()["user"]["id"] == user.id
    assert events(management) == [(EventName.LOGIN, "login")]
    (record,) = management.small.journal.durable
    assert record.clear["by"] == f"user:{user.id}"
    assert record.clear["sub"] == pseudonym(management.small.house.person_key, user.id)
    assert record.indexed["ipx"] == "127.0.0.1"
    assert json.loads(record.body)["from"]["address"] == "127.0.0.1"


@pytest.mark.parametrize("header", ["Authorization", "X-Session-Token", "X-API-Key"])
def test_the_token_goes_into_any_header_of_credentials(management: ManagementRoom, header: str) -> None:
    management.with_password("alice")
    token = login(management).get_json()["session_token"]
    value = f"Bearer {token}" if header == "Authorization" else token

    assert management.client().ask("GET", "/auth/me", headers={header: value}).status_code == 200


def test_unknown_user_wrong_password_and_locked_account_are_one_answer(management: ManagementRoom) -> None:
    management.with_password("alice")
    management.with_password("locked")
    room = management.room
    room.database.run(lambda session: room.accounts.lock_user(session, "locked"))

    answers = [
        login(management, password="wrong"),
        login(management, username="nobody"),
        login(management, username="locked"),
        login(management, username="nobody\x00'--"),
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.data for answer in answers}) == 1
    assert code_of(answers[0]) == "login_failed"
    assert events(management) == [(EventName.AUTHENTICATION_FAILED, None)] * 4
    assert json.loads(management.small.journal.of(AuditType.AUTH_EVENT)[1].body)["username"] == "nobody"


def test_after_five_failures_known_and_unknown_names_wait_alike(management: ManagementRoom) -> None:
    management.with_password("alice")

    told = []
    for name in ("alice", "nobody"):
        answers = [login(management, username=name, password="wrong") for _ in range(6)]
        right = login(management, username=name)
        told.append(
            [(answer.status_code, answer.data, answer.headers.get("Retry-After")) for answer in (*answers, right)]
        )

    assert told[0] == told[1]
    assert told[0][-1][0] == 401
    assert int(told[0][-1][2] or 0) > 0
    management.room.clock.advance(901)
    assert login(management).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {}, {"username": "alice"}, {"password": PASSWORD}, {**LOGIN, "extra": 1}, {**LOGIN, "cookie": "yes"},
        {**LOGIN, "username": 7}, {**LOGIN, "password": ""}, {**LOGIN, "username": "x" * 129}, [LOGIN],
        {**LOGIN, "password": "x" * 1025}, {**LOGIN, "mfa_code": 123456},
    ],
)  # fmt: skip
def test_a_malformed_login_is_400_and_no_password_is_repeated(management: ManagementRoom, body: object) -> None:
    management.with_password("alice")

    with LogCapture() as logs:
        answer = management.client().ask("POST", "/auth/login", body)

    assert answer.status_code == 400
    assert PASSWORD.encode() not in answer.data
    assert PASSWORD not in str([vars(line) for line in logs.records])


def test_a_login_that_cannot_be_recorded_has_not_happened(management: ManagementRoom) -> None:
    user = management.with_password("alice")
    management.small.journal.refusal = stop_recording_at(AuditType.AUTH_EVENT)

    answer = login(management)

    assert answer.status_code == 503
    assert code_of(answer) == "audit_unavailable"
    listed = management.room.database.run(lambda session: management.house.sessions.listing(session, user.id))
    assert listed == []


def test_an_address_has_so_many_tries_a_minute_and_another_has_its_own(tmp_path: Path) -> None:
    strict = make_management_room(tmp_path, Settings(throttling=ThrottlingSettings(login_requests_per_minute=3)))
    wrong = {"token": "x", "password": "y"}

    tries = [strict.client().ask("POST", "/auth/setup", wrong) for _ in range(8)]
    other = strict.client().ask("POST", "/auth/login", LOGIN, environ_base={"REMOTE_ADDR": "127.0.0.2"})
    strict.room.database.close()

    # The window slides while the test runs, so one or two more may pass.
    assert [answer.status_code for answer in tries[:3]] == [400] * 3
    over = next(answer for answer in tries[3:] if answer.status_code != 400)
    assert over.status_code == 429
    assert code_of(over) == "rate_limit_exceeded"
    assert 1 <= int(over.headers["Retry-After"]) <= 60
    assert over.get_json()["retry_after"] == int(over.headers["Retry-After"])
    assert other.status_code == 401


# --- the second factor ------------------------------------------------------------------------------------------------


def test_the_second_factor_is_asked_for_and_shown_in_a_second_step_or_along(management: ManagementRoom) -> None:
    _, app, _ = enrolled(management)

    owed = login(management)
    told = owed.get_json()
    pending = management.client(told["pending_token"])
    shut = [pending.ask("GET", path) for path in ("/auth/me", "/api/v1/me", "/auth/sessions")]
    wrong = management.client().ask("POST", "/auth/mfa", {"pending_token": told["pending_token"], "mfa_code": "000000"})
    code = next_of(management, app)
    right = management.client().ask("POST", "/auth/mfa", {"pending_token": told["pending_token"], "mfa_code": code})
    again = management.client().ask("POST", "/auth/mfa", {"pending_token": told["pending_token"], "mfa_code": code})
    along = login(management, mfa_code=next_of(management, app))

    assert owed.status_code == 401
    assert told["requires_mfa"] is True
    assert told["requires_enrolment"] is False
    assert code_of(owed) == "second_factor_required"
    assert [answer.status_code for answer in shut] == [401, 401, 401]
    assert wrong.status_code == 401
    assert right.status_code == 200
    assert right.get_json()["session_token"] != told["pending_token"]
    assert management.client(told["pending_token"]).ask("GET", "/auth/me").status_code == 401
    assert again.status_code == 401
    assert along.status_code == 200


def test_a_code_serves_once(management: ManagementRoom) -> None:
    _, app, _ = enrolled(management)
    code = next_of(management, app)

    assert login(management, mfa_code=code).status_code == 200
    assert login(management, mfa_code=code).status_code == 401


def test_a_browser_that_logs_in_anew_in_two_steps_has_left_its_old_session(management: ManagementRoom) -> None:
    _, app, _ = enrolled(management)

    def two_steps(headers: dict[str, str]) -> dict[str, str]:
        owed = login(management, cookie=True).get_json()
        body = {"pending_token": owed["pending_token"], "mfa_code": next_of(management, app)}
        answer = management.client().ask("POST", "/auth/mfa", body, headers=headers)
        assert answer.status_code == 200, answer.data
        return {"Cookie": cookie_of(answer)}

    before = two_steps({})
    after = two_steps(before)

    assert management.client().ask("GET", "/auth/me", headers=before).status_code == 401
    assert management.client().ask("GET", "/auth/me", headers=after).status_code == 200


def test_a_wrong_code_in_the_second_step_is_on_record_with_its_person(management: ManagementRoom) -> None:
    enrolled(management)
    owed = login(management).get_json()

    management.client().ask("POST", "/auth/mfa", {"pending_token": owed["pending_token"], "mfa_code": "000000"})

    refused = [
        event for event in management.small.journal.of(AuditType.AUTH_EVENT) if event.clear.get("dec") == "refuse"
    ]
    assert b"alice" in refused[-1].body
    alice = management.room.database.run(lambda session: management.room.accounts.find_user(session, "alice"))
    assert refused[-1].clear["sub"] == pseudonym(management.small.house.person_key, alice.id)


def test_who_fails_to_log_in_is_sealed_by_the_key_of_the_name_that_was_typed(management: ManagementRoom) -> None:
    login(management, username="Nobody")
    login(management, username=" \uff2eobody")

    subjects = {event.clear["sub"] for event in management.small.journal.of(AuditType.AUTH_EVENT)}

    assert subjects == {pseudonym(management.small.house.person_key, "login:nobody")}


def test_a_recovery_code_serves_once_and_new_ones_void_the_old(management: ManagementRoom) -> None:
    client, _, codes = enrolled(management)

    first = login(management, recovery_code=codes[0])
    again = login(management, recovery_code=codes[0])
    renewed = client.ask("POST", "/auth/mfa/recovery-codes", {})
    old = login(management, recovery_code=codes[1])
    new = login(management, recovery_code=renewed.get_json()["recovery_codes"][0])

    assert first.status_code == 200
    assert first.get_json()["recovery_codes_left"] == 9
    assert again.status_code == 401
    assert renewed.status_code == 200
    assert old.status_code == 401
    assert new.status_code == 200


def test_enrolment_gives_secret_address_and_picture_and_ends_other_sessions(management: ManagementRoom) -> None:
    management.with_password("alice")
    other = management.client(login(management).get_json()["session_token"])
    client = management.client(login(management).get_json()["session_token"])

    begun = client.ask("POST", "/auth/mfa/enrol", {})
    told = begun.get_json()
    wrong = client.ask("POST", "/auth/mfa/confirm", {"mfa_code": "000000"})
    right = client.ask("POST", "/auth/mfa/confirm", {"mfa_code": now_of(management, pyotp.TOTP(told["secret"]))})

    assert told["otpauth_uri"].startswith("otpauth://totp/")
    assert told["qr_svg"].startswith("<svg")
    assert "<script" not in told["qr_svg"]
    assert wrong.status_code == 401
    assert right.status_code == 200
    assert len(right.get_json()["recovery_codes"]) == 10
    assert other.ask("GET", "/auth/me").status_code == 401
    assert client.ask("GET", "/auth/me").status_code == 401
    assert management.client(right.get_json()["session_token"]).ask("GET", "/auth/me").status_code == 200
    intents = [event.clear["act"] for event in management.small.journal.of(AuditType.ADMIN_INTENT)]
    assert intents == ["mfa.begin", "mfa.confirm", "mfa.confirm"]


def test_an_administrator_must_set_up_a_second_factor_before_anything_else(management: ManagementRoom) -> None:
    management.with_password("alice", "admin")

    owed = login(management)
    told = owed.get_json()
    pending = management.client(told["pending_token"])
    shut = pending.ask("GET", "/api/v1/users")
    begun = pending.ask("POST", "/auth/mfa/enrol", {}).get_json()
    confirmed = pending.ask(
        "POST", "/auth/mfa/confirm", {"mfa_code": now_of(management, pyotp.TOTP(begun["secret"]))}
    ).get_json()

    assert owed.status_code == 401
    assert told["requires_enrolment"] is True
    assert shut.status_code == 401
    assert management.client(confirmed["session_token"]).ask("GET", "/api/v1/users").status_code == 200


def test_a_step_up_is_asked_for_and_satisfied_and_changes_the_token(management: ManagementRoom) -> None:
    client, app, _ = enrolled(management)
    management.room.clock.advance(301)

    stale = client.ask("POST", "/api/v1/me/keys", {"name": "k"})
    stepped = client.ask("POST", "/auth/mfa/step-up", {"mfa_code": next_of(management, app)})
    fresh = management.client(stepped.get_json()["session_token"])

    assert code_of(stale) == "step_up_required"
    assert stepped.status_code == 200
    assert client.ask("GET", "/auth/me").status_code == 401
    assert fresh.ask("POST", "/api/v1/me/keys", {"name": "k"}).status_code == 201


def test_without_a_second_factor_there_is_no_step_up(management: ManagementRoom) -> None:
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])

    answer = client.ask("POST", "/auth/mfa/step-up", {"mfa_code": "000000"})

    assert answer.status_code == 403
    assert code_of(answer) == "second_factor_missing"


# --- passwords --------------------------------------------------------------------------------------------------------


def test_a_new_password_ends_every_session_but_the_new_one(management: ManagementRoom) -> None:
    management.with_password("alice")
    other = management.client(login(management).get_json()["session_token"])
    client = management.client(login(management).get_json()["session_token"])

    changed = client.ask("POST", "/auth/password", {"old_password": PASSWORD, "new_password": NEW_PASSWORD})

    assert changed.status_code == 200
    assert client.ask("GET", "/auth/me").status_code == 401
    assert other.ask("GET", "/auth/me").status_code == 401
    assert management.client(changed.get_json()["session_token"]).ask("GET", "/auth/me").status_code == 200
    assert login(management).status_code == 401
    assert login(management, password=NEW_PASSWORD).status_code == 200
    results = management.small.journal.of(AuditType.ADMIN_RESULT)
    assert [(each.event, each.clear["ok"]) for each in results] == [(EventName.PASSWORD_CHANGED, True)]


def test_a_password_change_that_cannot_be_recorded_is_not_made(management: ManagementRoom) -> None:
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])
    management.small.journal.refusal = stop_recording_at(AuditType.ADMIN_INTENT)

    changed = client.ask("POST", "/auth/password", {"old_password": PASSWORD, "new_password": NEW_PASSWORD})

    assert changed.status_code == 503
    assert client.ask("GET", "/auth/me").status_code == 200
    assert login(management).status_code == 200


def test_the_old_password_must_be_right_and_the_new_one_good(management: ManagementRoom) -> None:
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])

    wrong = client.ask("POST", "/auth/password", {"old_password": "wrong", "new_password": NEW_PASSWORD})
    weak = client.ask("POST", "/auth/password", {"old_password": PASSWORD, "new_password": "short"})

    assert (wrong.status_code, code_of(wrong)) == (401, "login_failed")
    assert (weak.status_code, code_of(weak)) == (400, "password_refused")
    assert client.ask("GET", "/auth/me").status_code == 200


def test_a_one_time_token_sets_a_password_once(management: ManagementRoom) -> None:
    user = management.person("alice", "member")
    room = management.room
    token = room.database.run(lambda session: room.accounts.start_setup(session, "alice")).secret

    first = management.client().ask("POST", "/auth/setup", {"token": token, "password": PASSWORD})
    again = management.client().ask("POST", "/auth/setup", {"token": token, "password": NEW_PASSWORD})

    assert first.status_code == 200
    assert (again.status_code, code_of(again)) == (400, "setup_token_invalid")
    assert login(management).status_code == 200
    (intent,) = management.small.journal.of(AuditType.ADMIN_INTENT)
    assert (intent.event, intent.clear["subject"]) == (EventName.PASSWORD_CHANGED, user.id)


def test_no_secret_reaches_the_log_or_the_record(management: ManagementRoom) -> None:
    with LogCapture() as logs:
        client, app, codes = enrolled(management)
        management.room.clock.advance(30)
        code = now_of(management, app)
        login(management, mfa_code=code)
        login(management, recovery_code=codes[0])
        client.ask("POST", "/auth/password", {"old_password": PASSWORD, "new_password": NEW_PASSWORD})

    written = str([vars(line) for line in logs.records])
    written += str([(event.clear, event.body) for event in management.small.journal.handed_over])
    assert client.secret is not None
    for secret in (PASSWORD, NEW_PASSWORD, app.secret, codes[0], codes[0].replace("-", ""), client.secret, "slp_sess_"):
        assert secret not in written


# --- logging out, sessions --------------------------------------------------------------------------------------------


def test_logging_out_ends_the_session_and_is_on_record_first(management: ManagementRoom) -> None:
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])
    management.small.journal.refusal = stop_recording_at(AuditType.AUTH_EVENT)

    unrecorded = client.ask("POST", "/auth/logout", {})
    management.small.journal.refusal = lambda _event: None
    still = client.ask("GET", "/auth/me")
    recorded = client.ask("POST", "/auth/logout", {})

    assert unrecorded.status_code == 503
    assert still.status_code == 200
    assert recorded.status_code == 200
    assert client.ask("GET", "/auth/me").status_code == 401
    assert (EventName.LOGOUT, "logout") in events(management)


def test_ones_own_sessions_are_listed_and_ended_and_nobody_elses(management: ManagementRoom) -> None:
    management.with_password("alice")
    bob = management.person("bob", "member")
    bobs = management.session_of(bob)
    bobs_session = management.room.database.run(lambda session: management.house.sessions.find(session, bobs))
    assert bobs_session is not None
    first = management.client(login(management).get_json()["session_token"])
    second = management.client(login(management).get_json()["session_token"])

    items = first.ask("GET", "/auth/sessions").get_json()["items"]
    other = next(item["id"] for item in items if not item["current"])
    foreign = first.ask("DELETE", f"/auth/sessions/{bobs_session.id}")
    ended = first.ask("DELETE", f"/auth/sessions/{other}")

    assert [item["current"] for item in items].count(True) == 1
    assert foreign.status_code == 404
    assert ended.status_code == 200
    assert second.ask("GET", "/auth/me").status_code == 401
    assert management.client(bobs).ask("GET", "/auth/me").status_code == 200


# --- the browser ------------------------------------------------------------------------------------------------------


def test_a_browser_gets_a_cookie_and_no_token(management: ManagementRoom) -> None:
    management.with_password("alice")

    answer = login(management, cookie=True)

    (session_cookie,) = [text for text in answer.headers.getlist("Set-Cookie") if text.startswith("slp_sid=")]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(session_cookie.split("; "))
    assert "session_token" not in answer.get_json()
    assert answer.get_json()["csrf_token"]
    assert "session=" not in str(answer.headers.getlist("Set-Cookie"))


@pytest.mark.parametrize(
    "base",
    [
        {"REMOTE_ADDR": "192.0.2.7"},
        {"REMOTE_ADDR": "", "HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"},
    ],
)
def test_wherever_anything_else_than_loopback_is_involved_the_cookie_is_secure_and_of_this_host(
    management: ManagementRoom, base: dict[str, str]
) -> None:
    management.with_password("alice")

    answer = management.client().ask("POST", "/auth/login", {**LOGIN, "cookie": True}, environ_base=base)

    (cookie,) = [text for text in answer.headers.getlist("Set-Cookie") if "slp_sid" in text]
    assert cookie.startswith("__Host-slp_sid=slp_sess_")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    plain = cookie_of(answer, "__Host-slp_sid").replace("__Host-", "")
    assert management.client().ask("GET", "/auth/me", headers={"Cookie": plain}, environ_base=base).status_code == 401


def test_in_production_the_cookie_is_secure_on_loopback_too(tmp_path: Path) -> None:
    settings = ROOMY.model_copy(update={"server": ROOMY.server.model_copy(update={"profile": "production"})})
    production = make_management_room(tmp_path, settings)
    production.with_password("alice")

    answer = production.client().ask("POST", "/auth/login", {**LOGIN, "cookie": True})
    production.room.database.close()

    assert all("; Secure" in text and text.startswith("__Host-") for text in answer.headers.getlist("Set-Cookie"))


def test_a_change_with_a_cookie_takes_the_token_of_that_session(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, token = browser(management)
    _, others = browser(management)
    client = management.client()

    refused = [
        client.ask("POST", "/auth/logout", {}, headers=cookie),
        client.ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": "x"}),
        client.ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": others}),
        client.ask(
            "POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": token, "Origin": "https://evil.test"}
        ),
        client.ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": token, "Origin": "null"}),
        client.ask(
            "POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": token, "Sec-Fetch-Site": "cross-site"}
        ),
        client.ask(
            "POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": token, "Sec-Fetch-Site": "same-site"}
        ),
    ]
    read = client.ask("GET", "/auth/me", headers=cookie)
    fetched = client.ask("GET", "/auth/csrf", headers=cookie).get_json()["csrf_token"]
    own = {"X-CSRF-Token": fetched, "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    done = client.ask("POST", "/auth/logout", {}, headers={**cookie, **own})

    assert [(answer.status_code, code_of(answer)) for answer in refused] == [(403, "csrf_failed")] * 7
    assert read.status_code == 200
    assert done.status_code == 200
    assert client.ask("GET", "/auth/me", headers=cookie).status_code == 401


def test_a_page_that_was_open_when_the_secret_changed_goes_on(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, token = browser(management)
    other = make_management_app(
        make_web_house(management.small, Settings()),
        replace(management.house, csrf_key=b"n" * 32, previous_csrf_keys=(management.house.csrf_key,)),
    )
    client = ManagementClient(other.test_client(use_cookies=False))
    changed = ("A" if token[0] != "A" else "B") + token[1:]

    refused = client.ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": changed})
    fetched = client.ask("GET", "/auth/csrf", headers=cookie).get_json()["csrf_token"]
    there = management.client().ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": fetched})
    done = client.ask("POST", "/auth/logout", {}, headers={**cookie, "X-CSRF-Token": token})

    assert [(answer.status_code, code_of(answer)) for answer in (refused, there)] == [(403, "csrf_failed")] * 2
    assert done.status_code == 200


def test_a_form_of_another_site_changes_nothing(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, token = browser(management)

    answer = management.client().flask.post("/auth/logout", data={"csrf_token": token}, headers=cookie)

    assert answer.status_code in {401, 415}
    assert management.client().ask("GET", "/auth/me", headers=cookie).status_code == 200


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.test"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_site_logs_nobody_in(management: ManagementRoom, headers: dict[str, str]) -> None:
    management.with_password("alice")

    answer = management.client().ask("POST", "/auth/login", {**LOGIN, "cookie": True}, headers=headers)

    assert (answer.status_code, code_of(answer)) == (403, "csrf_failed")
    assert "Set-Cookie" not in answer.headers


def test_a_session_is_never_fixed_before_the_login(management: ManagementRoom) -> None:
    management.with_password("alice")
    fixed = {"Cookie": "slp_sid=slp_sess_" + "A" * 43}

    before = management.client().ask("GET", "/auth/me", headers=fixed)
    answer = management.client().ask("POST", "/auth/login", {**LOGIN, "cookie": True}, headers=fixed)
    first = {"Cookie": cookie_of(answer)}
    again = management.client().ask("POST", "/auth/login", {**LOGIN, "cookie": True}, headers=first)

    assert before.status_code == 401
    assert cookie_of(answer) != fixed["Cookie"]
    assert management.client().ask("GET", "/auth/me", headers=fixed).status_code == 401
    assert cookie_of(again) != first["Cookie"]
    assert management.client().ask("GET", "/auth/me", headers=first).status_code == 401


def test_a_cookie_is_no_header_and_a_token_no_cookie(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, _ = browser(management)
    token = login(management).get_json()["session_token"]
    secret = cookie["Cookie"].partition("=")[2]

    assert management.client(secret).ask("GET", "/auth/me").status_code == 401
    assert management.client().ask("GET", "/auth/me", headers={"Cookie": f"slp_sid={token}"}).status_code == 401
    twice = {"Cookie": f"{cookie['Cookie']}; slp_sid={token}"}
    assert management.client().ask("GET", "/auth/me", headers=twice).status_code == 401


def test_a_browser_sets_up_its_second_factor_and_steps_up_with_new_cookies(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, token = browser(management)
    client = management.client()

    begun = client.ask("POST", "/auth/mfa/enrol", {}, headers={**cookie, "X-CSRF-Token": token}).get_json()
    app = pyotp.TOTP(begun["secret"])
    confirmed = client.ask(
        "POST", "/auth/mfa/confirm", {"mfa_code": now_of(management, app)}, headers={**cookie, "X-CSRF-Token": token}
    )
    new = {"Cookie": cookie_of(confirmed), "X-CSRF-Token": confirmed.get_json()["csrf_token"]}
    stepped = client.ask("POST", "/auth/mfa/step-up", {"mfa_code": next_of(management, app)}, headers=new)

    assert confirmed.status_code == 200
    assert stepped.status_code == 200
    assert cookie_of(stepped) not in {cookie["Cookie"], new["Cookie"]}
    assert client.ask("GET", "/auth/me", headers=new).status_code == 401


# --- what else is no way in -------------------------------------------------------------------------------------------


def test_a_plain_api_key_does_not_manage(management: ManagementRoom) -> None:
    management.person("alice", "owner")
    key = management.room.make_key("alice")

    for path in ("/api/v1/me", "/auth/me"):
        answer = management.client(key.secret).ask("GET", path)
        assert (answer.status_code, code_of(answer)) == (401, "key_not_for_management")


def test_an_administration_key_is_held_to_its_own_addresses(management: ManagementRoom) -> None:
    management.person("alice", "admin")
    key = management.room.make_key("alice", kind="adm", allowed_addresses=["192.0.2.0/24"])
    client = management.client(key.secret)

    elsewhere = client.ask("GET", "/api/v1/me")
    there = client.ask("GET", "/api/v1/me", environ_base={"REMOTE_ADDR": "192.0.2.9"})

    assert (elsewhere.status_code, code_of(elsewhere)) == (403, "address_not_allowed")
    assert there.status_code == 200


def test_an_administration_key_acts_as_its_user_but_never_steps_up(management: ManagementRoom) -> None:
    management.person("alice", "admin")
    key = management.room.make_key("alice", kind="adm")
    client = management.client(key.secret)

    me = client.ask("GET", "/api/v1/me").get_json()
    listed = client.ask("GET", "/api/v1/users")
    made = client.ask("POST", "/api/v1/projects", {"name": "By a tool"})
    dangerous = client.ask("POST", "/api/v1/users", {"username": "eve", "email": "eve@example.org"})
    own = client.ask("GET", "/auth/me")
    management.room.revoke(key)
    management.room.clock.advance(10)

    assert (me["username"], me["by"]) == ("alice", "key")
    assert listed.status_code == 200
    assert made.status_code == 201
    assert (dangerous.status_code, code_of(dangerous)) == (403, "step_up_required")
    assert own.status_code == 403
    assert client.ask("GET", "/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YTpi"}, {"X-Session-Token": "slp_sess_"},
        {"Authorization": "Bearer slp_sess_" + "A" * 43}, {"Authorization": "Bearer slp_adm_x"},
        {"X-Session-Token": "a", "Authorization": "Bearer b"}, {"Cookie": "slp_sid=x"}, {"Cookie": "slp_sid=' OR 1=1"},
    ],
)  # fmt: skip
def test_what_is_no_credential_of_ours_is_401(management: ManagementRoom, headers: dict[str, str]) -> None:
    answer = management.client().ask("GET", "/api/v1/me", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-Id"].startswith("exc_")


def test_a_token_in_the_url_is_refused(management: ManagementRoom) -> None:
    management.with_password("alice")
    client = management.client(login(management).get_json()["session_token"])

    answer = client.ask("GET", f"/auth/me?token={client.secret}")

    assert (answer.status_code, code_of(answer)) == (401, "api_key_in_url")


def test_address_lists_hold_and_agent_lists_do_not(tmp_path: Path) -> None:
    lists = {"blocked_addresses": ("203.0.113.0/24",), "blocked_agents": ("curl",)}
    settings = ROOMY.model_copy(update={"admission": ROOMY.admission.model_copy(update=lists)})
    management = make_management_room(tmp_path, settings)
    management.small.admission.gate = type(management.small.admission.gate)(settings.admission)
    management.with_password("alice")

    blocked = management.client().ask("POST", "/auth/login", LOGIN, environ_base={"REMOTE_ADDR": "203.0.113.9"})
    agent = management.client().ask("POST", "/auth/login", LOGIN, headers={"User-Agent": "curl/8.5"})
    management.room.database.close()

    assert (blocked.status_code, code_of(blocked)) == (403, "address_blocked")
    assert agent.status_code == 200
    (record,) = [event for event in management.small.journal.handed_over if event.event is EventName.BLOCKED_IP]
    assert record.clear["rule"] == "blocked_ips:203.0.113.0/24"


def test_a_get_changes_nothing(management: ManagementRoom) -> None:
    management.with_password("alice")
    cookie, _ = browser(management)
    recorded = len(management.small.journal.handed_over)

    for path in ("/auth/login", "/auth/logout", "/auth/password", "/auth/mfa", "/auth/mfa/enrol"):
        assert management.client().ask("GET", path, headers=cookie).status_code == 405

    assert management.client().ask("GET", "/auth/me", headers=cookie).status_code == 200
    assert len(management.small.journal.handed_over) == recorded
