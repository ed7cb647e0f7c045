"""`python -m secure_llm_proxy.demo --port N [--host 127.0.0.1]`. Exit code 0 after SIGTERM or SIGINT, 1 when the
port is taken, 2 for wrong usage. Prints one line when it listens; port 0 lets the system choose.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import sys
import threading
from typing import TYPE_CHECKING

from secure_llm_proxy.demo.server import DemoServer

if TYPE_CHECKING:
    from types import FrameType


def main() -> int:
    arguments = _arguments()
    try:
        server = DemoServer(arguments.host, arguments.port)
    except OSError as error:
        sys.stderr.write(f"The demo upstream can't listen on {arguments.host}:{arguments.port}: {error.strerror}.\n")
        return 1

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # shutdown() waits for the serving loop, which this handler interrupts
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.stdout.write(f"listening on {server.address}\n")
    sys.stdout.flush()
    with server:
        server.serve_forever(poll_interval=0.1)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="secure_llm_proxy.demo", description="A local demo model over HTTP.")
    parser.add_argument("--port", type=_port, required=True, help="0 lets the system choose a free one")
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="a loopback address")
    return parser.parse_args()


def _port(text: str) -> int:
    port = int(text)
    if port not in range(65_536):
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _loopback(text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        if ipaddress.ip_address(text).is_loopback:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("the demo upstream listens on a loopback address only")


if __name__ == "__main__":
    raise SystemExit(main())
