"""From what a WSGI application answers to bytes: the same that gunicorn 27 writes, head and first piece in one send.

Plain answers are written here: a status that has a body, headers that pass one check over all of them, and a length or a
relayed stream. Anything else (204, 304, hop-by-hop headers, iterables without a length, `write()`, a defect of the
application) is left to gunicorn's own `Response`, which sends through us, so that every write stays bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from enum import Enum, auto
from types import TracebackType
from typing import Any, Final, NamedTuple

from gunicorn import SERVER
from gunicorn.http import wsgi
from gunicorn.http.message import TOKEN_RE
from gunicorn.util import hop_headers, http_date

from secure_llm_proxy.foundation.loop_socket import LoopSocket

Headers = Iterable[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# gunicorn's HEADER_VALUE_RE, as a table: tab, space to tilde, and the upper half of latin-1.
_VALUE_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_UNSTRIPPED_BYTES: Final = _VALUE_BYTES[1:]
_KNOWN_MAX: Final = 256
_FORMS_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 64 * 1024
_END: Final = object()


class _Kind(Enum):
    """What a header of the application is to us."""

    PLAIN = auto()
    LENGTH = auto()
    LEFT = auto()
    """To gunicorn: a hop-by-hop header, or no name at all."""


class _Form(NamedTuple):
    """The head that plain headers of the same names, in the same order, make."""

    pieces: tuple[str, ...]
    """Joined with the values at each second place."""
    line_ends_bytes: int
    length_at: int
    """Which of the headers is Content-Length; -1 for none."""


# Header names and statuses that the application used before, and the names of whole answers: they are always the same few.
_NAMES: Final[dict[str, _Kind]] = {}
_STATUSES: Final[dict[str, bool]] = {}
_FORMS: Final[dict[tuple[str, ...], _Form]] = {}


class Preambles:
    """The first lines of an answer, up to `Connection`; made once a second for each status."""

    __slots__ = ("_lines", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._lines: dict[tuple[str, bool], bytes] = {}

    def of(self, status: str, *, closes: bool) -> bytes:
        now_s = int(time.time())
        if now_s != self._second:
            self._second = now_s
            self._lines.clear()
        try:
            return self._lines[status, closes]
        except KeyError:
            wish = "close" if closes else "keep-alive"
            text = f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nDate: {http_date(now_s)}\r\nConnection: {wish}\r\n"
            lines = self._lines[status, closes] = text.encode("latin-1")
            return lines


class AnswerWriter:
    """Writes the answers of one connection, one after the other; `begin` starts the next.

    Every write takes `send_timeout_s` at most (None: any time) and raises `TimeoutError` then, `OSError` when the client is
    gone. An answer of 15 headers costs 3.1 µs and one send, where gunicorn's costs 14 and two (Python 3.11, 2026-11-21).
    """

    __slots__ = (
        "_asked",
        "_begun",
        "_cfg",
        "_closes",
        "_gunicorn",
        "_length",
        "_lines",
        "_preambles",
        "_send_timeout_s",
        "_socket",
        "_started",
        "try_send",
    )

    def __init__(
        self,
        socket: LoopSocket,
        cfg: Any,  # noqa: ANN401  gunicorn ships no types
        preambles: Preambles,
        send_timeout_s: float | None,
    ) -> None:
        self._socket = socket
        self.try_send = socket.try_send
        self._cfg = cfg
        self._preambles = preambles
        self._send_timeout_s = math.inf if send_timeout_s is None else send_timeout_s
        self.begin("GET", closes=False)

    def begin(self, method: str, *, closes: bool) -> None:
        """Forget the last answer. `closes`: the connection ends with this one."""
        self._asked = method, closes
        self._closes = closes
        self._begun = False
        self._started: tuple[str, Headers] | None = None
        self._lines = b""
        self._length: int | None = None
        self._gunicorn: Any = None

    @property
    def headers_sent(self) -> bool:
        """True from the first byte of the head on: nothing else can be answered any more."""
        return self._begun or (self._gunicorn is not None and self._gunicorn.headers_sent)

    @property
    def closes(self) -> bool:
        """Asked after the answer: the connection can't be used again."""
        return self._closes if self._gunicorn is None else self._gunicorn.should_close()

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """PEP 3333. Raises what gunicorn raises."""
        if self._started is not None or exc_info or self._gunicorn is not None:
            response = self._by_gunicorn()
            response.start_response(status, headers, exc_info)
            self._started = status, headers
            return self._write
        if not self._is_plain(status, headers):
            response = _response(self._asked, self, self._cfg)
            response.start_response(status, headers)
            self._gunicorn = response
        self._started = status, headers
        return self._write

    def send(self, body: Iterable[bytes]) -> None:
        """Send everything; the caller closes `body`."""
        if type(body) is tuple and self._gunicorn is None and len(body) == 1:
            piece: Any = body[0]
            # Most answers: all of it in one piece.
            if type(piece) is bytes and len(piece) == self._length and self._length <= _JOINED_BYTES_MAX:
                assert self._started is not None
                self._begun = True
                preamble = self._preambles.of(self._started[0], closes=self._closes)
                rest = self.try_send(b"%b%b\r\n%b" % (preamble, self._lines, piece))
                if rest is not None:
                    self.sendall(rest)
                return
        if self._length is None and self._gunicorn is None and self._started is not None:
            relay = getattr(body, "relay", None)
            if relay is not None:
                sink = ChunkedSink(self)
                relay(sink)
                sink.finish()
                return
        pieces = iter(body)
        # A generator may call start_response only now.
        piece = next(pieces, _END)
        if self._gunicorn is not None or self._length is None:
            response = self._by_gunicorn()
            while piece is not _END:
                response.write(piece)
                piece = next(pieces, _END)
            response.close()
            return
        unsent, left = self.head(chunked=False), self._length
        while piece is not _END:
            if not isinstance(piece, bytes):
                raise TypeError(f"{type(piece).__name__} is not a byte")
            piece = piece[:left]
            left -= len(piece)
            if unsent and len(piece) > _JOINED_BYTES_MAX:
                self.sendall(unsent)
                unsent = b""
            unsent += piece
            if unsent:
                self.sendall(unsent)
                unsent = b""
            piece = next(pieces, _END)
        if unsent:
            self.sendall(unsent)
        if left:
            # gunicorn would go on, and the client take the next answer for the rest of this one.
            self._closes = True

    def head(self, *, chunked: bool) -> bytes:
        """The whole head of the started answer, about to be sent."""
        assert self._started is not None
        self._begun = True
        coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        return b"%b%b%b\r\n" % (self._preambles.of(self._started[0], closes=self._closes), coding, self._lines)

    def sendall(self, content: bytes | memoryview) -> None:
        """As a socket's, for gunicorn."""
        rest = self.try_send(content)
        if rest is not None:
            deadline_s = time.monotonic() + self._send_timeout_s
            while rest is not None:
                self._socket.wait_writable(deadline_s)
                rest = self.try_send(rest)

    def early_hints(self, headers: Headers) -> None:
        """`wsgi.early_hints`: gunicorn's, before the answer begins."""
        response = _response(self._asked, self, self._cfg)
        response.headers_sent = self.headers_sent
        wsgi._make_early_hints_callback(response.req, self, response)(headers)  # noqa: SLF001  it has no other name

    def _is_plain(self, status: str, headers: Headers) -> bool:
        """Note `headers` as lines, and the length that they tell. False when gunicorn should judge."""
        plain = _STATUSES.get(status)
        if not (_is_plain_status(status) if plain is None else plain):
            return False
        # A list can be gone through twice.
        if type(headers) is not list:
            return self._is_plain_each(headers)
        try:
            named = dict(headers)
            names = tuple(named)
            form = _FORMS[names]
        except KeyError:
            if not self._is_plain_each(headers):
                return False
            if len(_FORMS) < _FORMS_MAX and len(names) == len(headers):
                _FORMS[names] = _form_of(names)
            return True
        except (TypeError, ValueError):
            return self._is_plain_each(headers)
        pieces, line_ends_bytes, length_at = form
        values = [*named.values()]
        text = [*pieces]
        text[1::2] = values
        try:
            side_by_side = " ".join(values)
            lines = "".join(text).encode("latin-1")
            length = None
            if length_at >= 0:
                # Of latin-1 these are the ASCII digits, and not "²".
                if not values[length_at].isdecimal():
                    return self._is_plain_each(headers)
                length = int(values[length_at])
        except (TypeError, ValueError):
            return self._is_plain_each(headers)
        if (
            len(lines.translate(None, _UNSTRIPPED_BYTES)) != line_ends_bytes
            # A name came twice.
            or len(values) != len(headers)
            # Blanks around a value, which gunicorn strips; or such as look like that.
            or "  " in side_by_side
            or side_by_side[:1] == " "
            or side_by_side[-1:] == " "
        ):
            return self._is_plain_each(headers)
        self._lines, self._length = lines, length
        return True

    def _is_plain_each(self, headers: Headers) -> bool:
        """The same, header by header: of names that come together for the first time, or of values to strip or refuse."""
        lines_text, length = [], None
        # Python 3.11 looks a member of an enumeration up slowly.
        known, spaces, plain_kind = _NAMES, " \t", _Kind.PLAIN
        try:
            for name, value in headers:
                kind = known.get(name)
                if kind is None:
                    kind = _kind_of(name)
                if kind is not plain_kind:
                    if kind is _Kind.LEFT or length is not None or not (value.isascii() and value.isdigit()):
                        return False
                    length = int(value)
                lines_text.append(f"{name}: {value.strip(spaces)}\r\n")
            lines = "".join(lines_text).encode("latin-1")
        except (TypeError, AttributeError, ValueError):
            return False
        if len(lines.translate(None, _VALUE_BYTES)) != 2 * len(lines_text):
            return False
        self._lines, self._length = lines, length
        return True

    def _by_gunicorn(self) -> Any:  # noqa: ANN401  gunicorn ships no types
        """gunicorn's writer of this answer, told what the application has said so far."""
        if self._gunicorn is None:
            response = _response(self._asked, self, self._cfg)
            if self._started is not None:
                response.start_response(*self._started)
            response.headers_sent = self._begun
            self._gunicorn = response
        return self._gunicorn

    def _write(self, piece: bytes) -> None:
        self._by_gunicorn().write(piece)


