"""The whole product on a disk without room: nothing is served, everybody who should know does, and it says what to do."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import ROOMY
from tests.support.clients import ask
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy


def test_without_room_requests_are_refused_at_once_and_health_tells_why(provider: Provider, short_folder: Path) -> None:
    home = short_folder / "no-room"
    with RunningProxy(home, {**ROOMY, "LLM_API_URL": provider.base_url}) as proxy:
        key = proxy.create_api_key()
        assert ask(proxy, "POST", "/chat", key=key, body={"prompt": "before"}).status == 200
        ready = ask(proxy, "GET", "/health/ready")
        status = ask(proxy, "GET", "/security/status").json["audit"]
        metrics = ask(proxy, "GET", "/metrics").body.decode()
        proxy.stop()
        provider.clear()

        proxy.environment["AUDIT_FREE_PERCENT_MIN"] = "99.99"
        proxy.start()
        refused = ask(proxy, "POST", "/chat", key=key, body={"prompt": "unrecorded"})
        full_ready = ask(proxy, "GET", "/health/ready")
        full_health = ask(proxy, "GET", "/health")
        full_status = ask(proxy, "GET", "/security/status").json
        change = proxy.command("create-user", "--username", "x", "--email", "x@example.org", "--generate", check=False)
        doctor = json.loads(proxy.command("doctor", "--json", check=False).stdout)
        sent = list(provider.chats)

    assert ready.status == 200
    assert {"disk": "ok", "evidence": "ok"}.items() <= _members(ready.json["dependencies"]).items()
    assert {"room": True, "anchored_off_host": False, "anchors": []}.items() <= _members(status).items()
    assert "slp_audit_has_room 1.0" in metrics
    assert "slp_audit_free_bytes" in metrics
    assert (refused.status, refused.error_code) == (503, "audit_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert sent == []
    assert full_ready.status == 503
    assert _members(full_ready.json["dependencies"])["disk"] == "unavailable"
    assert full_health.json["status"] == "degraded"
    assert "new requests are refused" in str(_members(full_status["troubles"])["disk"])
    assert _members(full_status["audit"])["room"] is False
    assert change.returncode != 0
    checks = {check["what"]: check for check in doctor}
    assert checks["disk"]["level"] == "FAILED"
    assert "AUDIT_DIR" in checks["disk"]["fix"]
    assert checks["audit anchors"]["level"] == "warning"
    assert "AUDIT_ANCHOR_SYSLOG" in checks["audit anchors"]["fix"]


def _members(found: object) -> dict[str, object]:
    assert isinstance(found, dict)
    return found
