"""Which doors there are, who may open them, and what stands outside of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from pydantic import SecretStr
from werkzeug.test import TestResponse

from secure_llm_proxy.identity import draw_api_key
from secure_llm_proxy.settings import (
    AdmissionSettings,
    IdentitySettings,
    LimitSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
)
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.leaks import LeakedKey
from secure_llm_proxy.web.doors import DOOR_OF, DOORS, GUARDS, Guard
from secure_llm_proxy.web.headers import SECURITY_HEADERS
from tests.support.house import KEY, LogCapture, SmallHouse, make_app, make_house

PLAIN = [door for door in DOORS if not door.guard.is_managements]
BEARER = {"Authorization": f"Bearer {KEY}"}
HELLO = {"messages": [{"role": "user", "content": "Hi."}]}
PROJECT = Path(__file__).parents[3]


def rules_of(app: Flask) -> set[tuple[str, str, str]]:
    return {
        (method, rule.rule, rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }


def error_of(answer: TestResponse) -> dict[str, object]:
    assert answer.content_type == "application/json"
    told = json.loads(answer.data)
    if told.get("type") == "error":
        # at Anthropic's doors
        assert set(told) == {"type", "error", "request_id"}
        assert told["request_id"] == answer.headers["request-id"] == answer.headers["X-Request-Id"]
        assert set(told["error"]) == {"message", "type", "param", "code", "details"}
    else:
        assert set(told) <= {"error", "retry_after"}
        assert set(told["error"]) == {"message", "type", "param", "code"}
    error: dict[str, object] = told["error"]
    return error


def assert_dressed(answer: TestResponse) -> None:
    """What every answer wears."""
    assert answer.headers["X-Request-Id"].startswith("exc_")
    for name, _ in SECURITY_HEADERS:
        assert len(answer.headers.getlist(name)) == 1, name
    assert "Set-Cookie" not in answer.headers


@pytest.fixture
def small() -> SmallHouse:
    return make_house()


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_route_is_in_the_table_and_every_door_of_the_table_is_a_route(small: SmallHouse) -> None:
    assert rules_of(make_app(small)) == {(door.method, door.path, door.endpoint) for door in PLAIN}


def test_the_table_names_each_endpoint_once() -> None:
    assert len(GUARDS) == len(DOOR_OF) == len(DOORS) == len({(door.method, door.path) for door in DOORS})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_endpoint_that_is_not_in_the_table_is_shut(small: SmallHouse, method: str) -> None:
    app = make_app(small)
    entered: list[str] = []

    @app.route("/forgotten", methods=["GET", "POST"])
    def forgotten() -> str:
        entered.append("entered")
        return "secret"

    answer = app.test_client().open("/forgotten", method=method, headers=BEARER)

    assert answer.status_code == 403
    assert error_of(answer)["code"] == "forbidden"
    assert entered == []
    assert_dressed(answer)


def test_a_static_folder_would_be_shut_too(small: SmallHouse) -> None:
    app = make_app(small)
    app.add_url_rule("/static/<path:filename>", endpoint="static", view_func=app.send_static_file)

    assert app.test_client().get("/static/x.js").status_code == 403


# --- what is outside --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/nowhere", "/v1", "/v1/", "/v1/chat", "/v1/moderations", "/chat/", "/health/", "//chat", "/chat//", "/CHAT",
     "/v1//models", "/v1/chat/completions/", "/../chat", "/chat;x=1", "/%2e%2e/etc/passwd", "/admin", "/.env",
     "/\x1b[2J", "/ä", "/%ff%fe"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_path_is_404_in_the_one_shape(small: SmallHouse, path: str, method: str) -> None:
    answer = make_app(small).test_client().open(path, method=method, headers=BEARER, json=HELLO)

    assert answer.status_code == 404, answer.data
    assert error_of(answer)["code"] == "not_found"
    assert str(error_of(answer)["message"]).isprintable()
    assert "Location" not in answer.headers
    assert small.effects == []
    assert_dressed(answer)


@pytest.mark.parametrize("door", PLAIN, ids=lambda door: door.endpoint)
@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GET\x00"]
)
def test_another_method_is_405_that_names_the_right_ones(small: SmallHouse, door: object, method: str) -> None:
    allowed, path = door.method, re.sub("<.*>", "small", door.path)  # type: ignore[attr-defined]
    if method == allowed:
        return

    answer = make_app(small).test_client().open(path, method=method)

    assert answer.status_code == 405, answer.data
    assert error_of(answer)["code"] == "method_not_allowed"
    assert sorted(answer.headers["Allow"].split(", ")) == sorted({"GET": ["GET", "HEAD"], "POST": ["POST"]}[allowed])
    assert small.effects == []
    assert_dressed(answer)


@pytest.mark.parametrize(
    "path", ["/health", "/api/health", "/health/live", "/health/ready", "/metrics", "/security/status"]
)
def test_head_is_get_without_its_body(small: SmallHouse, path: str) -> None:
    client = make_app(small).test_client()

    answer = client.head(path)

    assert answer.status_code == client.get(path).status_code == 200
    assert answer.data == b""
    assert_dressed(answer)


def test_head_of_the_models_goes_through_the_corridor(small: SmallHouse) -> None:
    client = make_app(small).test_client()

    assert client.head("/v1/models").status_code == 401
    assert client.head("/v1/models", headers=BEARER).status_code == 200
    assert small.in_flight() == []
    assert small.journal.types() == [AuditType.REFUSED]


# --- guards -----------------------------------------------------------------------------------------------------------

ADDRESSES = {
    "127.0.0.1": (True, True), "127.9.9.9": (True, True), "::1": (True, True), "::ffff:127.0.0.1": (True, True),
    "10.1.2.3": (True, False), "172.16.0.1": (True, False), "172.31.255.255": (True, False), "192.168.7.7": (True, False),
    "fd00::1": (True, False), "::ffff:10.0.0.1": (True, False), "172.32.0.1": (False, False), "192.0.2.1": (False, False),
    "8.8.8.8": (False, False), "2001:db8::1": (False, False), "169.254.169.254": (False, False), "fe80::1": (False, False),
    "0.0.0.0": (False, False),  # noqa: S104  nobody listens
    "::": (False, False), "nonsense": (False, False), "100.64.0.1": (False, False),
}  # fmt: skip


@pytest.mark.parametrize(("address", "inside"), [(a, inside) for a, (inside, _) in ADDRESSES.items()])
def test_the_security_status_is_for_internal_networks(small: SmallHouse, address: str, inside: bool) -> None:  # noqa: FBT001
    answer = make_app(small).test_client().get("/security/status", environ_base={"REMOTE_ADDR": address})

    assert answer.status_code == (200 if inside else 403)
    if not inside:
        assert error_of(answer)["code"] == "forbidden"


@pytest.mark.parametrize(("address", "loopback"), [(a, loopback) for a, (_, loopback) in ADDRESSES.items()])
def test_metrics_are_for_loopback_or_the_token(small: SmallHouse, address: str, loopback: bool) -> None:  # noqa: FBT001
    settings = Settings(telemetry=TelemetrySettings(metrics_token=SecretStr("the-token")))
    with_token, without_token = make_app(small, settings).test_client(), make_app(small).test_client()
    base = {"REMOTE_ADDR": address}

    right = with_token.get("/metrics", environ_base=base, headers={"Authorization": "Bearer the-token"})
    assert right.status_code == 200
    for given in (
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        "",
        "the-toke",
        "Basic the-token",
        "Bearer the-tokenx",
        "Bearer ä",
    ):
        wrong = with_token.get("/metrics", environ_base=base, headers={"Authorization": given} if given else {})
        assert wrong.status_code == (200 if loopback else 401), given
        unset = without_token.get("/metrics", environ_base=base, headers={"Authorization": given} if given else {})
        assert unset.status_code == (200 if loopback else 401), given


def test_a_forwarded_address_is_believed_from_a_trusted_proxy_only(small: SmallHouse) -> None:
    trusting = Settings(admission=AdmissionSettings(trusted_proxies=("192.0.2.0/24",)))
    forged = {"X-Forwarded-For": "127.0.0.1"}
    outside = {"REMOTE_ADDR": "192.0.2.1"}

    assert make_app(small).test_client().get("/metrics", headers=forged, environ_base=outside).status_code == 401
    assert (
        make_app(small, trusting).test_client().get("/metrics", headers=forged, environ_base=outside).status_code == 200
    )
    # Behind a unix socket the peer is empty, and the proxy's word counts.
    unix = {"REMOTE_ADDR": ""}
    far = {"X-Forwarded-For": "127.0.0.1, 198.51.100.7"}
    assert make_app(small).test_client().get("/metrics", headers=far, environ_base=unix).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/api/health", "/health/live", "/health/ready"])
def test_health_is_open_to_everybody_even_to_blocked_agents(path: str) -> None:
    settings = Settings(admission=AdmissionSettings(blocked_addresses=("0.0.0.0/0",), blocked_agents=("*",)))
    client = make_app(make_house(admission=settings.admission), settings).test_client()

    answer = client.get(path, headers={"User-Agent": "curl/8.5"}, environ_base={"REMOTE_ADDR": "203.0.113.9"})

    assert answer.status_code == 200
    assert_dressed(answer)


def test_health_tells_states_and_no_reasons(small: SmallHouse) -> None:
    app = make_app(
        small, troubles={"database": lambda: "canary-5c1e: no route to host db.internal", "audit": lambda: None}
    )
    client = app.test_client()

    health, ready = client.get("/health"), client.get("/health/ready")
    api, status = client.get("/api/health"), client.get("/security/status")

    assert health.get_json()["status"] == "degraded"
    assert (health.status_code, ready.status_code) == (200, 503)
    assert ready.get_json()["dependencies"] == {"database": "unavailable", "audit": "ok"}
    for answer in (health, ready, api):
        assert b"canary" not in answer.data
    assert "canary" in status.get_json()["troubles"]["database"]


# --- host -------------------------------------------------------------------------------------------------------------

NAMES = Settings(limits=LimitSettings(server_names=("llm.example.test", "*.internal.test", "127.0.0.1", "[::1]")))


@pytest.mark.parametrize(
    "host",
    ["llm.example.test", "LLM.Example.Test", "llm.example.test:8443", "a.internal.test", "a.b.internal.test:1",
     "127.0.0.1", "127.0.0.1:5000", "[::1]", "[::1]:5000"],
)  # fmt: skip
def test_a_host_name_of_ours_is_answered(small: SmallHouse, host: str) -> None:
    assert make_app(small, NAMES).test_client().get("/metrics", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["10.0.0.7:5000", "localhost", "evil.test"])
@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/api/health"])
def test_health_is_told_under_any_host_name_because_balancers_ask_by_address(
    small: SmallHouse, path: str, host: str
) -> None:
    assert make_app(small, NAMES).test_client().get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.test", "llm.example.test.evil.test", "evil-llm.example.test", "internal.test", "llm.example.test@evil.test",
     "evil.test:443", "llm.example.test:evil.test", "llm.example.test:80:80", "[::2]", "::1", "127.0.0.2", "127.0.0.1.evil.test",
     "localhost", "llm.example.test.", "llm.example.test/evil", "llm.example.test evil", "llm.example.test,evil.test", " ", "[",
     "]", "[::1", "::1]", ":5000", "ä.internal.test", "a\tb", "%6clm.example.test", "llm.example.test\\evil", "a?b", "a#b"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/metrics", "/security/status", "/v1/models", "/nowhere"])
def test_another_host_name_is_refused_at_every_other_door(small: SmallHouse, host: str, path: str) -> None:
    answer = make_app(small, NAMES).test_client().get(path, headers={"Host": host, **BEARER})

    assert answer.status_code in {400, 421}, answer.data
    assert error_of(answer)["code"] in {"unknown_host", "malformed_request"}
    assert small.effects == (["post llm.refused"] if answer.status_code == 421 else [])
    assert_dressed(answer)


@pytest.mark.parametrize("host", ["anything.test", "a b", "[", "\xff", "x" * 5000, "evil.test:99999", "a@b"])
def test_without_a_list_any_host_is_answered_or_refused_and_never_a_defect(small: SmallHouse, host: str) -> None:
    answer = make_app(small).test_client().get("/health/live", headers={"Host": host})

    assert answer.status_code in {200, 400, 421}
    assert_dressed(answer)


# --- keys in odd places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [f"?key={KEY}", f"?api_key={KEY}&x=1", f"?{KEY}", f"?a=b&c={KEY}#frag", "?key=slp%5Flive%5Fabc", "?key=%73lp_live_abc",
     "?key=slp_adm_abc", "?key=slp_test_abc"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
def test_a_key_in_the_query_is_refused_and_recorded_though_the_header_is_right(
    small: SmallHouse, path: str, query: str
) -> None:
    with LogCapture() as logs:
        answer = make_app(small).test_client().post(path + query, json={**HELLO, "prompt": None}, headers=BEARER)

    assert answer.status_code == 401
    assert error_of(answer)["code"] == "api_key_in_url"
    (record,) = small.journal.handed_over
    assert record.event == "SECURITY_EVENT"
    assert KEY.encode() not in answer.data
    assert KEY not in str([vars(line) for line in logs.records])
    assert KEY not in str(record.clear)


def test_a_whole_key_of_ours_in_a_url_is_quarantined_however_it_is_escaped(small: SmallHouse) -> None:
    client = make_app(small).test_client()
    drawn = [draw_api_key() for _ in range(4)]
    for key in drawn:
        small.leaked_keys.keys[key.secret] = LeakedKey(key.kid, key.id, "usr_test", quarantined=False)
    plain, path, once, twice = (key.secret for key in drawn)
    escaped = "".join(f"%{ord(character):02x}" for character in once)

    for url in (
        f"/v1/models?key={plain}",
        f"/v1/models/{path}",
        f"/v1/models?x={escaped}",
        f"/v1/models?x={twice.replace('_', '%255F')}",
        f"/v1/models?x={plain[:-1]}",
    ):
        answer = client.get(url, headers=BEARER)
        assert error_of(answer)["code"] == "api_key_in_url", url

    assert small.leaked_keys.quarantined == {key.kid: "found in a url" for key in drawn}


def test_a_key_in_the_path_is_refused_too(small: SmallHouse) -> None:
    answer = make_app(small).test_client().get(f"/v1/models/{KEY}", headers=BEARER)

    assert error_of(answer)["code"] == "api_key_in_url"


@pytest.mark.parametrize(
    "query", [b"\xff\xfe", b"q=\xe4", b"%ff%fe", b"%", b"q=%zz", b"\x00", b"q=" + b"x" * 8000, b"&&==&"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/nowhere"])
def test_a_query_of_any_bytes_is_no_defect(small: SmallHouse, query: bytes, path: str) -> None:
    client = make_app(small).test_client()

    answer = client.get(path, headers=BEARER, environ_overrides={"QUERY_STRING": query.decode("latin-1")})

    assert answer.status_code == {"/v1/models": 200, "/health": 200, "/nowhere": 404}[path]


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"Authorization": f"Bearer   {KEY} "},
     {"X-API-Key": KEY}, {"x-api-key": f" {KEY} "}],
)  # fmt: skip
def test_a_key_is_taken_from_each_of_its_headers(small: SmallHouse, headers: dict[str, str]) -> None:
    assert make_app(small).test_client().get("/v1/models", headers=headers).status_code == 200


def test_the_operators_own_header_is_taken_too_and_before_the_usual_one(small: SmallHouse) -> None:
    client = make_app(small, Settings(identity=IdentitySettings(api_key_header="X-Our-Key"))).test_client()

    assert client.get("/v1/models", headers={"X-Our-Key": KEY}).status_code == 200
    assert client.get("/v1/models", headers={"X-Our-Key": KEY, "X-API-Key": "wrong"}).status_code == 200
    assert client.get("/v1/models", headers={"X-Our-Key": "wrong", "X-API-Key": KEY}).status_code == 401
    assert client.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": ""}, "missing_api_key"),
        ({"X-API-Key": " "}, "missing_api_key"),
        ({"Cookie": f"key={KEY}; Authorization=Bearer {KEY}"}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "missing_api_key"),
        ({"Authorization": "Bearer "}, "missing_api_key"),
        ({"Authorization": "wrong"}, "invalid_api_key"),
        ({"Authorization": f"Basic {KEY}"}, "invalid_api_key"),
        ({"Authorization": "Bearer wrong", "X-API-Key": KEY}, "invalid_api_key"),
        ({"Authorization": "Bearer \x7f\xe4\x01"}, "invalid_api_key"),
    ],
)
def test_no_key_and_a_wrong_key_are_told_apart(small: SmallHouse, headers: dict[str, str], code: str) -> None:
    answer = make_app(small).test_client().get("/v1/models", headers=headers)

    assert answer.status_code == 401
    assert error_of(answer)["code"] == code
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/nowhere", "/chat"])
def test_a_clients_own_id_is_echoed_and_a_hostile_one_dropped(small: SmallHouse, path: str) -> None:
    client = make_app(small).test_client()

    good = client.get(path, headers={"X-Correlation-ID": "their-id_1.2:3", **BEARER})
    assert good.headers["X-Correlation-ID"] == "their-id_1.2:3"

    for hostile in ("a b", "x" * 129, "ä", "a\x01b", "<script>", '"', "a;b", "\x1b[2J"):
        answer = client.get(path, environ_overrides={"HTTP_X_CORRELATION_ID": hostile}, headers=BEARER)
        assert "X-Correlation-ID" not in answer.headers
        assert_dressed(answer)


def test_the_request_id_is_ours_and_never_the_clients(small: SmallHouse) -> None:
    answer = make_app(small).test_client().get("/v1/models", headers={"X-Request-Id": "exc_forged", **BEARER})

    assert answer.headers["X-Request-Id"] != "exc_forged"
    assert len(answer.headers.getlist("X-Request-Id")) == 1


def test_hsts_is_for_production(small: SmallHouse) -> None:
    production = Settings(server=ServerSettings(profile="production"))

    assert "Strict-Transport-Security" in make_app(small, production).test_client().get("/health").headers
    assert "Strict-Transport-Security" not in make_app(small).test_client().get("/health").headers


def test_a_defect_in_a_view_is_a_bare_500_with_its_class_in_the_log(small: SmallHouse) -> None:
    def broken() -> str | None:
        raise KeyError("canary-5c1e")

    client = make_app(small, troubles={"database": broken}).test_client()

    with LogCapture() as logs:
        answer = client.get("/health")

    assert answer.status_code == 500
    assert error_of(answer) == {
        "message": "The proxy failed to handle this request.", "type": "internal_error", "param": None,
        "code": "internal_error",
    }  # fmt: skip
    (record,) = [record for record in logs.records if record.levelname == "ERROR"]
    assert vars(record)["detail"] == "KeyError"
    assert_dressed(answer)


# --- two of them ------------------------------------------------------------------------------------------------------


def test_two_apps_in_one_process_stand_side_by_side() -> None:
    one, other = make_house(models=("a",)), make_house(models=("b",))
    apps = [make_app(one), make_app(other)]

    told = [app.test_client().get("/v1/models", headers=BEARER).get_json()["data"][0]["id"] for app in apps]

    assert told == ["a", "b"]
    assert rules_of(apps[0]) == rules_of(apps[1])


PROGRAM = """
import json, sys
from secure_llm_proxy.application import create_app, stop_services
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.web.doors import DOORS
from secure_llm_proxy.web.hot_doors import HotDoors
apps = [create_app(load_settings()) for _ in range(2)]
lazy = not {"flask_login", "flask_wtf", "flask_limiter", "secure_llm_proxy.web.admin.frame"} & set(sys.modules)
rules = [
    sorted(
        (m, r.rule, r.endpoint)
        for each in (app, app.extensions["secure_llm_proxy.management"].application)
        for r in each.url_map.iter_rules()
        for m in r.methods - {"HEAD"}
    )
    for app in apps
]
answers = [app.test_client().get(path) for app in apps for path in ("/health/live", "/chat", "/health/live/", "/v1/models")]
for app in apps:
    stop_services(app)
