"""A client that stops reading holds nothing for ever."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.conftest import ROOMY
from tests.support.clients import ask
from tests.support.programs import wait_until
from tests.support.provider import Provider
from tests.support.running_proxy import RunningProxy


def test_a_client_that_stops_reading_is_hung_up_on_and_the_provider_stops(short_folder: Path) -> None:
    # more than the kernel holds for a connection (tcp_wmem is 4 MiB at most by default)
    with Provider(reply_text="word " * 2_400_000, stream_chunks=4_000) as provider:
        settings = {**ROOMY, "LLM_API_URL": provider.base_url, "SEND_TIMEOUT_S": "2"}
        with RunningProxy(short_folder / "slow-reader", settings) as proxy:
            key = proxy.create_api_key()
            ask(proxy, "GET", "/v1/models", key=key)
            body = json.dumps({"messages": [{"role": "user", "content": "much"}], "stream": True}).encode()
            port = int(proxy.base_url.rpartition(":")[2])
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (key.encode(), len(body), body)
                )
                assert client.recv(1024).startswith(b"HTTP/1.1 200")

                assert provider.wait_for_disconnect(60)

            assert ask(proxy, "GET", "/health/ready").status == 200
            # The provider is let go first.
            wait_until(
                lambda: '"st":"client_abort"' in proxy.command("audit", "cat").stdout, what="the leaving is recorded"
            )
