"""Plain load without wrk, for --quick: as many requests as the connections take, over kept connections.

    python -m bench.python_load HOST PORT PATH CLIENTS SECONDS BODY_FILE [--tls] [HEADER ...]

Prints the same line of JSON as native/chat.lua. It costs ten times what wrk costs: its times say nothing about a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import percentile


@dataclass
class Tally:
    """What all clients saw."""

    latencies_us: list[float] = field(default_factory=list)
    refused: int = 0
    broken: int = 0


async def ask_until(
    deadline_s: float, connection: tuple[str, int, ssl.SSLContext | None], request: bytes, tally: Tally
) -> None:
    """One client: ask, read the whole answer, ask again. A broken connection is counted and made anew."""
    host, port, tls = connection
    while time.monotonic() < deadline_s:
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        except OSError:
            tally.broken += 1
            await asyncio.sleep(0.05)
            continue
        try:
            while time.monotonic() < deadline_s:
                began_s = time.monotonic()
                writer.write(request)
                status = await read_answer(reader)
                tally.latencies_us.append((time.monotonic() - began_s) * 1e6)
                tally.refused += status >= 400  # noqa: PLR2004  the class of refusals
        except (OSError, EOFError, ValueError):
            tally.broken += 1
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    """The status of an answer, its body read. Raises `EOFError` when it breaks off, `ValueError` when it can't be read."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, length, after = head.partition(b"\r\ncontent-length:")
    if length:
        await reader.readexactly(int(after.split(b"\r\n", 1)[0]))
    else:
        while (size := int((await reader.readline()).split(b";")[0], 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    return int(head.split(b" ", 2)[1])


async def load(
    clients: int, seconds: float, connection: tuple[str, int, ssl.SSLContext | None], request: bytes
) -> Tally:
    tally = Tally()
    deadline_s = time.monotonic() + seconds
    await asyncio.gather(*(ask_until(deadline_s, connection, request, tally) for _ in range(clients)))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain load over kept connections.")
    for name in ("host", "port", "path", "clients", "seconds", "body_file"):
        parser.add_argument(name)
    parser.add_argument("headers", nargs="*")
    parser.add_argument("--tls", action="store_true", help="speak TLS; the certificate is not verified")
    given = parser.parse_args()
    tls = None
    if given.tls:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    body = Path(given.body_file).read_bytes()
    lines = [
        f"POST {given.path} HTTP/1.1",
        f"Host: {given.host}:{given.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *given.headers,
    ]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    began_s = time.monotonic()
    tally = asyncio.run(load(int(given.clients), float(given.seconds), (given.host, int(given.port), tls), request))
    told = {
        "requests": len(tally.latencies_us),
        "seconds": time.monotonic() - began_s,
        "refused": tally.refused,
        "broken": tally.broken,
        "p50_us": percentile(tally.latencies_us, 0.5),
        "p99_us": percentile(tally.latencies_us, 0.99),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
