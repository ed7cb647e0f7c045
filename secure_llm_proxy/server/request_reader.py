"""From the bytes of a plain request's head to a WSGI environ; whatever is not plain is left to gunicorn's own parser.

Plain is a small part of what gunicorn 27's parser (`http_parser = "python"`) accepts, and means the same there: HTTP/1.1,
GET or POST, a path and query of unreserved characters, one Host, no header twice, printable ASCII, CRLF, a length in digits.
Two judges must agree, llhttp (strict, by httptools) and the checks here, so that neither's leniency is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import httptools

_CRLF: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
# RFC 3986: unreserved, sub-delims, and what else a path may hold. No "%": decoding is gunicorn's business.
_TARGET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?"
_BEGUN: Final = re.compile(rb"(?:GET|POST) /[%s]* HTTP/1\.1\r\n(?:[\x20-\x7e]|\r\n)*\r?" % re.escape(_TARGET))
# RFC 9110 §5.6.2, without "_": WSGI cannot tell it from "-".
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^`|~0-9A-Za-z]{1,64}")
_LENGTH_DIGITS_MAX: Final = 15
# These change where a request ends or what a connection is.
_NEVER_PLAIN: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"http2-settings", b"trailer"})
_KEYS_MAX: Final = 1024
_KEYS: Final[dict[bytes, str]] = {}
_LINES_MAX: Final = 256
_LINE_BYTES_MAX: Final = 256
_USUAL: Final = (
    b"Host", b"User-Agent", b"Accept", b"Accept-Encoding", b"Accept-Language", b"Authorization", b"Cache-Control",
    b"Connection", b"Content-Type", b"Content-Length", b"Content-Encoding", b"Cookie", b"Origin", b"Referer", b"X-API-Key",
    b"X-User-ID", b"X-Session-ID", b"X-Correlation-ID", b"X-Request-ID", b"X-Forwarded-For", b"X-Forwarded-Proto",
    b"X-Forwarded-Host", b"X-Real-IP", b"X-Edge-Request-Id",
)  # fmt: skip


class Verdict(Enum):
    """What the bytes are when they are no plain request."""

    UNFINISHED = auto()
    """A plain request so far; the end of its head is still to come."""
    UNUSUAL = auto()
    """For gunicorn's parser to accept or refuse."""


class PlainRequest(NamedTuple):
    """A request's head, read. The body is `length` bytes from `body_at` on; `wsgi.input` is still to be set."""

    environ: dict[str, Any]
    body_at: int
    length: int
    closes: bool
    """The client asked for the connection to be closed."""


class _Line(NamedTuple):
    """A request line that passed."""

    targets: list[bytes]
    """What llhttp says of it."""
    method: str
    uri: str
    path: str
    query: str


# Lines that came before; none with a query, which may hold what nobody should keep.
_LINES: Final[dict[bytes, _Line]] = {}


class _Heard:
    """What llhttp calls back with. None saves it the asking for callbacks that nobody needs."""

    __slots__ = ("fields", "on_header", "on_url", "targets")
    on_message_begin = on_headers_complete = on_body = on_message_complete = on_chunk_header = on_chunk_complete = None
    on_status = None

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.targets: list[bytes] = []
        # Methods of the containers themselves: no Python frame per header. A repeated name makes `fields` too short.
        self.on_header = self.fields.__setitem__
        self.on_url = self.targets.append


