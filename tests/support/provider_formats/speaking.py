"""What the played model says: the same for every provider, told by what the request asks.

So a test can ask any provider for the same thing and compare what comes back through the proxy:

* tools on offer and no result among the last messages: it calls them, each once, in the order of the offer (one alone where
  parallel calls are off, and exactly the forced one), with arguments made from the tool's schema;
* results of tools: it repeats them;
* a JSON schema: JSON that fits it; JSON mode: an object;
* images and files: it tells how many of which type it saw, and how many bytes;
* anything else: `PLAIN`. A model whose name ends in `-thinking` thinks first.

`stop` sequences cut the text, and `max_tokens` below `WORDS_MAX` cuts it after that many words.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import Enum, auto

PLAIN = "All is well, and the weather is fine."
THOUGHT = "The user wants to know how things are."
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBtb2RlbA=="
THINKING_SUFFIX = "-thinking"
WORDS_MAX = 50


class Finish(Enum):
    STOP = auto()
    STOP_SEQUENCE = auto()
    LENGTH = auto()
    TOOLS = auto()


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool on offer; `schema` of its arguments."""

    name: str
    schema: dict[str, object]


@dataclass(frozen=True, slots=True)
class Seen:
    """An image or a file: `data` in base64, or else its address."""

    kind: str
    media_type: str
    data: str | None = None
    url: str | None = None

    def told(self) -> str:
        if self.data is None:
            return f"{self.kind} at {self.url}"
        return f"{self.kind} {self.media_type} of {decoded_size(self.data)} bytes"


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request decides the answer. `forced` is a tool's name; `silent` says that tools may not be called."""

    model: str
    offers: tuple[Offer, ...] = ()
    forced: str | None = None
    silent: bool = False
    parallel: bool = True
    results: tuple[str, ...] = ()
    seen: tuple[Seen, ...] = ()
    schema: dict[str, object] | None = None
    json_mode: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: dict[str, object]

    @property
    def written(self) -> str:
        return json.dumps(self.arguments, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Said:
    """`stopped_at` is the stop sequence that ended the text."""

    text: str
    calls: tuple[Call, ...] = ()
    thought: str | None = None
    finish: Finish = Finish.STOP
    stopped_at: str | None = None

    def pieces(self) -> list[str]:
        """The text as a stream brings it: word by word, blanks at their front."""
        words = self.text.split(" ")
        return [word if at == 0 else f" {word}" for at, word in enumerate(words)] if self.text else []


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of every answer. The prompt's are `fresh` + `cached` + `written`; of those said, `thought` were thinking."""

    fresh: int = 13
    cached: int = 8
    written: int = 3
    said: int = 9
    thought: int = 4

    @property
    def prompt(self) -> int:
        return self.fresh + self.cached + self.written

    @property
    def total(self) -> int:
        return self.prompt + self.said


COUNTS = Counts()


def speak(asked: Asked) -> Said:
    thought = THOUGHT if asked.thinking or asked.model.endswith(THINKING_SUFFIX) else None
    if calls := _calls(asked):
        return Said("", calls, thought, Finish.TOOLS)
    text = _text(asked)
    for stop in asked.stop:
        if stop and stop in text:
            return Said(text[: text.index(stop)], (), thought, Finish.STOP_SEQUENCE, stop)
    words = text.split(" ")
    if asked.max_tokens is not None and asked.max_tokens < min(len(words), WORDS_MAX):
        return Said(" ".join(words[: asked.max_tokens]), (), thought, Finish.LENGTH)
    return Said(text, (), thought)


def sample(schema: dict[str, object]) -> object:
    """A value that fits `schema`: the first of every choice, all properties, lists of one."""
    if "const" in schema:
        return schema["const"]
    choices = schema.get("enum") or schema.get("anyOf") or schema.get("oneOf")
    if isinstance(choices, list) and choices:
        return choices[0] if "enum" in schema else sample(choices[0])
    match _first_type(schema.get("type")):
        case "object":
            properties = schema.get("properties")
            return {name: sample(inner) for name, inner in properties.items()} if isinstance(properties, dict) else {}
        case "array":
            items = schema.get("items")
            return [sample(items)] if isinstance(items, dict) else []
        case "integer":
            return 7
        case "number":
            return 21.5
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "Paris"


def vector(text: str, size: int) -> list[float]:
    """A unit-free embedding: each text its own, the same each time, exact in single precision."""
    seed = sum(text.encode()) or 1
    return [((seed * (at + 1)) % 16) / 16 for at in range(size)]


def decoded_size(data: str) -> int:
    """Bytes behind base64; -1 where it is none."""
    try:
        return len(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return -1


def _calls(asked: Asked) -> tuple[Call, ...]:
    if asked.silent or asked.results or not asked.offers:
        return ()
    offers = [offer for offer in asked.offers if asked.forced in (None, offer.name)]
    if not asked.parallel:
        offers = offers[:1]
    arguments = [sample({"type": "object", **offer.schema}) for offer in offers]
    return tuple(
        Call(f"call_{at}_{offer.name}", offer.name, made)
        for at, (offer, made) in enumerate(zip(offers, arguments, strict=True))
        if isinstance(made, dict)
    )


def _text(asked: Asked) -> str:
    if asked.schema is not None:
        return json.dumps(sample(asked.schema))
    if asked.json_mode:
        return json.dumps({"answer": PLAIN})
    told = [f"The tool said: {result}" for result in asked.results] + [f"I see {seen.told()}." for seen in asked.seen]
    return " ".join(told) or PLAIN


def _first_type(kind: object) -> str:
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    return str(kind or "string").lower()