print("TOLD", json.dumps({
    "doors": sorted((d.method, d.path, d.endpoint) for d in DOORS), "rules": rules,
    "answers": [answer.status_code for answer in answers],
    "cookies": any("Set-Cookie" in answer.headers for answer in answers),
    "hot": [isinstance(app.wsgi_app, HotDoors) for app in apps], "lazy": lazy,
}))
"""


@pytest.mark.parametrize("hot_path", ["true", "false"])
def test_create_app_twice_in_one_process_gives_the_doors_of_the_table_twice(short_folder: Path, hot_path: str) -> None:
    environment = {
        "HOT_PATH": hot_path,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "ENV_FILE": str(short_folder / "none.env"),
        "INSTANCE_DIR": str(short_folder / "two-apps"),
        "SECRET_KEY": "9f2c1d7be04a63588c1f0d2e7ab4963055ee12aa7c04bd81",
        "ENCRYPTION_KEY": "0b8e4d1f92c7a6350d4e8b1c7f29a6d35e0c4b8f17d2a693",
        "LLM_API_URL": "http://127.0.0.1:9/v1",
        "LLM_MODELS": "small",
    }

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, cwd=short_folder, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.rpartition("TOLD ")[2])
    assert told["rules"] == [told["doors"]] * 2
    assert told["answers"] == [200, 405, 404, 401] * 2
    assert told["cookies"] is False
    assert told["lazy"] is True
    assert told["hot"] == [hot_path == "true"] * 2


def test_every_guard_is_used() -> None:
    used: Iterator[Guard] = iter(GUARDS.values())

    assert set(used) == set(Guard)


def test_a_refusal_at_the_door_names_the_line_of_nginxs_log() -> None:
    small = make_house()
    settings = Settings(limits=LimitSettings(server_names=("llm.example.org",)))
    client = make_app(small, settings).test_client()
    edge = "0123456789abcdef0123456789abcdef"

    client.post("/v1/completions", headers={"X-Edge-Request-Id": edge}, environ_base={"REMOTE_ADDR": ""})
    client.post("/v1/completions", headers={"X-Edge-Request-Id": edge}, environ_base={"REMOTE_ADDR": "192.0.2.1"})

    assert [record.clear.get("eid") for record in small.journal.handed_over] == [edge, None]
