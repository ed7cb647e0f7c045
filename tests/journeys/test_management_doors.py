"""The management doors of the running product: a day of an administrator, attackers at its doors, and its own description."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pyotp
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, CheckFunction, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.clients import Answer, ask, audit_text, connection_to
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

PASSWORD = "correct horse battery staple 7"
ROOMY = {"LOGIN_RATE_LIMIT_PER_MINUTE": "10000", "MANAGEMENT_RATE_LIMIT_PER_MINUTE": "100000"}


@dataclass(frozen=True, slots=True)
class Administrator:
    """Somebody who has set up a second factor and logged in. Its code of the present half minute is not used yet."""

    username: str
    token: str
    app: pyotp.TOTP


@pytest.fixture(scope="module")
def managed(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    with RunningProxy(
        short_folder / "managed", {**ROOMY, "LLM_API_URL": provider.base_url, "LLM_API_KEY": "sk-x"}
    ) as proxy:
        yield proxy


@pytest.fixture
def administrator(managed: RunningProxy) -> Administrator:
    """One for each test: a second factor counts for five minutes, which another test may have used up."""
    return make_administrator(managed)


def make_administrator(proxy: RunningProxy) -> Administrator:
    """By a one-time token, as the first one of a deployment."""
    name = f"admin-{secrets.token_hex(4)}"
    made = proxy.command("create-admin", "--username", name, "--email", f"{name}@example.org", "--json")
    setup = ask(
        proxy, "POST", "/auth/setup", body={"token": json.loads(made.stdout)["setup_token"], "password": PASSWORD}
    )
    assert setup.status == 200, setup.body
    owed = ask(proxy, "POST", "/auth/login", body={"username": name, "password": PASSWORD})
    assert owed.status == 401
    assert owed.json["requires_enrolment"] is True
    pending = str(owed.json["pending_token"])
    begun = ask(proxy, "POST", "/auth/mfa/enrol", key=pending, body={})
    app = pyotp.TOTP(str(begun.json["secret"]))
    confirmed = _confirm(proxy, pending, app)
    if confirmed.status != HTTPStatus.OK:
        # The half minute ended just then, and the code was two of them old.
        confirmed = _confirm(proxy, pending, app)
    assert confirmed.status == 200, confirmed.body
    return Administrator(name, str(confirmed.json["session_token"]), app)


def _confirm(proxy: RunningProxy, pending: str, app: pyotp.TOTP) -> Answer:
    # The code of the half minute before is good, too, and leaves the present one for later.
    return ask(proxy, "POST", "/auth/mfa/confirm", key=pending, body={"mfa_code": app.at(int(time.time()) - 30)})


def managing(proxy: RunningProxy, who: Administrator, method: str, path: str, body: object | None = None) -> Answer:
    return ask(proxy, method, path, key=who.token, body=body)


def test_a_day_of_an_administrator(managed: RunningProxy, administrator: Administrator) -> None:
    project = managing(managed, administrator, "POST", "/api/v1/projects", {"name": f"P {secrets.token_hex(4)}"}).json
    name = f"dev-{secrets.token_hex(4)}"
    made = managing(
        managed, administrator, "POST", "/api/v1/users", {"username": name, "email": "dev@example.org"}
    ).json
    user = made["user"]
    assert isinstance(user, dict)
    members = f"/api/v1/projects/{project['id']}/members"
    assert managing(managed, administrator, "POST", members, {"user_id": user["id"]}).status == 201
    issued = managing(
        managed,
        administrator,
        "POST",
        "/api/v1/keys",
        {"user_id": user["id"], "name": "k", "project_id": project["id"]},
    ).json

    first = ask(managed, "POST", "/chat", key=str(issued["key"]), body={"prompt": "hi"})
    api_key = issued["api_key"]
    assert isinstance(api_key, dict)
    rotated = managing(managed, administrator, "POST", f"/api/v1/keys/{api_key['id']}/rotate", {"overlap_s": 0})
    old = ask(managed, "POST", "/chat", key=str(issued["key"]), body={"prompt": "hi"})
    new = ask(managed, "POST", "/chat", key=str(rotated.json["key"]), body={"prompt": "hi"})
    ask(managed, "POST", "/auth/setup", body={"token": made["setup_token"], "password": PASSWORD})
    login = ask(managed, "POST", "/auth/login", body={"username": name, "password": PASSWORD})
    as_person = ask(managed, "POST", "/chat", key=str(login.json["session_token"]), body={"prompt": "hi"})
    left = managing(managed, administrator, "DELETE", f"/api/v1/users/{user['id']}")
    gone = ask(managed, "POST", "/chat", key=str(rotated.json["key"]), body={"prompt": "hi"})

    assert first.status == 200
    assert rotated.status == 201
    assert old.status == 401
    assert new.status == 200
    assert as_person.status == 200
    assert left.status == 200
    assert gone.status == 401
    assert ask(managed, "GET", "/auth/me", key=str(login.json["session_token"])).status == 401
    acts = re.findall(r'"ty":"admin\.intent".*?"act":"([a-z._]+)"', audit_text(managed))
    assert {"project.create", "user.create", "project.add_member", "key.create", "key.rotate", "user.disable"} <= set(
        acts
    )
    assert managed.command("audit", "verify").returncode == 0


def test_one_code_sent_by_many_at_once_lets_one_in(managed: RunningProxy) -> None:
    who = make_administrator(managed)
    code = who.app.now()

    def try_it(_number: int) -> int:
        body = {"username": who.username, "password": PASSWORD, "mfa_code": code}
        return ask(managed, "POST", "/auth/login", body=body).status

    # Few: each costs a tenth of a second of Argon2. The identity room's tests send it by fifty.
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(try_it, range(6)))

    assert sorted(statuses) == [200, *[401] * 5]


def test_a_cookie_is_nothing_at_the_data_plane_and_a_plain_key_nothing_at_management(
    managed: RunningProxy, api_key_of_managed: str
) -> None:
    told, session_cookie = log_in_by_browser(managed, make_member(managed))
    cookie = {"Cookie": session_cookie.partition(";")[0]}

    assert session_cookie.startswith("slp_sid=")
    assert "session_token" not in told
    assert ask(managed, "GET", "/auth/me", headers=cookie).status == 200
    for method, path, body in (("POST", "/chat", {"prompt": "hi"}), ("GET", "/v1/models", None)):
        refused = ask(managed, method, path, headers=cookie, body=body)
        assert (refused.status, refused.error_code) == (401, "missing_api_key")
    refused = ask(managed, "GET", "/api/v1/me", key=api_key_of_managed)
    assert (refused.status, refused.error_code) == (401, "key_not_for_management")


def test_behind_nginx_a_browsers_cookie_is_bound_to_the_host_and_good_at_every_worker(
    clustered_proxy: RunningProxy,
) -> None:
    told, session_cookie = log_in_by_browser(clustered_proxy, make_member(clustered_proxy))
    cookie = {"Cookie": session_cookie.partition(";")[0]}
    own = {**cookie, "X-CSRF-Token": str(told["csrf_token"]), "Origin": clustered_proxy.base_url}

    seen = {ask(clustered_proxy, "GET", "/auth/me", headers=cookie).status for _ in range(9)}
    foreign = ask(clustered_proxy, "POST", "/auth/logout", headers={**own, "Origin": "https://evil.test"}, body={})
    without = ask(clustered_proxy, "POST", "/auth/logout", headers=cookie, body={})
    done = ask(clustered_proxy, "POST", "/auth/logout", headers=own, body={})

    assert session_cookie.startswith("__Host-slp_sid=slp_sess_")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(session_cookie.split("; "))
    assert seen == {200}
    assert (foreign.error_code, without.error_code) == ("csrf_failed", "csrf_failed")
    assert done.status == 200
    # At once: each request asks the database.
    assert {ask(clustered_proxy, "GET", "/auth/me", headers=cookie).status for _ in range(9)} == {401}


def make_member(proxy: RunningProxy) -> str:
    """A member with PASSWORD, set by a one-time token."""
    name = proxy.create_user()
    token = json.loads(proxy.command("reset-password", "--username", name, "--json").stdout)["setup_token"]
    assert ask(proxy, "POST", "/auth/setup", body={"token": token, "password": PASSWORD}).status == HTTPStatus.OK
    return name


def log_in_by_browser(proxy: RunningProxy, username: str) -> tuple[dict[str, object], str]:
    """The login's answer, and the session's `Set-Cookie`."""
    asked = json.dumps({"username": username, "password": PASSWORD, "cookie": True})
    with connection_to(proxy) as connection:
        connection.request("POST", "/auth/login", body=asked, headers={"Content-Type": "application/json"})
        login = connection.getresponse()
        told, set_cookies = json.loads(login.read()), login.headers.get_all("Set-Cookie") or []
    (session_cookie,) = [text for text in set_cookies if "slp_sid=" in text]
    return told, session_cookie


@pytest.fixture(scope="module")
def api_key_of_managed(managed: RunningProxy) -> str:
    return managed.create_api_key()


# --- its own description ----------------------------------------------------------------------------------------------


def test_the_product_answers_as_its_document_says(managed: RunningProxy, administrator: Administrator) -> None:
    document = managing(managed, administrator, "GET", "/api/v1/openapi.json").json
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    token = {"Authorization": f"Bearer {administrator.token}"}
    tried = []

    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _try_cases(operation.as_strategy(generation_mode=mode), managed.base_url, token, checks)
        tried.append(operation.label)

    paths = document["paths"]
    assert isinstance(paths, dict)
    assert len(tried) == sum(len(path) for path in paths.values())
    # Whatever was sent, the one who asked is still logged in.
    assert managing(managed, administrator, "GET", "/api/v1/me").status == 200


def _try_cases(
    cases: SearchStrategy[Case[Any]], base_url: str, headers: dict[str, str], checks: list[CheckFunction]
) -> None:
    @given(case=cases)
    @settings(
        max_examples=4,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answers_as_declared(case: Case[Any]) -> None:
        case.call_and_validate(base_url=base_url, headers=headers, checks=checks)

    answers_as_declared()
