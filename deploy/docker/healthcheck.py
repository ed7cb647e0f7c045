"""Whether the part in this container does its work: exit code 0, or 1 and one sentence. Without curl, which the image lacks.

`healthcheck.py [web|audit-writer]`. The web service is asked at /health/ready, where BIND or HOST and PORT say; of the
audit writer it is enough that it listens, which it does only once its log is in order. Standard library alone: it runs
every few seconds.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys

_PATIENCE_S = 4.0
_OK = 200


class _Connection(http.client.HTTPConnection):
    """To a TCP port, or to a unix socket when `path` is given."""

    def __init__(self, host: str, port: int, path: str | None) -> None:
        super().__init__(host, port, timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        if self._path is None:
            super().connect()
        else:
            self.sock = _connected(self._path)


def _connected(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(_PATIENCE_S)
    connected.connect(path)
    return connected


def _web() -> str | None:
    """What is wrong with the web service; None when nothing is."""
    bind = os.environ.get("BIND", "")
    host = os.environ.get("HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  asked, not listened on
    path = bind.removeprefix("unix:") if bind else None
    connection = _Connection(host, int(os.environ.get("PORT", "5000")), path)
    try:
        connection.request("GET", "/health/ready", headers={"Host": "localhost", "Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return f"nobody answers at {path or f'{host}:{connection.port}'}: {error}"
    finally:
        connection.close()
    if answer.status == _OK:
        return None
    try:
        dependencies = json.loads(body)["dependencies"]
        wrong = ", ".join(f"{name} is {state}" for name, state in dependencies.items() if state != "ok")
    except (ValueError, KeyError, AttributeError, TypeError):
        wrong = ""
    return f"/health/ready says {answer.status}" + (f": {wrong}" if wrong else "")


def _audit_writer() -> str | None:
    path = os.environ.get("AUDIT_SOCKET", "")
    if not path:
        return "AUDIT_SOCKET is not set"
    try:
        _connected(path).close()
    except OSError as error:
        return f"nobody listens on {path}: {error}"
    return None


def main(arguments: list[str]) -> int:
    asked = {"web": _web, "audit-writer": _audit_writer}
    part = arguments[0] if arguments else "web"
    if part not in asked or len(arguments) > 1:
        print("usage: health [web|audit-writer]", file=sys.stderr)
        return 1
    wrong = asked[part]()
    if wrong is not None:
        print(f"unhealthy: {wrong}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
