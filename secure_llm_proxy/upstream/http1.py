"""HTTP/1.1 as a client that trusts nobody: request heads out, answer heads and bodies in. Pure: no socket here.

Source: RFC 9112. Where it lets a recipient be lenient (bare LF, folded lines, both lengths), we refuse: a provider's
front that is understood differently by two parties is how answers end up with the wrong caller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_BYTES_MAX = 32_768
_HEADERS_MAX = 128
_SWITCHING_PROTOCOLS = 101
_CHUNK_LINE_BYTES_MAX = 1_024
_TRAILER_BYTES_MAX = 8_192

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_HEADER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class BrokenAnswer(ValueError):
    """The provider's bytes are not the HTTP that we accept. The text is for the operator and quotes none of them."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """`headers` by lower-case name; values of a repeated header are joined by ", "."""

    status: int
    headers: Mapping[str, str]
    keeps_alive: bool

    @property
    def is_interim(self) -> bool:
        """True when another head follows (100 Continue, 103 Early Hints)."""
        return self.status < 200 and self.status != _SWITCHING_PROTOCOLS  # noqa: PLR2004 — the class of 1xx

    @property
    def is_compressed(self) -> bool:
        """Identity was asked for; what unpacks to any size is not for us."""
        return self.headers.get("content-encoding", "").strip().lower() not in ("", "identity")

    @property
    def content_type(self) -> str:
        """The media type in lower case, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class BodyFraming(Protocol):
    """Finds the end of a body. `done` turns True there; bytes behind it are in `surplus`."""

    done: bool
    surplus: bytes

    def feed(self, received: bytes) -> bytes:
        """Return the part of the body that `received` holds. Raises `BrokenAnswer`."""
        ...

    def end(self) -> None:
        """The connection was closed in good order. Raises `BrokenAnswer` unless the body may end so."""
        ...


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The values are ours or were checked when the settings were read; anything else would be a defect of ours."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
    return "\r\n".join(lines).encode("ascii")


def can_be_head(received: bytes) -> bool:
    """False as soon as `received` can't become a head any more, so that nobody waits for the rest of one."""
    first_line_end = received.find(b"\n")
    return received.startswith(b"HTTP/1."[: len(received)]) and (
        first_line_end < 0 or received[first_line_end - 1 : first_line_end] == b"\r"
    )


def parse_head(block: bytes) -> AnswerHead:
    """Read a head without its closing empty line."""
    status_line, *lines = block.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(status_line)
    if status is None:
        raise BrokenAnswer("the answer does not start with an HTTP/1.1 status line")
    if len(lines) > _HEADERS_MAX:
        raise BrokenAnswer(f"the answer has more than {_HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER_LINE.fullmatch(line)
        if header is None:
            raise BrokenAnswer("a header line of the answer is malformed")
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return AnswerHead(
        status=int(status[2]),
        headers=headers,
        keeps_alive="close" not in options and (status[1] == b"1" or "keep-alive" in options),
    )


def body_framing(head: AnswerHead) -> BodyFraming:
    """Decide how the body ends (RFC 9112 §6.3). Raises `BrokenAnswer` when the head contradicts itself about it."""
    transfer_encoding = head.headers.get("transfer-encoding")
    length = head.headers.get("content-length")
    if head.status == _SWITCHING_PROTOCOLS:
        raise BrokenAnswer("the provider switched protocols, which nobody asked for")
    if head.status in (204, 304):
        return SizedBody(0)
    if transfer_encoding is not None:
        if length is not None:
            raise BrokenAnswer("the answer has both Transfer-Encoding and Content-Length")
        if transfer_encoding.strip().lower() != "chunked":
            raise BrokenAnswer("the answer has a Transfer-Encoding other than chunked")
        return ChunkedBody()
    if length is not None:
        if not _LENGTH.fullmatch(length):
            raise BrokenAnswer("the answer's Content-Length is not one number")
        return SizedBody(int(length))
    return UntilClosedBody()


class SizedBody:
    """`Content-Length` bytes."""

    __slots__ = ("done", "left_bytes", "surplus")

    def __init__(self, size_bytes: int) -> None:
        self.left_bytes = size_bytes
        self.done = size_bytes == 0
        self.surplus = b""

    def feed(self, received: bytes) -> bytes:
        body = received[: self.left_bytes]
        self.surplus += received[len(body) :]
        self.left_bytes -= len(body)
        self.done = self.left_bytes == 0
        return body

    def end(self) -> None:
        if not self.done:
            raise BrokenAnswer(f"the answer ended {self.left_bytes} bytes before its Content-Length")


class UntilClosedBody:
    """Everything until the provider hangs up."""

    __slots__ = ("done", "surplus")

    def __init__(self) -> None:
        self.done = False
        self.surplus = b""

    def feed(self, received: bytes) -> bytes:
        return received

    def end(self) -> None:
        self.done = True


class ChunkedBody:
    """RFC 9112 §7.1. Chunk extensions and trailers are bounded and dropped."""

    __slots__ = ("_chunk_left_bytes", "_line", "_state", "_trailer_bytes", "done", "surplus")

    def __init__(self) -> None:
        self.done = False
        self.surplus = b""
        self._state = "size"
        self._line = b""
        self._chunk_left_bytes = 0
        self._trailer_bytes = 0

    def feed(self, received: bytes) -> bytes:
        body: list[bytes] = []
        position = 0
        while position < len(received) and not self.done:
            if self._state == "data":
                piece = received[position : position + self._chunk_left_bytes]
                body.append(piece)
                position += len(piece)
                self._chunk_left_bytes -= len(piece)
                if not self._chunk_left_bytes:
                    self._state = "data end"
            else:
                position = self._feed_line(received, position)
        self.surplus += received[position:]
        return body[0] if len(body) == 1 else b"".join(body)

    def end(self) -> None:
        if not self.done:
            raise BrokenAnswer("the answer ended before its last chunk")

    def _feed_line(self, received: bytes, position: int) -> int:
        """Consume up to the end of the current line, or all there is; return the new position."""
        at = received.find(b"\n", position)
        end = len(received) if at < 0 else at + 1
        self._line += received[position : min(end, position + _CHUNK_LINE_BYTES_MAX + 1)]
        if len(self._line) > _CHUNK_LINE_BYTES_MAX:
            raise BrokenAnswer("a chunk's size line is too long")
        if at >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise BrokenAnswer("a chunk's line does not end in CRLF")
            self._take_line(line[:-2])
        return end

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            size = _CHUNK_LINE.fullmatch(line)
            if size is None:
                raise BrokenAnswer("a chunk's size is malformed")
            self._chunk_left_bytes = int(size[1], 16)
            self._state = "data" if self._chunk_left_bytes else "trailer"
        elif self._state == "data end":
            if line:
                raise BrokenAnswer("a chunk is longer than its size")
            self._state = "size"
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _TRAILER_BYTES_MAX:
                raise BrokenAnswer("the answer's trailers are too large")
        else:
            self.done = True
