"""An answer as a second, independent parser reads it: llhttp, Node.js's parser, in its strict form as httptools has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httptools

COMPARED_HEADERS = frozenset(
    {"content-length", "transfer-encoding", "connection", "content-type", "content-encoding", "retry-after"}
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an answer says before the connection is closed in good order.

    `surplus` is what stands behind its end. `reusable`: the connection could carry another exchange, were it not closed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    surplus: bytes
    reusable: bool


def read_with_llhttp(answer: bytes) -> Meaning | None:
    """Return the meaning of `answer`, None when llhttp refuses it or it ends too early. Interim heads are passed over."""
    while True:
        message = _Message()
        end = message.read(answer)
        if end is None or message.broken:
            return None
        if message.status >= 200:
            return message.meaning(answer[end:])
        answer = answer[end:]


@dataclass(slots=True)
class _Message:
    """Its `on_…` methods are called by httptools."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    status: int = 0
    keeps_alive: bool = False
    head_read: bool = False
    over: bool = False
    broken: bool = False
    parser: httptools.HttpResponseParser | None = None

    def read(self, answer: bytes) -> int | None:
        """Return where the message ends; None when it doesn't."""
        self.parser = httptools.HttpResponseParser(self)
        for position in range(len(answer)):
            try:
                # byte by byte: llhttp would go on with the next message
                self.parser.feed_data(answer[position : position + 1])
            except httptools.HttpParserError:
                self.broken = True
                return None
            if self.over:
                return position + 1
        if self.head_read and not self.headers.keys() & {"content-length", "transfer-encoding"}:
            self.keeps_alive = False
            return len(answer)
        return None

    def meaning(self, surplus: bytes) -> Meaning:
        headers = {name: value for name, value in self.headers.items() if name in COMPARED_HEADERS}
        return Meaning(self.status, headers, bytes(self.body), surplus, self.keeps_alive)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_read:
            return  # of the trailers
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.status = self.parser.get_status_code()
        self.keeps_alive = self.parser.should_keep_alive()
        self.head_read = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.over = True
