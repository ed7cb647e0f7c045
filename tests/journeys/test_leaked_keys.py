"""A key of ours in a URL or a prompt, on the whole product: its prompt stays here, and the key is quarantined."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import ROOMY
from tests.support.clients import ask
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy


def test_a_leaked_key_is_quarantined_and_its_prompt_never_leaves(short_folder: Path) -> None:
    with Provider() as provider:
        settings = {**ROOMY, "LLM_API_URL": provider.base_url, "LLM_API_KEY": "x", "WORKERS": "1"}
        with RunningProxy(short_folder / "leaks", settings) as proxy:
            owner = proxy.create_user()
            asks, in_url, in_prompt, own = (proxy.create_api_key(owner) for _ in range(4))
            told = [
                ask(proxy, "POST", f"/chat?key={in_url}", key=asks, body={"prompt": "Hi."}),
                ask(proxy, "POST", "/chat", key=asks, body={"prompt": f"Use {in_prompt}, please."}),
                ask(
                    proxy,
                    "POST",
                    "/v1/chat/completions",
                    key=own,
                    body=json.dumps(_chat(own, stream=True)).replace("slp_", "\\u0073l\\u0070_").encode(),
                ),
            ]
            refused = ask(proxy, "POST", "/chat", key=own, body={"prompt": "Hi."})
            clean = ask(proxy, "POST", "/chat", key=asks, body={"prompt": f"Use {in_prompt[:-1]}, please."})
            listed = json.loads(proxy.command("list-api-keys", "--json").stdout)
            events = proxy.command("audit", "cat").stdout
            metrics = ask(proxy, "GET", "/metrics").body.decode()
            log = proxy.log_text()
        chats = len(provider.chats)

    assert [(answer.status, answer.error_code) for answer in told] == [
        (401, "api_key_in_url"), (400, "api_key_in_body"), (400, "api_key_in_body"),
    ]  # fmt: skip
    assert (refused.status, refused.error_code) == (401, "api_key_quarantined")
    assert (clean.status, chats) == (200, 1)
    reasons = {key["kid"]: (key["status"], key["quarantine_reason"]) for key in listed}
    assert [reasons[key.split("_")[2]] for key in (asks, in_url, in_prompt, own)] == [
        ("active", None),
        ("quarantined", "found in a url"),
        ("quarantined", "found in a body"),
        ("quarantined", "found in a body"),
    ]
    for key in (in_url, in_prompt, own):
        kid, secret = key.split("_")[2:]
        assert secret not in events + log + metrics
        records = [json.loads(line) for line in events.splitlines() if kid in line]
        kinds = {record["ty"] for record in records if record.get("ev") == "SECURITY_EVENT"}
        assert kinds >= {"admin.intent", "admin.result", "llm.refused"}
    assert "leaked API key quarantined" in log
    assert 'slp_leaked_keys_total{where="body"} 2.0' in metrics
    assert 'slp_leaked_keys_total{where="url"} 1.0' in metrics


def _chat(text: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": "any", "stream": stream, "messages": [{"role": "user", "content": f"x {text} y"}]}
