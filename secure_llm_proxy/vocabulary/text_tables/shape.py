"""What a place in a payload is: structure, media, or text of a channel, and how the places below it are told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Channel(StrEnum):
    """Whose words a text is, or what it is for. An interface of inspection: add, never rename."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"  # the model's visible words: the answer, and earlier ones repeated in a request
    REASONING = "reasoning"
    REFUSAL = "refusal"
    TOOL_CALL = "tool_call"  # the name and the arguments that a model called a tool with
    TOOL_RESULT = "tool_result"
    TOOL_DEFINITION = "tool_definition"
    OUTPUT_SCHEMA = "output_schema"
    FILE = "file"  # names, titles and texts of documents
    URL = "url"
    CITATION = "citation"
    TOKEN = "token"  # noqa: S105  a piece of the answer, in the list of log probabilities
    PARAMETER = "parameter"  # free text that no model reads: stop sequences, labels, a person's id
    ERROR = "error"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Shape:
    """One place. A list has the shape of its items.

    `channel` is that of a string which stands here; None: structure (an id, a name from a list), and a string that doesn't look
    like it counts as unknown text. `is_media` knows the strings that are no text here, though it has a channel. `fields` are the
    places below; `rest` is the shape of every other one, whose name has the channel `names` (None: a name is structure too).
    Without `rest`, other fields are unknown, with their names. `by` names the field whose value, as `sorted_by` sees it, chooses
    one of `variants` instead of this shape. `numbers`: a model reads numbers here as well, so they are texts.
    """

    channel: Channel | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    rest: Shape | None = None
    names: Channel | None = None
    by: str | None = None
    variants: Mapping[object, Shape] = field(default_factory=dict)
    sorted_by: Callable[[object], object] | None = None
    is_media: Callable[[str], bool] | None = None
    numbers: bool = False


# What no model reads as text: of a data URL, or of anything that tells its type. Text in base64 is text, and bytes of a type that
# says nothing (application/octet-stream) may be: providers go by the file's name then.
_MEDIA_TYPE = r"(?:image/(?!svg)|audio/|video/|application/pdf)[A-Za-z0-9/.+;=_-]{0,96}"
_TYPED = re.compile(_MEDIA_TYPE, re.IGNORECASE)
_DATA_URL = re.compile(f"data:{_MEDIA_TYPE};base64,", re.IGNORECASE)
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-=\r\n"
_PDF_IN_BASE64 = "JVBERi0"


def _is_base64(told: str) -> bool:
    """6 ms for 8 MiB (2026-11)."""
    return told.isascii() and not told.encode("ascii").translate(None, _BASE64)


def _is_data_url(told: str) -> bool:
    start = _DATA_URL.match(told)
    return start is not None and _is_base64(told[start.end() :])


def _is_file(told: str) -> bool:
    """A data URL, or a PDF: of any other file without its type a model may read the text."""
    return _is_data_url(told) or (told.startswith(_PDF_IN_BASE64) and _is_base64(told))


def _is_media_type(told: object) -> bool:
    return isinstance(told, str) and _TYPED.fullmatch(told) is not None


STRUCTURE = Shape()
# Pictures, sounds, signatures, sealed thoughts.
MEDIA = Shape(Channel.FILE, is_media=_is_base64)
FILE_DATA = Shape(Channel.FILE, is_media=_is_file)
LINK = Shape(Channel.URL, is_media=_is_data_url)


def blob(data: str, media_type: str, fields: Mapping[str, Shape], channel: Channel | None = None) -> Shape:
    """A file whose field `media_type` says what stands in `data`: media only if no model reads such a type as text."""
    as_text = Shape(channel, {**fields, media_type: STRUCTURE, data: Shape(Channel.FILE)})
    as_media = {**fields, media_type: STRUCTURE, data: MEDIA}
    return Shape(channel, as_media, by=media_type, variants={False: as_text}, sorted_by=_is_media_type)


def text(channel: Channel) -> Shape:
    """A string, or a list of strings."""
    return _TEXTS[channel]


def whole(channel: Channel) -> Shape:
    """A value of any form that a model reads as it stands: every name, string and number in it."""
    return _WHOLES[channel]


def structure(names: str) -> dict[str, Shape]:
    """Fields that hold structure, or no strings at all."""
    return alike(names, STRUCTURE)


def alike(names: str, shape: Shape) -> dict[str, Shape]:
    """Fields of one shape."""
    return dict.fromkeys(names.split(), shape)


def texts(channel: Channel, names: str) -> dict[str, Shape]:
    return alike(names, text(channel))


def both_spellings(fields: Mapping[str, Shape]) -> dict[str, Shape]:
    """`fields` in camelCase, and each in snake_case too: Google's JSON mapping of protocol buffers reads either."""
    spelled = dict(fields)
    for name, shape in fields.items():
        spelled["".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)] = shape
    return spelled


def variants_of(by: str, variants: Mapping[object, Shape], default: Shape) -> Shape:
    """`default`, unless the field `by` chooses another shape."""
    return replace(default, by=by, variants=variants)


def chosen_alike(values: str, shape: Shape) -> dict[object, Shape]:
    """Several values that choose the same shape."""
    return dict.fromkeys(values.split(), shape)


def schema(channel: Channel) -> Shape:
    """A JSON schema: its keywords are structure; names of properties, descriptions, defaults and listed values are text.

    Source: JSON Schema 2020-12, core and validation vocabularies; OpenAPI 3.0's `nullable` and `example`.
    """
    fields: dict[str, Shape] = {}
    here = Shape(channel, fields, whole(channel), channel)
    named = Shape(channel, rest=here, names=channel)
    fields |= structure(
        "type format $schema $id $anchor $dynamicAnchor contentEncoding contentMediaType minimum maximum"
        " exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems uniqueItems minContains"
        " maxContains minProperties maxProperties nullable readOnly writeOnly deprecated"
    )
    fields |= texts(channel, "title description pattern required propertyOrdering $comment $ref $dynamicRef")
    fields |= alike("default const enum example examples", whole(channel))
    fields |= alike("properties patternProperties $defs definitions dependentSchemas", named)
    fields |= alike(
        "items prefixItems additionalItems additionalProperties unevaluatedItems unevaluatedProperties contains"
        " propertyNames not if then else anyOf oneOf allOf contentSchema",
        here,
    )
    fields["dependentRequired"] = Shape(channel, rest=text(channel), names=channel)
    return here


_TEXTS = {channel: Shape(channel) for channel in Channel}


def _whole(channel: Channel) -> Shape:
    shape = Shape(channel, names=channel, numbers=channel is not Channel.UNKNOWN)
    shape.rest = shape
    return shape


_WHOLES = {channel: _whole(channel) for channel in Channel}

UNKNOWN = _WHOLES[Channel.UNKNOWN]
# Counts and codes in any form: nothing below is text while it looks like structure.
QUIET = Shape()
QUIET.rest = QUIET
# Labels of the caller's own: names and values.
LABELS = Shape(Channel.PARAMETER, rest=text(Channel.PARAMETER), names=Channel.PARAMETER)
TOOL_SCHEMA = schema(Channel.TOOL_DEFINITION)
OUTPUT_SCHEMA = schema(Channel.OUTPUT_SCHEMA)
