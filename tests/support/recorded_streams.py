"""Streams of every provider format, as they come over the wire, and a connection that gives one in any pieces.

They are played by `provider_formats` (text, thoughts, calls of tools in parallel) and by `spoken_formats` (texts that are cut up in
the midst of characters and line ends).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.upstream.provider import _EventStream
from secure_llm_proxy.vocabulary.chat import CompletionStream, StreamEvent
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.provider_formats import anthropic, cohere, gemini, openai
from tests.support.provider_formats.playing import Arrived, PlayedProvider
from tests.support.spoken_formats import (
    AnthropicMessages,
    CohereChat,
    GeminiGenerate,
    OpenAiChat,
    OpenAiCompletions,
    OpenAiResponses,
    Saying,
    SpokenFormat,
)

EVENT_BYTES_MAX = 2**20
# Every character in two to four bytes, and what looks like the end of a line or of a stream.
TEXT = "Grüße, 漢字! 😀\u2028\u2029\u0085 \r\n\n data: [DONE]\n\n \\u0041 é e\u0301 \U0010ffff end"


@dataclass(frozen=True, slots=True)
class Recorded:
    """`data` is the body of one stream in `format`."""

    name: str
    format: WireFormat
    data: bytes


def recorded_streams() -> list[Recorded]:
    """One of each kind, for the formats that this product reads."""
    spoken: Mapping[WireFormat, SpokenFormat] = {
        WireFormat.OPENAI_CHAT: OpenAiChat(),
        WireFormat.OPENAI_COMPLETIONS: OpenAiCompletions(),
        WireFormat.OPENAI_RESPONSES: OpenAiResponses(),
        WireFormat.ANTHROPIC_MESSAGES: AnthropicMessages(),
        WireFormat.GEMINI_GENERATE: GeminiGenerate(),
        WireFormat.COHERE_CHAT: CohereChat(),
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    found = []
    for wire_format, speaker in spoken.items():
        saying = Saying("the-model", TEXT, 9, usage, {"stream_options": {"include_usage": True}})
        found.append(Recorded("text", wire_format, b"".join(speaker.events(saying)) + speaker.done))
    for wire_format, played, path, query in _PLAYED:
        for name, body in _requests(wire_format).items():
            # Gemini is told by the path.
            asked = body if query else {**body, "stream": True}
            reply = played.answer(Arrived("POST", path, query, _HEADERS, asked))
            assert reply.events, (wire_format, name, reply)
            found.append(Recorded(name, wire_format, b"".join(reply.events)))
    return [one for one in found if one.format in FORMATS]


_HEADERS = {"anthropic-version": "2023-06-01"}
_PLAYED: tuple[tuple[WireFormat, PlayedProvider, str, Mapping[str, str]], ...] = (
    (WireFormat.OPENAI_CHAT, openai.PROVIDER, "/chat/completions", {}),
    (WireFormat.ANTHROPIC_MESSAGES, anthropic.PROVIDER, "/messages", {}),
    (WireFormat.GEMINI_GENERATE, gemini.PROVIDER, "/models/gemini-2.5-flash:streamGenerateContent", {"alt": "sse"}),
    (WireFormat.COHERE_CHAT, cohere.PROVIDER, "/v2/chat", {}),
)
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _requests(wire_format: WireFormat) -> dict[str, dict[str, object]]:
    hello: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]}
    functions = [
        {"type": "function", "function": {"name": name, "description": name, "parameters": _SCHEMA}}
        for name in ("a", "b")
    ]
    match wire_format:
        case WireFormat.ANTHROPIC_MESSAGES:
            hello |= {"model": "claude-sonnet-4-5", "max_tokens": 2000}
            tools: object = [{"name": name, "description": name, "input_schema": _SCHEMA} for name in ("a", "b")]
            thinks = {**hello, "thinking": {"type": "enabled", "budget_tokens": 1024}}
            return {"said": hello, "calls": {**hello, "tools": tools}, "thinks": thinks}
        case WireFormat.GEMINI_GENERATE:
            hello = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
            declared = [{"name": name, "description": name, "parameters": _SCHEMA} for name in ("a", "b")]
            return {"said": hello, "calls": {**hello, "tools": [{"functionDeclarations": declared}]}}
        case WireFormat.COHERE_CHAT:
            hello |= {"model": "command-a-03-2025"}
            return {"said": hello, "calls": {**hello, "tools": functions}}
        case _:
            hello |= {"model": "gpt-6"}
            return {"said": hello, "calls": {**hello, "tools": functions}}


class Pieces:
    """A connection's answer in these pieces, as the reading of a stream sees it. `late_end`: that the body is over is known only
    when somebody asks for more. An empty piece is one that held nothing but framing.
    """

    def __init__(self, pieces: Sequence[bytes], *, late_end: bool) -> None:
        self._pieces = list(reversed(pieces))
        self._late_end = late_end
        self.body_over = not pieces and not late_end
        self.closed = False

    def read(self) -> bytes:
        """Waits until something has come: never empty before the end."""
        while self._pieces:
            if piece := self.read_now():
                return piece
        self.body_over = True
        return b""

    def read_now(self) -> bytes:
        piece = self._pieces.pop() if self._pieces else b""
        if not self._pieces and (not self._late_end or not piece):
            self.body_over = True
        return piece

    def sleep(self, on_readable: Callable[[], bool]) -> None:
        while not self.closed and on_readable():
            pass

    def finish_early(self) -> None:
        self._pieces.clear()

    def close(self) -> None:
        self.closed = True


def stream_of(
    recorded: Recorded, pieces: Sequence[bytes], *, translated: bool, shows_usage: bool = True, late_end: bool = False
) -> CompletionStream:
    """The reading of a stream that comes in `pieces`. Raises what it raises before its first event."""
    reader = FORMATS[recorded.format].stream(translated=translated, shows_usage=shows_usage)
    return _EventStream(Pieces(pieces, late_end=late_end), reader, event_bytes_max=EVENT_BYTES_MAX)  # type: ignore[arg-type]


def iterated(stream: CompletionStream) -> list[StreamEvent]:
    return list(stream)


def pumped(stream: CompletionStream, *, pauses: Iterator[bool]) -> list[StreamEvent]:
    """The events by `pump`; whoever takes them wants a pause wherever `pauses` says so."""
    events: list[StreamEvent] = []

    def take(event: StreamEvent) -> bool:
        events.append(event)
        return not next(pauses)

    while stream.pump(take):
        pass
    return events


def cut(data: bytes, edges: Sequence[int]) -> list[bytes]:
    """`data` in pieces that end at these positions."""
    sorted_edges = sorted({0, *(edge % (len(data) + 1) for edge in edges), len(data)})
    return [data[start:end] for start, end in itertools.pairwise(sorted_edges)]
