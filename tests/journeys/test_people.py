"""From a one-time token to the kill switch: what an administrator, a user, an attacker and a running answer live through."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyotp
import pytest

from tests.journeys.test_kill_switch import PATIENCE_S, RunningStream, endless_answers
from tests.support.clients import Answer, ask, audit_lines, sdk
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy

PASSWORD = "an admin's long pass phrase 7"
OTHER_PASSWORD = "a user's long pass phrase, 15+"
ELSEWHERE = {"X-Forwarded-For": "203.0.113.66"}


@pytest.fixture(scope="module")
def deployment(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """Behind a proxy that may say where clients are."""
    settings = {"TRUSTED_PROXIES": "127.0.0.0/8", "LLM_API_URL": provider.base_url, "LLM_API_KEY": "sk-x"}
    with RunningProxy(short_folder / "people", settings) as proxy:
        yield proxy


def fresh_code(app: pyotp.TOTP, last: str) -> str:
    """A code that was not used yet: the next half minute's, when it has come."""
    until_s = time.monotonic() + 90
    while (code := app.now()) == last:
        assert time.monotonic() < until_s
        time.sleep(0.5)
    return code


def files_in(folder: Path) -> dict[Path, bytes]:
    """What every file holds. What runs meanwhile renames and removes some: those are not kept."""
    contents: dict[Path, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with suppress(FileNotFoundError):
                contents[path] = path.read_bytes()
    return contents


def log_in(proxy: RunningProxy, username: str, password: str, **more: object) -> Answer:
    return ask(proxy, "POST", "/auth/login", body={"username": username, "password": password, **more})


def test_people_keys_and_those_who_want_to_be_them(deployment: RunningProxy, provider: Provider) -> None:
    # given an administrator, made by a one-time token and enrolled at the first login
    made = deployment.command("create-admin", "--username", "root", "--email", "root@example.org", "--json")
    token = json.loads(made.stdout)["setup_token"]
    assert ask(deployment, "POST", "/auth/setup", body={"token": token, "password": PASSWORD}).status == 200
    pending = str(log_in(deployment, "root", PASSWORD).json["pending_token"])
    begun = ask(deployment, "POST", "/auth/mfa/enrol", key=pending, body={}).json
    app = pyotp.TOTP(str(begun["secret"]))
    code = app.now()
    enrolled = ask(deployment, "POST", "/auth/mfa/confirm", key=pending, body={"mfa_code": code})
    assert enrolled.status == 200
    assert ask(deployment, "POST", "/auth/setup", body={"token": token, "password": PASSWORD}).status == 400

    # the code that enrolled is used up
    assert log_in(deployment, "root", PASSWORD, mfa_code=code).status == 401
    code = fresh_code(app, code)
    admin = str(log_in(deployment, "root", PASSWORD, mfa_code=code).json["session_token"])

    def manage(method: str, path: str, body: object | None = None) -> dict[str, object]:
        answer = ask(deployment, method, f"/api/v1{path}", key=admin, body=body)
        assert answer.status < 300, answer.body
        return answer.json

    # when a project, a user and a key are made
    project = manage("POST", "/projects", {"name": "Search"})
    user = manage("POST", "/users", {"username": "ada", "email": "ada@example.org"})
    account = user["user"]
    assert isinstance(account, dict)
    manage("POST", f"/projects/{project['id']}/members", {"user_id": account["id"]})
    issued = manage("POST", "/keys", {"user_id": account["id"], "name": "search", "project_id": project["id"]})
    key, api_key = str(issued["key"]), issued["api_key"]
    assert isinstance(api_key, dict)
    setup = {"token": user["setup_token"], "password": OTHER_PASSWORD}
    assert ask(deployment, "POST", "/auth/setup", body=setup).status == 200

    # then the user asks models with the key, through the official SDK, and with a session
    with sdk(deployment, key) as client:
        completion = client.chat.completions.create(model="test-model", messages=[{"role": "user", "content": "hello"}])
    assert completion.choices[0].message.content
    session = str(log_in(deployment, "ada", OTHER_PASSWORD).json["session_token"])
    as_header = ask(deployment, "POST", "/chat", headers={"X-Session-Token": session}, body={"prompt": "hello"})
    assert as_header.status == 200

    # the key is rotated: both work for a while, then the new one alone
    rotated = manage("POST", f"/keys/{api_key['id']}/rotate", {"overlap_s": 6})
    successor = str(rotated["key"])
    assert ask(deployment, "POST", "/chat", key=successor, body={"prompt": "hello"}).status == 200
    until_s = time.monotonic() + 60
    while (old := ask(deployment, "POST", "/chat", key=key, body={"prompt": "hello"})).status == 200:
        assert time.monotonic() < until_s, "the old key never dies"
        time.sleep(0.5)
    assert (old.status, old.error_code) == (401, "api_key_expired")
    assert ask(deployment, "POST", "/chat", key=successor, body={"prompt": "hello"}).status == 200

    # an attacker elsewhere is locked out of the administrator's name, however it is written; its owner is not
    guesses = [
        ask(
            deployment,
            "POST",
            "/auth/login",
            headers=ELSEWHERE,
            body={"username": name, "password": f"a guess {secrets.token_hex(8)}"},
        )
        for name in ("root", "ROOT", " root ", "ｒｏｏｔ", "Root", "root", "root")  # noqa: RUF001  fullwidth on purpose
    ]
    assert {(guess.status, guess.error_code) for guess in guesses} == {(401, "login_failed")}
    assert "retry-after" in guesses[-1].headers
    right, code = {"username": "root", "password": PASSWORD}, fresh_code(app, code)
    from_there = ask(deployment, "POST", "/auth/login", headers=ELSEWHERE, body={**right, "mfa_code": code})
    assert (from_there.status, from_there.error_code) == (401, "login_failed")
    assert log_in(deployment, "root", PASSWORD, mfa_code=code).status == 200

    # the kill switch cuts a running stream, and whoever it names is refused until let go
    with endless_answers(provider):
        stream = RunningStream(deployment, successor)
        assert stream.begun.wait(PATIENCE_S)
        manage("POST", "/kill-switches", {"subject": account["id"], "reason": "an exercise"})
        assert stream.ended.wait(PATIENCE_S)
    assert stream.last_error["code"] == "killed"
    refused = ask(deployment, "POST", "/chat", key=successor, body={"prompt": "hello"})
    assert (refused.status, refused.error_code) == (403, "killed")

    # and all of it stands in a log that verifies
    assert deployment.command("audit", "verify").returncode == 0
    events = {str(line.get("ev")) for line in audit_lines(deployment)}
    assert {"LOGIN", "AUTHENTICATION_FAILED", "ADMIN_CHANGE", "CHAT_REQUEST"} <= events

    # while nothing that was secret is kept in clear anywhere (SECURITY A13)
    recovery = enrolled.json["recovery_codes"]
    assert isinstance(recovery, list)
    secrets_told = [PASSWORD, OTHER_PASSWORD, token, app.secret, pending, admin, session, key, successor, *recovery]
    kept = files_in(deployment.instance)
    assert any(b"ada@example.org" in content for content in kept.values()), "the database is among them"
    for secret in [*secrets_told, user["setup_token"], enrolled.json["session_token"]]:
        assert [str(path) for path, content in kept.items() if str(secret).encode() in content] == []
        assert str(secret) not in deployment.log_text()
