"""Is it true what the product says of its own time? X-SLP-Overhead-Ms and slp_overhead_seconds against an outside clock.

One client, one request at a time, a provider that holds each answer for 20 ms and tells how long it really held it. What
the client's clock saw, less that, is what the proxy added: its own time, and what neither of them can see, the bytes'
way through the kernel, the provider's and the client's waking up. The product's figure must lie below it, and near.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from statistics import fmean, median
from urllib.request import urlopen

from bench.figures import OwnTimeFigures
from bench.marked_provider import Deed, Order
from bench.measuring import Bench
from bench.processes import running_on
from bench.targets import MODEL, Endpoint, Product, ProductShape, TargetFailed
from bench.upstream import MarkedUpstream

_HOLD_MS = 20
_WARM_UP = 20
_HELD = re.compile(rb"held_ns=(\d+)")
_OVERHEAD = re.compile(rb"\r\nx-slp-overhead-ms: ([0-9.]+)\r\n", re.IGNORECASE)
_HISTOGRAM = re.compile(r"^slp_overhead_seconds_(sum|count) (\S+)$", re.MULTILINE)
_SHAPE = ProductShape("own-time", "product: SQLite, audit on disk, asked by one client")


def measure_own_time(bench: Bench, requests: int) -> OwnTimeFigures:
    """Raises `TargetFailed` when an answer is not as expected."""
    with MarkedUpstream(bench.cores, bench.folder) as upstream:
        product = Product(_SHAPE, cores=bench.cores, folder=bench.folder, provider=upstream.provider)
        try:
            product.prepare()
            product.start()
            with running_on(bench.cores.load):
                return _measured(product.endpoint, requests)
        finally:
            product.stop()
            product.discard()


def _measured(endpoint: Endpoint, requests: int) -> OwnTimeFigures:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=30) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_WARM_UP):
            _ask(line, endpoint)
        before_s, before = _histogram(endpoint)
        seen = [_ask(line, endpoint) for _ in range(requests)]
        after_s, after = _histogram(endpoint)
    outside, held, headers = zip(*seen, strict=True)
    counted = after - before
    return OwnTimeFigures(
        requests=requests,
        outside_ms=median(outside),
        provider_ms=median(held),
        added_ms=median(whole - provider for whole, provider, _ in seen),
        header_ms=median(headers),
        header_mean_ms=fmean(headers),
        header_least_ms=min(headers),
        header_above_outside=sum(header > whole - provider for whole, provider, header in seen),
        counted=counted,
        counted_ms=(after_s - before_s) * 1000 / max(counted, 1),
    )


def _ask(line: socket.socket, endpoint: Endpoint) -> tuple[float, float, float]:
    """Milliseconds that the client saw, that the provider held the answer, and that the product says it took."""
    order = Order(f"mk-{secrets.token_hex(8)}", Deed.ANSWER, hold_ms=_HOLD_MS)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": str(order)}]}).encode()
    lines = [
        f"POST {endpoint.path} HTTP/1.1",
        f"Host: {endpoint.host}",
        *(f"{name}: {value}" for name, value in endpoint.headers.items()),
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    began_ns = time.perf_counter_ns()
    line.sendall(request)
    answer = line.recv(65536)
    while (missing := _missing(answer)) is None or missing > 0:
        more = line.recv(65536)
        if not more:
            raise TargetFailed(f"hung up in the midst of an answer: {answer[-300:]!r}")
        answer += more
    outside_ms = (time.perf_counter_ns() - began_ns) / 1e6
    held, overhead = _HELD.search(answer), _OVERHEAD.search(answer)
    if held is None or overhead is None:
        raise TargetFailed(f"not an answer whose time can be checked: {answer[:600]!r}")
    return outside_ms, int(held[1]) / 1e6, float(overhead[1])


def _missing(answer: bytes) -> int | None:
    """Bytes of the body that are still to come; None while the head is not whole."""
    head, ended, body = answer.partition(b"\r\n\r\n")
    if not ended:
        return None
    _, named, after = head.lower().partition(b"\r\ncontent-length:")
    if not named:
        raise TargetFailed(f"an answer without Content-Length: {head!r}")
    return int(after.split(b"\r\n", 1)[0]) - len(body)


def _histogram(endpoint: Endpoint) -> tuple[float, int]:
    """Sum in seconds and count of slp_overhead_seconds, once it no longer changes: an exchange may close after its answer."""
    seen = (-1.0, -1)
    while True:
        with urlopen(f"http://{endpoint.host}:{endpoint.port}/metrics", timeout=30) as answer:
            found = dict(_HISTOGRAM.findall(answer.read().decode()))
        now = float(found["sum"]), int(float(found["count"]))
        if now == seen:
            return now
        seen = now
        time.sleep(0.1)
