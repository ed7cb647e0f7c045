"""A session's token at the data plane's doors: in two headers, never in a cookie, never in the URL."""

from __future__ import annotations

import orjson
import pytest

from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.secret_values import derive_key
from secure_llm_proxy.identity import OpenedSession, Sessions
from secure_llm_proxy.settings import load_settings
from tests.support.clients import ask, records_of
from tests.support.running_proxy import RunningProxy


@pytest.fixture
def opened(proxy: RunningProxy) -> OpenedSession:
    """What a sign-in leaves in the database of the running product."""
    username = proxy.create_user()
    settings = load_settings(proxy.environment, env_file=proxy.home / "none")
    database = Database(settings.database)
    sessions = Sessions(
        settings.identity, SystemClock(), pepper=derive_key(proxy.environment["SECRET_KEY"], "slp/session-pepper")
    )
    listed = proxy.command("list-users", "--json").stdout
    (user_id,) = [user["id"] for user in orjson.loads(listed) if user["username"] == username]
    try:
        return database.run(
            lambda session: sessions.open(
                session,
                user_id,
                kind="token",
                state="active",
                address="127.0.0.1",
                agent="tests/1",
                second_factor_at=None,
            )
        )
    finally:
        database.close()


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("header", ["Authorization", "X-Session-Token"])
def test_a_session_asks_models_like_a_key(proxy: RunningProxy, opened: OpenedSession, path: str, header: str) -> None:
    value = f"Bearer {opened.secret}" if header == "Authorization" else opened.secret
    body = {"messages": [{"role": "user", "content": "Is all well?"}]}

    answer = ask(proxy, "POST", path, body=body, headers={header: value})

    assert answer.status == 200
    started = records_of(proxy, answer.headers["x-request-id"])[0]
    assert (started["ak"], started["usr"]) == (opened.session.id, opened.session.user_id)
    assert ask(proxy, "GET", "/v1/models", headers={header: value}).status == 200


def test_a_cookie_means_nothing_there(proxy: RunningProxy, opened: OpenedSession) -> None:
    names = ("__Host-slp_sid", "session", "X-Session-Token")
    cookie = "; ".join(f"{name}={opened.secret}" for name in names)

    for path in ("/chat", "/v1/chat/completions"):
        answer = ask(proxy, "POST", path, body={"messages": []}, headers={"Cookie": cookie})

        assert (answer.status, answer.error_code) == (401, "missing_api_key")


def test_an_ended_session_is_refused(proxy: RunningProxy, opened: OpenedSession) -> None:
    proxy.command("end-session", opened.session.id, "--yes")

    answer = ask(proxy, "POST", "/chat", body={"prompt": "Hello"}, headers={"X-Session-Token": opened.secret})

    assert (answer.status, answer.error_code) == (401, "session_invalid")
    assert str(answer.error["message"]).startswith("Incorrect API key provided")
    assert opened.secret not in answer.body.decode()


def test_a_session_in_the_url_is_refused(proxy: RunningProxy, opened: OpenedSession) -> None:
    answer = ask(proxy, "POST", f"/chat?token={opened.secret}", body={"prompt": "Hello"})

    assert (answer.status, answer.error_code) == (401, "api_key_in_url")
    assert opened.secret not in proxy.log_text()
