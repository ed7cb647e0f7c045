"""Every text of a wire payload, with its path: what inspection sees, and what redaction may write anew.

Nothing hides from it. A table (`text_tables`) lists structure (ids, roles, enums, media in base64) and the channels of known
texts; every other string anywhere in the payload, the names of unknown fields included, is text of the channel "unknown". A
string that should be structure and doesn't look like it (longer than 256 bytes, a space, anything but letters, digits and a few
signs) is unknown text as well. Media are no text only while they look like it, in base64 or a data URL, and have no type that a
model reads. JSON inside a string (a tool's arguments) is given as that string, and so is a text file in base64: whoever inspects
them has to open them. Where a model reads a value as it stands (a tool's input),
numbers are given as well, as they are written.

Not text, and so not seen: prompts given as numbers of tokens, and the `bytes` beside log probabilities.

2.1 µs for a chat of two messages, 12 µs with two tools, 1.4 to 2.4 µs for one event of a stream (2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias, cast

from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.text_tables import TABLES, Channel, Direction
from secure_llm_proxy.vocabulary.text_tables.shape import UNKNOWN, Shape

__all__ = [
    "Channel",
    "Direction",
    "Path",
    "TextField",
    "holds_unknown_text",
    "replace_texts",
    "says_only",
    "table_of",
    "texts_of",
]

Path: TypeAlias = "tuple[str | int, ...]"

# Words that stand in most payloads, so that the pattern is not asked.
_WORDS = frozenset(
    {
        "text", "user", "assistant", "system", "developer", "tool", "model", "function", "message", "stop", "chat.completion",
        "chat.completion.chunk", "end_turn", "auto", "object", "string", "number", "integer", "array", "boolean",
    }
)  # fmt: skip
_STRUCTURE = re.compile(r"[A-Za-z0-9_.:/+=-]{0,256}")
_BESIDE = frozenset({Channel.TOKEN, Channel.PARAMETER})
_LONG = 32
_HOLD_TEXT = frozenset({str, dict, list})


class TextField(NamedTuple):
    """One text. With `is_key` it is the name of a field, the last of its `path`; else the value that stands there."""

    path: Path
    text: str
    channel: Channel
    is_key: bool = False


def table_of(wire_format: str, direction: Direction) -> Shape:
    """The table of a format (a `WireFormat`) in one direction. Raises `KeyError` where there is no such message."""
    return TABLES[wire_format, direction]


def texts_of(payload: JsonValue, table: Shape) -> Iterator[TextField]:
    """Every text of `payload`, in the order in which it stands there; empty strings are none."""
    found: list[TextField] = []
    if type(payload) is dict or type(payload) is list:
        _gather(payload, table, (), found)
    elif type(payload) is str:
        _take(payload, table, (), found)
    return iter(found)


def says_only(payload: JsonValue, table: Shape, text: str) -> bool:
    """True if `payload` holds no text but `text`, whole or in pieces; stop sequences and the like and log probabilities aside."""
    return "".join([item.text for item in texts_of(payload, table) if item.channel not in _BESIDE]) == text


def holds_unknown_text(payload: JsonValue, table: Shape) -> bool:
    """True if there is a text where the table knows of none."""
    return any(item.channel is Channel.UNKNOWN for item in texts_of(payload, table))


def replace_texts(payload: JsonObject, table: Shape, replace: Callable[[TextField], str]) -> JsonObject:
    """`payload` with each text as `replace` wants it. Only what holds a change is copied; `payload` itself stays as it is.

    A name whose new form stands beside it already gets " 2", " 3" … behind it, so that no value is lost. A number that is
    replaced becomes a string.
    """
    values: list[tuple[Path, str]] = []
    names: dict[Path, dict[str, str]] = {}
    for item in texts_of(payload, table):
        new = replace(item)
        if new != item.text:
            if item.is_key:
                names.setdefault(item.path[:-1], {})[item.text] = new
            else:
                values.append((item.path, new))
    if not values and not names:
        return payload
    copies = _Copies(payload)
    for path, new in values:
        copies.put(path, new)
    # The deepest first: paths above still lead by the old names.
    for path in sorted(names, key=len, reverse=True):
        copies.rename(path, names[path])
    return copies.root


_Container: TypeAlias = "dict[str | int, JsonValue] | list[JsonValue]"


class _Copies:
    """A payload of which those containers are copies that something was changed in."""

    def __init__(self, payload: JsonObject) -> None:
        self.root: JsonObject = dict(payload)
        self._own: dict[Path, _Container] = {(): cast("_Container", self.root)}

    def put(self, path: Path, value: JsonValue) -> None:
        self._container(path[:-1])[cast("int", path[-1])] = value

    def rename(self, path: Path, names: Mapping[str, str]) -> None:
        container = cast("JsonObject", self._container(path))
        items = list(container.items())
        taken = {name for name, _ in items if name not in names}
        container.clear()
        for name, value in items:
            container[_free(names[name], taken) if name in names else name] = value

    def _container(self, path: Path) -> _Container:
        own = self._own.get(path)
        if own is None:
            above, last = self._container(path[:-1]), cast("int", path[-1])
            own = self._own[path] = cast("_Container", above[last]).copy()
            above[last] = cast("JsonValue", own)
        return own


def _free(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted} {count}"
    taken.add(name)
    return name


def _gather(value: dict[str, JsonValue] | list[JsonValue], shape: Shape, path: Path, found: list[TextField]) -> None:
    if type(value) is list:
        if len(value) > _LONG and not shape.numbers and _HOLD_TEXT.isdisjoint(map(type, value)):
            # an embedding
            return
        channel = None if shape.is_media else shape.channel
        for index, item in enumerate(value):
            kind = type(item)
            if kind is dict or kind is list:
                _gather(item, shape, (*path, index), found)  # type: ignore[arg-type]
            elif kind is str and channel is not None:
                if item:
                    found.append(TextField((*path, index), item, channel))  # type: ignore[arg-type]
            else:
                _take(item, shape, (*path, index), found)
        return
    assert type(value) is dict
    while shape.by is not None:
        told: object = value.get(shape.by)
        if shape.sorted_by is not None:
            told = shape.sorted_by(told)
        elif type(told) is not str and type(told) is not bool:
            told = None
        chosen = shape.variants.get(told)
        if chosen is None:
            break
        shape = chosen
    fields = shape.fields
    for name, item in value.items():
        below = fields[name] if name in fields else _unlisted(name, shape, path, found)
        kind = type(item)
        if kind is str:
            if below.channel is not None and below.is_media is None:
                if item:
                    found.append(TextField((*path, name), item, below.channel))  # type: ignore[arg-type]
            elif item not in _WORDS:
                _take(item, below, (*path, name), found)
        elif kind is dict or kind is list:
            _gather(item, below, (*path, name), found)  # type: ignore[arg-type]
        elif below.numbers:
            _take(item, below, (*path, name), found)


def _unlisted(name: str, shape: Shape, path: Path, found: list[TextField]) -> Shape:
    """Give the name of a field that no table lists, and return the shape of what it holds."""
    rest, channel = shape.rest, shape.names
    if rest is None:
        rest, channel = UNKNOWN, Channel.UNKNOWN
    elif channel is None and not _STRUCTURE.fullmatch(name):
        channel = Channel.UNKNOWN
    if channel is not None and name:
        found.append(TextField((*path, name), name, channel, is_key=True))
    return rest


def _take(item: JsonValue, shape: Shape, path: Path, found: list[TextField]) -> None:
    """Give one string or number, if it is a text."""
    kind = type(item)
    if kind is str:
        assert isinstance(item, str)
        if not item or (shape.is_media is not None and shape.is_media(item)):
            return
        if shape.channel is None and _STRUCTURE.fullmatch(item):
            return
        found.append(TextField(path, item, shape.channel or Channel.UNKNOWN))
    elif shape.numbers and (kind is int or kind is float):
        assert shape.channel is not None
        found.append(TextField(path, repr(item), shape.channel))
