"""Every provider that the proxy speaks to, played by one real HTTP server on loopback, in its documented wire format.

The first part of a path says who is meant: `http://127.0.0.1:PORT/anthropic/v1/messages`. Requests are held to the
documented shape field by field (`provider_formats/shapes.py`), stricter than some providers are: what a translator gets wrong
is answered as that provider answers it, and kept in `refused`. What the answer says depends on what is asked
(`provider_formats/speaking.py`): so a test asks any provider for the same thing.

Failures: a request for a model named `fail-rate-limited` (any `Failure`) is refused in the provider's documented words, and
`fail(…)` refuses the next requests whatever they are. `script(…)` breaks the wire itself, as `Provider` does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from tests.support.provider import Mode, Provider, ReceivedRequest, Script, _Line
from tests.support.provider_formats import anthropic, azure, cohere, gemini, groq, mistral, openai, openrouter, together
from tests.support.provider_formats.playing import Arrived, Failure, PlayedProvider, Reply, dumped, split_query
from tests.support.provider_formats.shapes import Misfit

if TYPE_CHECKING:
    import ssl

PLAYED: tuple[PlayedProvider, ...] = (
    openai.PROVIDER,
    anthropic.PROVIDER,
    gemini.PROVIDER,
    cohere.PROVIDER,
    mistral.PROVIDER,
    groq.PROVIDER,
    openrouter.PROVIDER,
    together.PROVIDER,
    azure.PROVIDER,
)
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that did not fit its documentation."""

    provider: str
    path: str
    misfit: Misfit


class FormatServer(Provider):
    """`with FormatServer() as server:` plays all of `PLAYED` until the block ends. Keys are `server.key(provider)`."""

    def __init__(self, *, stream_pause_s: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(stream_pause_s=stream_pause_s, tls=tls)
        self._played: Mapping[str, PlayedProvider] = {played.name: played for played in PLAYED}
        self._refused: list[Refused] = []
        self._failures: list[Failure] = []
        self._guard = threading.Lock()

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self._played)

    def origin(self, provider: str) -> str:
        """Stands for the provider's scheme and host."""
        scheme = "https://localhost" if self._tls else f"http://{self._host}"
        return f"{scheme}:{self.port}/{self._played[provider].name}"

    def url(self, provider: str) -> str:
        """Stands for the provider's documented base URL."""
        return self.origin(provider) + self._played[provider].base_path

    def key(self, provider: str) -> str:
        """The only key that the played provider takes."""
        return f"played-{self._played[provider].name}-key"

    def fail(self, failure: Failure, *, times: int = 1) -> None:
        """Refuse the next `times` requests so, whoever is asked."""
        with self._guard:
            self._failures = [failure] * times

    @property
    def refused(self) -> list[Refused]:
        """Every request so far that did not fit its provider's documentation; a copy."""
        with self._guard:
            return list(self._refused)

    def clear(self) -> None:
        super().clear()
        with self._guard:
            self._refused.clear()
            self._failures.clear()

    def asked(self, provider: str) -> list[ReceivedRequest]:
        """What `provider` was asked so far, lists of models left out."""
        prefix = f"/{provider}/"
        return [one for one in self.received if one.path.startswith(prefix) and one.method == "POST"]

    def _play(self, line: _Line, request: ReceivedRequest, script: Script) -> bool:
        if script.mode is not Mode.OK:
            return super()._play(line, request, script)
        return self._send_reply(line, self._reply(request))

    def _reply(self, request: ReceivedRequest) -> Reply:
        path, query = split_query(request.path)
        name, _, rest = path.removeprefix("/").partition("/")
        played = self._played.get(name)
        if played is None:
            return Reply(404, dumped({"error": f"{name} is not played here"}))
        base = played.base_path.removeprefix("/")
        inside = rest.removeprefix(base) if base and rest.startswith(base) else f"/{rest}"
        arrived = Arrived(request.method, inside, query, request.headers, request.json)
        if not played.authorised(arrived, self.key(name)):
            return played.fail(Failure.AUTHENTICATION, arrived)
        with self._guard:
            failure = self._failures.pop(0) if self._failures and request.method == "POST" else None
        if failure is not None:
            return played.fail(failure, arrived)
        reply = played.answer(arrived)
        if reply.misfit is not None:
            with self._guard:
                self._refused.append(Refused(name, path, reply.misfit))
        return reply

    def _send_reply(self, line: _Line, reply: Reply) -> bool:
        reason = HTTPStatus(reply.status).phrase if reply.status in set(HTTPStatus) else "Status"
        start = f"HTTP/1.1 {reply.status} {reason}"
        if not reply.events:
            headers = {"Content-Type": "application/json", **reply.headers, "Content-Length": str(len(reply.body))}
            line.send(_written(start, headers) + reply.body)
            return True
        headers = {"Content-Type": "text/event-stream", **reply.headers, "Transfer-Encoding": "chunked"}
        line.send(_written(start, headers))
        return self._send_events(line, reply.events)

    def _send_events(self, line: _Line, events: Iterable[bytes]) -> bool:
        *before, last = events
        for event in before:
            line.send(_chunk(event))
            if not line.pause(self.stream_pause_s):
                return False
        # In one piece with the end of the body: whoever has the last event waits a moment only for what is behind it.
        line.send(_chunk(last) + _LAST_CHUNK)
        return True


def _written(start: str, headers: Mapping[str, str]) -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