class ChunkedSink:
    """A `StreamSink`: chunks as gunicorn frames them, the head with the first of them in one send."""

    __slots__ = ("_answer", "_begun", "_rest", "_try_send")

    def __init__(self, answer: AnswerWriter) -> None:
        self._answer = answer
        self._try_send = answer.try_send
        self._begun = False
        self._rest: bytes | memoryview | None = None

    def send(self, piece: bytes) -> bool:
        if piece:
            framed = b"%X\r\n%b\r\n" % (len(piece), piece)
            if not self._begun:
                framed = self._head() + framed
            if self._rest is not None:
                self._rest = bytes(self._rest) + framed
            else:
                self._rest = self._try_send(framed)
        return self._rest is None

    def flush(self) -> None:
        if self._rest is not None:
            rest, self._rest = self._rest, None
            self._answer.sendall(rest)

    def finish(self) -> None:
        """Send what is left and the last chunk."""
        self.flush()
        self._answer.sendall(b"0\r\n\r\n" if self._begun else self._head() + b"0\r\n\r\n")

    def _head(self) -> bytes:
        self._begun = True
        return self._answer.head(chunked=True)


class _Asked:
    """What gunicorn's `Response` wants to know of a request."""

    version = (1, 1)

    def __init__(self, method: str, *, closes: bool) -> None:
        self.method = method
        self._closes = closes

    def should_close(self) -> bool:
        return self._closes