class RequestReader:
    """Reads the heads of one connection's requests; it keeps nothing from one to the next.

    `base` is what the environs of the connection have in common; its keys stay apart from those of headers.
    `scheme_headers` maps environ keys to the value that means https, for peers that may say so. `host_names_server`: behind
    a unix socket SERVER_NAME and SERVER_PORT come from Host.
    A head of 10 headers costs 5 µs, where gunicorn's parser and `wsgi.create` take 39 (Python 3.11, 2026-11-21).
    """

    __slots__ = ("_base", "_base_keys", "_fields_max", "_head_bytes_max", "_heard", "_host_names_server", "_schemes")

    def __init__(
        self,
        base: Mapping[str, object],
        *,
        head_bytes_max: int,
        fields_max: int,
        scheme_headers: Mapping[str, str],
        host_names_server: bool,
    ) -> None:
        self._base = dict(base)
        self._base_keys = len(self._base)
        self._head_bytes_max = head_bytes_max
        self._fields_max = fields_max
        self._schemes = tuple(scheme_headers.items())
        self._host_names_server = host_names_server
        self._heard = _Heard()

    def read(self, received: bytes) -> PlainRequest | Verdict:
        """Judge what a connection sent from the start of a request on; nothing of it is consumed."""
        end = received.find(_HEAD_END)
        if end < 0:
            begun = len(received) <= self._head_bytes_max and _BEGUN.fullmatch(received)
            return Verdict.UNFINISHED if begun else Verdict.UNUSUAL
        body_at = end + 4
        if body_at > self._head_bytes_max:
            return Verdict.UNUSUAL
        head = received[:body_at]
        lines = head.count(_CRLF)
        # Nothing but printable ASCII and line ends, each of them CR and LF; no value that ends in a space.
        if len(head.translate(None, _PRINTABLE)) != 2 * lines or b" \r" in head or lines - 2 > self._fields_max:
            return Verdict.UNUSUAL
        heard = self._heard
        fields, targets = heard.fields, heard.targets
        fields.clear()
        targets.clear()
        try:
            # A new parser for each request (0.8 µs): nothing that one request left in it can change the next.
            httptools.HttpRequestParser(heard).feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return Verdict.UNUSUAL
        first = head[: head.find(_CRLF)]
        line = _LINES[first] if first in _LINES else _line_of(first, targets)
        if line is None or line.targets != targets:
            return Verdict.UNUSUAL
        environ = self._base.copy()
        try:
            known = _KEYS
            for name, content in fields.items():
                environ[known[name]] = content.decode()
        except KeyError:
            for name, content in fields.items():
                key = _KEYS.get(name) or _key_of(name)
                if key is None:
                    return Verdict.UNUSUAL
                environ[key] = content.decode()
        if len(environ) != self._base_keys + lines - 2:
            # A header came twice, or llhttp and we don't see the same lines.
            return Verdict.UNUSUAL
        _, environ["REQUEST_METHOD"], environ["RAW_URI"], environ["PATH_INFO"], environ["QUERY_STRING"] = line
        return self._framed(environ, body_at)

    def _framed(self, environ: dict[str, Any], body_at: int) -> PlainRequest | Literal[Verdict.UNUSUAL]:
        """Judge the headers that say where the request ends, what becomes of the connection, and who we are."""
        if "HTTP_HOST" not in environ or not environ["HTTP_HOST"]:
            return Verdict.UNUSUAL
        length, closes = 0, False
        if "CONTENT_LENGTH" in environ:
            told: str = environ["CONTENT_LENGTH"]
            # It is ASCII already, and "" no number.
            if told[_LENGTH_DIGITS_MAX:] or not told.isdecimal():
                return Verdict.UNUSUAL
            length = int(told)
        if "HTTP_CONNECTION" in environ and environ["HTTP_CONNECTION"] != "keep-alive":
            wish = environ["HTTP_CONNECTION"].lower()
            if wish not in {"close", "keep-alive"}:
                return Verdict.UNUSUAL
            closes = wish == "close"
        if self._schemes and not self._has_one_scheme(environ):
            return Verdict.UNUSUAL
        if self._host_names_server:
            name, *port = environ["HTTP_HOST"].split(":")
            environ["SERVER_NAME"] = name
            environ["SERVER_PORT"] = port[0] if port else "443" if environ["wsgi.url_scheme"] == "https" else "80"
        return _plain_request((environ, body_at, length, closes))

    def _has_one_scheme(self, environ: dict[str, Any]) -> bool:
        said = [environ[key] == secure for key, secure in self._schemes if key in environ]
        if said:
            environ["wsgi.url_scheme"] = "https" if said[0] else "http"
        return len(said) <= 1


# `PlainRequest(…)` goes through a Python frame of its own.
_plain_request: Final[Callable[[tuple[dict[str, Any], int, int, bool]], PlainRequest]] = partial(
    tuple.__new__, PlainRequest
)


def _line_of(first: bytes, targets: list[bytes]) -> _Line | None:
    """The request line `first`, of which llhttp says `targets`; None when it is not plain."""
    method = b"POST" if first[:1] == b"P" else b"GET"  # the whole line is compared below
    if len(targets) != 1:
        return None
    target = targets[0]
    if (
        first != b"%b %b HTTP/1.1" % (method, target)
        or target.translate(None, _TARGET)
        or target[:1] != b"/"
        or target[1:2] == b"/"
    ):
        return None
    uri = target.decode()
    path, _, query = uri.partition("?")
    line = _Line([target], method.decode(), uri, path, query)
    if b"?" not in target and len(first) <= _LINE_BYTES_MAX:
        if len(_LINES) >= _LINES_MAX:
            # Whoever fills it with odd ones costs the usual ones no more than this.
            _LINES.clear()
        _LINES[first] = line
    return line


def _key_of(name: bytes) -> str | None:
    """The environ's key for a header, learnt for the next time; None when its request is not plain."""
    lower = name.lower()
    if lower in _NEVER_PLAIN or not _NAME.fullmatch(name):
        return None
    key = name.decode().upper().replace("-", "_")
    if key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
        key = f"HTTP_{key}"
    if len(_KEYS) < _KEYS_MAX:
        _KEYS[name] = key
    return key


for _name in _USUAL:
    for _spelling in (_name, _name.lower()):
        _key_of(_spelling)
