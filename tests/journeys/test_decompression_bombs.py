"""What unpacks to 10 GB, or never ends, costs the worker next to nothing, whichever side it comes from."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOMY
from tests.support.clients import ask
from tests.support.running_proxy import RunningProxy

GROWTH_KIB_MAX = 64 * 1024
ENDLESS_BYTES = 10 * 2**30
# a gzip file may be one member after the other; together they unpack to 10 GB
BOMB = gzip.compress(b"\x00" * 10 * 2**20, 9) * 1024
DOOR = "/v1/chat/completions"
ENCODINGS = {"gzip": "gzip", "identity": "identity", "br": "br", "twice": "gzip, gzip", "unnamed": None}
STATUSES = (200, 400, 500)
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: %b\r\n\r\n"
# what is sent once, and what again and again
ENDLESS = {
    "events": (_CHUNKED, b"10000\r\n" + (b"data: {}\n\n" * 6554)[:65536] + b"\r\n"),
    "line": (_CHUNKED + b"10\r\ndata: xxxxxxxxxx\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "header": (b"HTTP/1.1 200 OK\r\nX-Endless: ", b"x" * 65536),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 8192),
    "interim": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2048),
    "size": (_CHUNKED + b"1;", b"x" * 65536),
    "trailer": (_CHUNKED + b"0\r\n", b"X-A: b\r\n" * 8192),
}


class Bomber:
    """A provider that answers as the model's name says: `bomb-ENCODING-STATUS`, `endless-KIND`, or well."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(30)
        with contextlib.suppress(OSError), raw:
            received = raw.recv(65_536)
            while not received.endswith(b"}"):
                received += raw.recv(65_536)
            request = json.loads(received.partition(b"\r\n\r\n")[2])
            kind, _, what = request["model"].partition("-")
            media_type = b"text/event-stream" if request.get("stream") else b"application/json"
            if kind == "bomb":
                encoding, status = what.split("-")
                name = ENCODINGS[encoding]
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(BOMB)}\r\n"
                head += f"Content-Encoding: {name}\r\n" if name else ""
                raw.sendall(head.encode() + b"Content-Type: %b\r\n\r\n" % media_type + BOMB)
                return
            first, again = ENDLESS[what]
            raw.sendall(first.replace(b"%b", media_type))
            while self.sent_bytes < ENDLESS_BYTES:
                raw.sendall(again)
                self.sent_bytes += len(again)


@pytest.fixture(scope="module")
def bomber() -> Iterator[Bomber]:
    with Bomber() as provider:
        yield provider


@pytest.fixture(scope="module")
def bombed(bomber: Bomber, short_folder: Path) -> Iterator[RunningProxy]:
    """A product of its own: the memory that is measured is of nobody else's making."""
    models = [f"bomb-{encoding}-{status}" for encoding in ENCODINGS for status in STATUSES]
    models += [f"endless-{kind}" for kind in ENDLESS]
    settings = {**ROOMY, "LLM_API_URL": bomber.base_url, "LLM_API_KEY": "sk-test", "LLM_MODELS": ",".join(models)}
    with RunningProxy(short_folder / "bombed", settings) as proxy:
        # a worker that has just come is still loading its modules
        for stream in (False, True):
            ask(proxy, "POST", DOOR, key=proxy.shared_api_key, body=chat("bomb-gzip-500", stream=stream))
        yield proxy


def chat(model: str, *, stream: bool) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}


class Growth:
    """By how much the worker's memory has been at most above what it was at the beginning."""

    def __init__(self, proxy: RunningProxy) -> None:
        [self._worker] = proxy.worker_pids()
        Path(f"/proc/{self._worker}/clear_refs").write_text("5", "ascii")  # forget the highest mark of memory (proc(5))
        self._before_kib = self._memory_kib("VmRSS")

    def kib(self) -> int:
        return self._memory_kib("VmHWM") - self._before_kib

    def _memory_kib(self, name: str) -> int:
        for line in Path(f"/proc/{self._worker}/status").read_text("ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise AssertionError(name)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_provider_s_bomb_is_not_unpacked(bombed: RunningProxy, encoding: str, status: int, *, stream: bool) -> None:
    growth = Growth(bombed)

    answer = ask(bombed, "POST", DOOR, key=bombed.shared_api_key, body=chat(f"bomb-{encoding}-{status}", stream=stream))

    assert answer.status == (400 if status == 400 else 502)
    assert answer.error_code in {"upstream_error", "upstream_rejected"}
    assert len(answer.body) < 1024
    assert growth.kib() < GROWTH_KIB_MAX


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_that_never_ends_is_cut_off(bombed: RunningProxy, bomber: Bomber, kind: str, *, stream: bool) -> None:
    growth, before = Growth(bombed), bomber.sent_bytes

    answer = ask(bombed, "POST", DOOR, key=bombed.shared_api_key, body=chat(f"endless-{kind}", stream=stream))

    assert answer.status == 502 or b"event: error" in answer.body
    assert growth.kib() < GROWTH_KIB_MAX
    # the cap on an answer, and what lies in the buffers of both kernels
    assert bomber.sent_bytes - before < 64 * 2**20


def test_a_client_s_bomb_is_refused_before_it_is_read(bombed: RunningProxy) -> None:
    growth = Growth(bombed)

    for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip", "x-gzip"):
        answer = ask(
            bombed,
            "POST",
            DOOR,
            key=bombed.shared_api_key,
            body=BOMB[: 4 * 2**20],
            headers={"Content-Encoding": encoding},
        )
        assert (answer.status, answer.error_code) == (415, "unsupported_content_encoding")

    assert growth.kib() < GROWTH_KIB_MAX


def test_a_client_s_body_without_end_is_cut_off_at_the_limit(bombed: RunningProxy) -> None:
    growth = Growth(bombed)
    place = urlsplit(bombed.base_url)
    assert place.port is not None
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    sent = 0

    with socket.create_connection(("127.0.0.1", place.port), timeout=60) as line:
        line.sendall(head % bombed.shared_api_key.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while sent < 256:
                line.sendall(chunk)
                sent += 1
        with contextlib.suppress(OSError):
            answer = line.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 413 ")

    assert sent < 256
    assert growth.kib() < GROWTH_KIB_MAX