def _response(asked: tuple[str, bool], sock: AnswerWriter, cfg: Any) -> Any:  # noqa: ANN401  gunicorn ships no types
    method, closes = asked
    return wsgi.Response(_Asked(method, closes=closes), sock, cfg)


def _is_plain_status(status: object) -> bool:
    plain = isinstance(status, str) and wsgi.STATUS_RE.fullmatch(status) is not None
    if plain and isinstance(status, str):
        plain = status[0] >= "2" and status[:3] not in {"204", "304"}
        if len(_STATUSES) < _KNOWN_MAX:
            _STATUSES[status] = plain
    return plain


def _form_of(names: tuple[str, ...]) -> _Form:
    """Of names that passed one by one, so that Content-Length is there once at most."""
    pieces = [""]
    for name in names:
        pieces[-1] += f"{name}: "
        pieces += ["", "\r\n"]
    length_at = next((at for at, name in enumerate(names) if name.lower() == "content-length"), -1)
    return _Form(tuple(pieces), 2 * len(names), length_at)


def _kind_of(name: object) -> _Kind:
    if not isinstance(name, str) or TOKEN_RE.fullmatch(name) is None:
        return _Kind.LEFT
    lower = name.lower()
    kind = _Kind.LEFT if lower in hop_headers else _Kind.LENGTH if lower == "content-length" else _Kind.PLAIN
    if len(_NAMES) < _KNOWN_MAX:
        _NAMES[name] = kind
    return kind
