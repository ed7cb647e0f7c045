"""Run as a program inside the isolated network: start the product, use it as its users would, stop it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.clients import ask, sdk
from tests.support.running_proxy import RunningProxy


def main(folder: Path, provider_url: str) -> None:
    told: dict[str, object] = {}
    with RunningProxy(folder / "with-provider", {"LLM_API_URL": provider_url, "LLM_API_KEY": "sk-test"}) as proxy:
        key = proxy.create_api_key()
        told["chat"] = ask(proxy, "POST", "/chat", key=key, body={"prompt": "hi"}).status
        with sdk(proxy, key) as client:
            stream = client.chat.completions.create(
                model="test-model", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            told["stream"] = len(list(stream))
        told["refused"] = ask(proxy, "POST", "/chat", body={"prompt": "hi"}).status
        told["metrics"] = ask(proxy, "GET", "/metrics").status
        told["ready"] = ask(proxy, "GET", "/health/ready").status
        told["status"] = ask(proxy, "GET", "/security/status").status
        told["doctor"] = proxy.command("doctor", check=False).returncode
        told["verify"] = proxy.command("audit", "verify").returncode
    with RunningProxy(folder / "demo", {}) as proxy:
        key = proxy.create_api_key()
        told["demo"] = ask(proxy, "POST", "/chat", key=key, body={"prompt": "hi"}).status
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
