"""Requests as nobody would write them: valid conversations of each format with hostile texts, written in unusual but legal JSON,
and now and then in JSON that must be refused.

Every text holds a mark of its own (`mk7f-`), so that it can be found again wherever it went. The same seed makes the same requests.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from tests.support.wire_samples import DATA_URL, PNG, SAMPLES, Json

# Pieces of text that parsers, databases, logs and templates have stumbled over.
_HOSTILE = (
    "", " ", "\n", "\t\r\n", "\\", '"', "\\u0041", "\x00", "\x1f", "\x7f", "\u0085", "\u2028", "\u2029", "\ufeff", "\ufffd", "\uffff",
    "é", "e\u0301", "ﬁ", "İ", "ß", "漢字", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0010ffff", "\u202eabc\u202c",
    "</script>", "{{7*7}}", "${x}", "%s%n", "'; DROP TABLE t;--", "data: [DONE]\n\n", "event: error\n", '{"role":"system"}',
    '","role":"system","content":"', "[DONE]", "null", "NaN", "1e999", "-0", "\u0000\u0001", "a" * 300, "<|im_start|>system",
    "\n\nHuman:", "data:image/png;base64,AAAA", "call_1",
)  # fmt: skip
_TELLS_ITS_CHANNEL = re.compile(r"[a-z_]+: ")
_NUMBERS: tuple[Json, ...] = (
    0,
    -1,
    1,
    0.5,
    1.0,
    -0.0,
    1e-7,
    1e21,
    123456789.125,
    2**53,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)


@dataclass(frozen=True, slots=True)
class Generated:
    """`payload` None: no reader may take `body` for a request."""

    body: bytes
    payload: dict[str, Json] | None
    why: str = ""


class RequestGenerator:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self._marks = count(1)

    def request(
        self, wire_format: str, *, refused_share: float = 0.15, unknown_share: float = 0.3, wild: bool = False
    ) -> Generated:
        """A request that the door of this format takes, or with a probability of `refused_share` none at all.

        `wild`: with anything that the format documents, whether or not it makes sense together.
        """
        payload = _BUILDERS[wire_format](self)
        if wild and (wire_format, "request") in SAMPLES:
            sample = self.dice.choice(SAMPLES[wire_format, "request"])
            assert isinstance(sample, dict)
            documented = {name: self._marked(value) for name, value in sample.items() if self.maybe()}
            payload = {**documented, **payload} if self.maybe() else {**payload, **documented}
        if self.dice.random() < unknown_share:
            payload[f"x-{self.text()}"] = self.anything(3)
        if self.dice.random() < refused_share:
            return self._refused(payload)
        return Generated(self.written(payload), payload)

    def text(self) -> str:
        dice = self.dice
        said = "".join(dice.choice(_HOSTILE) for _ in range(dice.randrange(4)))
        # Never the beginning of a text: some of these are white space, and a blank prompt is refused.
        return f"mk{next(self._marks):x}-{said}{dice.choice(('', 'word', ' a sentence. '))}"

    def _marked(self, value: Json) -> Json:
        """A documented value with texts of our own."""
        if isinstance(value, str):
            return self.text() if _TELLS_ITS_CHANNEL.match(value) else value
        if isinstance(value, list):
            return [self._marked(item) for item in value]
        if isinstance(value, dict):
            return {
                self.text() if _TELLS_ITS_CHANNEL.match(name) else name: self._marked(item)
                for name, item in value.items()
            }
        return value

    def number(self) -> Json:
        return self.dice.choice(_NUMBERS)

    def anything(self, depth: int) -> Json:
        kind = self.dice.randrange(7 if depth else 5)
        if kind == 0:
            return self.text()
        if kind == 1:
            return self.number()
        if kind == 2:
            return None
        if kind in {3, 4}:
            return kind == 3
        if kind == 5:
            return [self.anything(depth - 1) for _ in range(self.dice.randrange(4))]
        return self.object(depth - 1)

    def object(self, depth: int) -> dict[str, Json]:
        return {self.text(): self.anything(depth) for _ in range(self.dice.randrange(4))}

    def maybe(self, share: float = 0.5) -> bool:
        return self.dice.random() < share

    def several(self, make: Callable[[], Json], most: int = 3) -> list[Json]:
        return [make() for _ in range(self.dice.randint(1, most))]

    def written(self, value: Json) -> bytes:
        """`value` as legal JSON, with its spaces, escapes and numbers in any form."""
        return "".join(self._pieces(value)).encode()

    def _pieces(self, value: Json) -> list[str]:
        if isinstance(value, str):
            return [self._string(value)]
        if isinstance(value, bool) or value is None:
            return [json.dumps(value)]
        if isinstance(value, int | float):
            return [self._written_number(value)]
        pieces = ["{" if isinstance(value, dict) else "["]
        items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
        for position, (name, item) in enumerate(items):
            pieces += ["," * bool(position), self._space()]
            if isinstance(name, str):
                pieces += [self._string(name), self._space(), ":", self._space()]
            pieces += [*self._pieces(item), self._space()]
        return [*pieces, "}" if isinstance(value, dict) else "]"]

    def _space(self) -> str:
        return self.dice.choice(("", "", "", " ", "\n", "\t", "\r\n  "))

    def _string(self, text: str) -> str:
        style = self.dice.randrange(4)
        if style < 2:
            return json.dumps(text, ensure_ascii=style == 0)
        pieces = []
        for character in text:
            if self.dice.random() < 0.2 or (character < " ") or character in '"\\':
                units = character.encode("utf-16-be", "surrogatepass")
                form = "\\u%04X" if style == 2 else "\\u%04x"
                pieces += [form % int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
            else:
                pieces.append("\\/" if character == "/" and style == 3 else character)
        return f'"{"".join(pieces)}"'

    def _written_number(self, value: int | float) -> str:  # noqa: PYI041  an integer stays one
        text = json.dumps(value)
        if "e" in text:
            return text.replace("e", self.dice.choice(("e", "E")))
        if "." in text:
            return text + self.dice.choice(("", "0", "e0", "E+0", "e-0"))
        return text

    def _refused(self, payload: dict[str, Json]) -> Generated:
        name = self.dice.choice(list(_SPOILED))
        return Generated(_SPOILED[name](self, self.written(payload)), None, name)


def _twice(generator: RequestGenerator, body: bytes) -> bytes:
    """One of its names stands twice; the second may be spelled in escapes."""
    name = generator.dice.choice(list(json.loads(body)))
    units = name.encode("utf-16-be")
    escaped = "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2))
    again = json.dumps(name) if generator.maybe() else f'"{escaped}"'
    return b"{" + again.encode() + b': "the first", ' + body.lstrip()[1:]


def _before_the_end(addition: bytes) -> Callable[[RequestGenerator, bytes], bytes]:
    return lambda _, body: body.rstrip()[:-1] + addition + b"}"


_SPOILED: Mapping[str, Callable[[RequestGenerator, bytes], bytes]] = {
    "a name twice": _twice,
    "a name twice, deep": _before_the_end(b', "deep": [{"a": {"b": 1, "b": 2}}]'),
    "NaN": _before_the_end(b', "n": NaN'),
    "Infinity": _before_the_end(b', "n": [-Infinity]'),
    "1e999": _before_the_end(b', "n": 1e999'),
    "an integer of 65 bits": _before_the_end(b', "n": 18446744073709551616'),
    "a lone surrogate": _before_the_end(b', "t": "\\ud83d"'),
    "a lone surrogate in a name": _before_the_end(b', "\\udc00": 1'),
    "a byte order mark": lambda _, body: b"\xef\xbb\xbf" + body,
    "bad UTF-8": _before_the_end(b', "t": "\xc3\x28"'),
    "an encoded surrogate": _before_the_end(b', "t": "\xed\xa0\x80"'),
    "UTF-16": lambda _, body: body.decode().encode("utf-16"),
    "a trailing comma": _before_the_end(b","),
    "65 levels": _before_the_end(b', "d": ' + b"[" * 65 + b"]" * 65),
    "100,000 levels": _before_the_end(b', "d": ' + b"[" * 100_000 + b"]" * 100_000),
    "a comment": _before_the_end(b" /* x */"),
    "another value behind": lambda _, body: body + b'{"messages": []}',
    "half of it": lambda generator, body: body[: generator.dice.randrange(1, len(body.rstrip()))],
    "a NUL behind": lambda _, body: body + b"\x00",
    "single quotes": lambda _, body: body.replace(b'"', b"'"),
}


def _tuning(generator: RequestGenerator) -> dict[str, Json]:
    """What any provider can be told."""
    told: dict[str, Json] = {}
    if generator.maybe(0.3):
        told["temperature"] = generator.dice.choice((0, 0.5, 1, 1.0))
    if generator.maybe(0.2):
        told["top_p"] = generator.dice.choice((0.1, 1))
    if generator.maybe(0.3):
        told["stream"] = generator.maybe()
    return told


def _chat_call(generator: RequestGenerator, number: int) -> dict[str, Json]:
    arguments = json.dumps(generator.object(2), ensure_ascii=generator.maybe())
    return {"id": f"call_{number}", "type": "function", "function": {"name": f"tool_{number}", "arguments": arguments}}


def _chat_parts(generator: RequestGenerator) -> Json:
    if generator.maybe(0.6):
        return generator.text()
    parts: list[Json] = generator.several(lambda: {"type": "text", "text": generator.text()})
    if generator.maybe(0.3):
        parts.append({"type": "image_url", "image_url": {"url": DATA_URL}})
    if generator.maybe(0.1):
        kept = base64.b64encode(generator.text().encode()).decode()
        parts.append({"type": "file", "file": {"file_data": f"data:text/plain;base64,{kept}", "filename": "a.txt"}})
    return parts


def _tool_schema(generator: RequestGenerator) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": {f"p{number}": {"type": "string", "description": generator.text()} for number in range(2)},
        "required": ["p0"],
    }


def _chat_messages(generator: RequestGenerator) -> list[Json]:
    messages: list[Json] = []
    if generator.maybe():
        messages.append({"role": generator.dice.choice(("system", "developer")), "content": generator.text()})
    calls = count(1)
    for _ in range(generator.dice.randrange(3)):
        messages.append({"role": "user", "content": _chat_parts(generator)})
        if generator.maybe(0.4):
            numbers = [next(calls) for _ in range(generator.dice.randint(1, 2))]
            answered: dict[str, Json] = {"role": "assistant", "tool_calls": [_chat_call(generator, n) for n in numbers]}
            if generator.maybe():
                answered["content"] = generator.text()
            messages.append(answered)
            messages += [{"role": "tool", "tool_call_id": f"call_{n}", "content": generator.text()} for n in numbers]
        messages.append({"role": "assistant", "content": generator.text()})
    messages.append({"role": "user", "content": _chat_parts(generator)})
    return messages


def _chat(generator: RequestGenerator) -> dict[str, Json]:
    payload: dict[str, Json] = {"model": "m", "messages": _chat_messages(generator), **_tuning(generator)}
    if generator.maybe(0.3):
        payload["max_completion_tokens" if generator.maybe() else "max_tokens"] = 64
    if generator.maybe(0.2):
        payload["stop"] = generator.several(generator.text, 2)
    if generator.maybe(0.3):
        payload["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": f"tool_{number}",
                    "description": generator.text(),
                    "parameters": _tool_schema(generator),
                },
            }
            for number in (1, 2)
        ]
    if generator.maybe(0.1):
        payload["metadata"] = {"label": generator.text()}
    return payload


def _own_chat(generator: RequestGenerator) -> dict[str, Json]:
    return {"model": "m", generator.dice.choice(("prompt", "message")): generator.text(), **_tuning(generator)}


def _completions(generator: RequestGenerator) -> dict[str, Json]:
    payload: dict[str, Json] = {"model": "m", "prompt": generator.text(), **_tuning(generator)}
    if generator.maybe(0.2):
        payload["stop"] = generator.text()
    return payload


def _embeddings(generator: RequestGenerator) -> dict[str, Json]:
    told: Json = generator.text() if generator.maybe() else generator.several(generator.text)
    return {"model": "m", "input": told}


def _responses(generator: RequestGenerator) -> dict[str, Json]:
    payload: dict[str, Json] = {"model": "m", "store": False, **_tuning(generator)}
    if generator.maybe(0.4):
        payload["instructions"] = generator.text()
    if generator.maybe(0.3):
        payload["input"] = generator.text()
        return payload
    items: list[Json] = []
    calls = count(1)
    for _ in range(generator.dice.randrange(3)):
        parts: list[Json] = generator.several(lambda: {"type": "input_text", "text": generator.text()})
        if generator.maybe(0.2):
            parts.append({"type": "input_image", "image_url": DATA_URL, "detail": "auto"})
        items.append({"role": "user", "content": generator.text() if generator.maybe() else parts})
        if generator.maybe(0.4):
            number = next(calls)
            arguments = json.dumps(generator.object(2))
            items += [
                {
                    "type": "function_call",
                    "call_id": f"call_{number}",
                    "name": f"tool_{number}",
                    "arguments": arguments,
                },
                {"type": "function_call_output", "call_id": f"call_{number}", "output": generator.text()},
            ]
        items.append({"role": "assistant", "content": generator.text()})
    items.append({"role": "user", "content": generator.text()})
    payload["input"] = items
    if generator.maybe(0.3):
        payload["tools"] = [
            {
                "type": "function",
                "name": "tool_1",
                "description": generator.text(),
                "parameters": _tool_schema(generator),
                "strict": False,
            }
        ]
    return payload


def _anthropic(generator: RequestGenerator) -> dict[str, Json]:
    payload: dict[str, Json] = {"model": "m", "max_tokens": 64, **_tuning(generator)}
    payload.pop("top_p", None)
    if generator.maybe():
        payload["system"] = (
            generator.text()
            if generator.maybe()
            else generator.several(lambda: {"type": "text", "text": generator.text()})
        )
    messages: list[Json] = []
    calls = count(1)
    opening: list[Json] = []
    for _ in range(generator.dice.randrange(3)):
        said: list[Json] = [*opening, {"type": "text", "text": generator.text()}]
        if generator.maybe(0.2):
            said.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})
        if generator.maybe(0.1):
            # Text whatever it says that it is.
            claimed = generator.dice.choice(("text/plain", "text/plain", "image/png"))
            told_of: dict[str, Json] = {"type": "text", "media_type": claimed, "data": generator.text()}
            said.append({"type": "document", "source": told_of, "title": generator.text()})
        messages.append({"role": "user", "content": said if opening or generator.maybe() else generator.text()})
        answered: list[Json] = [{"type": "text", "text": generator.text()}]
        opening = []
        if generator.maybe(0.4):
            number = next(calls)
            answered.append(
                {"type": "tool_use", "id": f"toolu_{number}", "name": f"tool_{number}", "input": generator.object(2)}
            )
            told: Json = generator.text() if generator.maybe() else [{"type": "text", "text": generator.text()}]
            opening = [{"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": told}]
        messages.append({"role": "assistant", "content": answered})
    messages.append({"role": "user", "content": [*opening, {"type": "text", "text": generator.text()}]})
    payload["messages"] = messages
    if generator.maybe(0.2):
        payload["stop_sequences"] = generator.several(generator.text, 2)
    if generator.maybe(0.3):
        payload["tools"] = [
            {"name": "tool_1", "description": generator.text(), "input_schema": _tool_schema(generator)}
        ]
    return payload


def _count_tokens(generator: RequestGenerator) -> dict[str, Json]:
    payload = _anthropic(generator)
    for name in ("max_tokens", "temperature", "stop_sequences"):
        payload.pop(name, None)
    return payload


_BUILDERS: Mapping[str, Callable[[RequestGenerator], dict[str, Json]]] = {
    "own_chat": _own_chat,
    "openai_chat": _chat,
    "openai_completions": _completions,
    "openai_embeddings": _embeddings,
    "openai_responses": _responses,
    "anthropic_messages": _anthropic,
    "anthropic_count_tokens": _count_tokens,
}
