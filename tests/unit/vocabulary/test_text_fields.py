"""No text of a payload is unseen, and each documented one has its channel."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest

from secure_llm_proxy.vocabulary.text_fields import (
    Channel,
    Direction,
    TextField,
    replace_texts,
    table_of,
    texts_of,
)
from secure_llm_proxy.vocabulary.text_tables import TABLES
from tests.support.wire_samples import DATA_URL, PNG, SAMPLES, Json

EVERY_SAMPLE = [
    pytest.param(wire_format, Direction(direction), sample, id=f"{wire_format}-{direction}-{number}")
    for (wire_format, direction), samples in SAMPLES.items()
    for number, sample in enumerate(samples)
]
CANARY = "canary of 2026: what nobody foresaw"


def _leaves(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str, bool]]:
    """Every string in `value`, names too, in the order in which it stands there."""
    if isinstance(value, str):
        yield path, value, False
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name), name, True
            yield from _leaves(item, (*path, name))


def _channel_told_by(text: str) -> str | None:
    said = text.partition(":")[0]
    return said if said in set(Channel) and text.startswith(f"{said}: ") else None


def test_there_is_a_sample_for_every_table() -> None:
    assert set(SAMPLES) == {(wire_format, direction.value) for wire_format, direction in TABLES}


@pytest.mark.parametrize(("wire_format", "direction", "sample"), EVERY_SAMPLE)
def test_each_documented_field_is_seen_with_its_channel_and_structure_is_not(
    wire_format: str, direction: Direction, sample: Json
) -> None:
    expected = [
        TextField(path, text, Channel(channel), is_key)
        for path, text, is_key in _leaves(sample)
        if (channel := _channel_told_by(text)) is not None and text != f"{channel}: "
    ]

    seen = list(texts_of(sample, table_of(wire_format, direction)))

    named = [item for item in seen if _channel_told_by(item.text) is not None]
    assert [item for item in expected if item not in named] == []
    assert [item for item in named if item not in expected and item.text != "assistant: "] == []
    others = [item for item in seen if item not in named]
    assert [item for item in others if item.text not in _STAND_WHERE_A_MODEL_READS] == []


# Names that say no channel, in places where a model reads any name.
_STAND_WHERE_A_MODEL_READS = {"type", "x-of-its-own"}


@pytest.mark.parametrize(("wire_format", "direction", "sample"), EVERY_SAMPLE)
def test_a_text_put_anywhere_is_seen(wire_format: str, direction: Direction, sample: Json) -> None:
    table = table_of(wire_format, direction)

    unseen = [
        path
        for path, changed in _with_a_canary_anywhere(sample)
        if CANARY not in {item.text for item in texts_of(changed, table)}
    ]

    assert unseen == []


def _with_a_canary_anywhere(sample: Json) -> Iterator[tuple[object, Json]]:
    """`sample` with the canary for a value, for a name, and as a further field or item, at one place after the other."""
    for path in _places(sample):
        changed = copy.deepcopy(sample)
        *above, last = path
        container = changed
        for step in above:
            container = container[step]  # type: ignore[index]
        if isinstance(container, dict):
            assert isinstance(last, str)
            value = container[last]
            container[last] = CANARY
            yield path, changed
            del container[last]
            container[CANARY] = value
            yield (*path, "as a name"), changed
            container[last] = {"deep": [{"er": CANARY}]}
            yield (*path, "below"), changed
        else:
            assert isinstance(container, list)
            assert isinstance(last, int)
            container[last] = CANARY
            yield path, changed
            container[last] = [[CANARY]]
            yield (*path, "in lists"), changed


def _places(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    below: list[tuple[str | int, Json]] = []
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        # of a vector, the first and the last number
        below = list(enumerate(value)) if len(value) < 40 else [(0, value[0]), (len(value) - 1, value[-1])]
    for step, item in below:
        yield (*path, step)
        yield from _places(item, (*path, step))


@pytest.mark.parametrize(
    ("told", "is_text"),
    [
        (DATA_URL, False),
        ("https://example.org/cat.png", True),
        ("data:text/plain;base64,aWdub3Jl", True),
        ("data:text/html,<b>read me</b>", True),
        ("data:image/png;base64,read me", True),
        ("data:image/svg+xml,<svg>read me</svg>", True),
        ("data:image/svg+xml;base64,PHN2Zz4=", True),
        ("data:image/png;x=read me;base64,AAAA", True),
        ("ignoreallpreviousinstructions", True),
    ],
)
def test_a_data_url_is_media_only_where_no_model_reads_it(told: str, is_text: bool) -> None:  # noqa: FBT001
    payload: Json = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": told}}]}]}

    seen = [item.text for item in texts_of(payload, table_of("openai_chat", Direction.REQUEST))]

    assert seen == ([told] if is_text else [])


@pytest.mark.parametrize(
    ("wire_format", "part", "is_text"),
    [
        (
            "anthropic_messages",
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            False,
        ),
        (
            "anthropic_messages",
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}},
            False,
        ),
        (
            "anthropic_messages",
            {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": PNG}},
            True,
        ),
        ("anthropic_messages", {"type": "document", "source": {"type": "base64", "data": PNG}}, True),
        ("openai_chat", {"type": "file", "file": {"file_data": "JVBERi0xLjcK"}}, False),
        ("openai_chat", {"type": "file", "file": {"file_data": PNG, "filename": ""}}, True),
        ("openai_chat", {"type": "file", "file": {"file_data": f"data:application/octet-stream;base64,{PNG}"}}, True),
        ("openai_chat", {"type": "file", "file": {"file_data": f"data:imagery/text;base64,{PNG}"}}, True),
        ("openai_responses", {"type": "input_file", "file_data": PNG}, True),
        ("openai_responses", {"type": "input_file", "file_data": DATA_URL}, False),
    ],
)
def test_a_file_is_media_only_if_its_type_is_known_to_be_no_text(
    wire_format: str,
    part: dict[str, Json],
    is_text: bool,  # noqa: FBT001
) -> None:
    name = "input" if wire_format == "openai_responses" else "messages"
    payload: Json = {name: [{"role": "user", "content": [part]}]}

    seen = list(texts_of(payload, table_of(wire_format, Direction.REQUEST)))

    assert [item.channel for item in seen] == ([Channel.FILE] if is_text else [])


@pytest.mark.parametrize("kind", ["mimeType", "mime_type"])
def test_text_in_base64_is_a_text_for_gemini_too(kind: str) -> None:
    name = "inlineData" if kind == "mimeType" else "inline_data"
    parts: list[Json] = [{name: {kind: "text/csv", "data": PNG}}, {name: {kind: "image/png", "data": PNG}}]

    seen = list(texts_of({"contents": [{"parts": parts}]}, table_of("gemini_generate", Direction.REQUEST)))

    assert [item.path for item in seen] == [("contents", 0, "parts", 0, name, "data")]


@pytest.mark.parametrize("told", ["call 1", "x" * 257, "ignore\nthis", "ann@example.org", "naïve"])
def test_structure_that_does_not_look_like_it_is_unknown_text(told: str) -> None:
    payload: Json = {"model": told, "messages": [{"role": "tool", "tool_call_id": told, "content": ""}]}

    seen = list(texts_of(payload, table_of("openai_chat", Direction.REQUEST)))

    assert [(item.text, item.channel) for item in seen] == [(told, Channel.UNKNOWN)] * 2


def test_numbers_are_texts_where_a_model_reads_them_and_nowhere_else() -> None:
    payload: Json = {
        "max_tokens": 4111,
        "messages": [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "pay", "input": {"card": 4111, "x": None}}],
            }
        ],
    }

    seen = list(texts_of(payload, table_of("anthropic_messages", Direction.REQUEST)))

    path = ("messages", 0, "content", 0, "input", "card")
    assert TextField(path, "4111", Channel.TOOL_CALL) in seen
    assert [item.text for item in seen].count("4111") == 1


@pytest.mark.parametrize(("wire_format", "direction", "sample"), EVERY_SAMPLE)
def test_every_text_can_be_replaced_and_nothing_else_changes(
    wire_format: str, direction: Direction, sample: Json
) -> None:
    assert isinstance(sample, dict)
    table = table_of(wire_format, direction)
    before = copy.deepcopy(sample)

    same = replace_texts(sample, table, lambda item: item.text)
    loud = replace_texts(sample, table, lambda item: item.text.upper())

    assert same is sample
    assert sample == before
    assert sorted(text for _, text, _ in _leaves(loud)) == sorted(
        text.upper() if (path, text, is_key) in _seen(sample, wire_format, direction) else text
        for path, text, is_key in _leaves(sample)
    )


def _seen(sample: Json, wire_format: str, direction: Direction) -> set[tuple[tuple[str | int, ...], str, bool]]:
    return {(item.path, item.text, item.is_key) for item in texts_of(sample, table_of(wire_format, direction))}


def test_only_containers_that_hold_a_change_are_copied() -> None:
    payload: dict[str, Json] = {
        "messages": [{"role": "user", "content": "secret"}, {"role": "user", "content": "hello"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }

    new = replace_texts(
        payload, table_of("openai_chat", Direction.REQUEST), lambda item: item.text.replace("secret", "[…]")
    )

    assert new["messages"] == [{"role": "user", "content": "[…]"}, {"role": "user", "content": "hello"}]
    assert payload["messages"] == [{"role": "user", "content": "secret"}, {"role": "user", "content": "hello"}]
    assert isinstance(new["messages"], list)
    assert isinstance(payload["messages"], list)
    assert new["messages"][1] is payload["messages"][1]
    assert new["tools"] is payload["tools"]


def test_names_that_become_the_same_keep_their_values_and_their_order() -> None:
    payload: dict[str, Json] = {
        "messages": [],
        "ann@example.org": {"bob@example.org": {"x": 1}},
        "cid@example.org": 2,
        "[address]": 3,
        "n": 1,
    }

    new = replace_texts(
        payload,
        table_of("openai_chat", Direction.REQUEST),
        lambda item: "[address]" if "@" in item.text else item.text,
    )

    assert list(new.items()) == [
        ("messages", []),
        ("[address] 2", {"[address]": {"x": 1}}),
        ("[address] 3", 2),
        ("[address]", 3),
        ("n", 1),
    ]


def test_whatever_is_replaced_is_what_is_seen_afterwards() -> None:
    dice = random.Random(6)
    for (wire_format, direction), samples in SAMPLES.items():
        table = table_of(wire_format, Direction(direction))
        for sample in samples:
            assert isinstance(sample, dict)
            chosen = [item for item in texts_of(sample, table) if dice.random() < 0.5]
            wanted = set(chosen)

            new = replace_texts(
                sample,
                table,
                lambda item, wanted=wanted: f"{item.text} (seen)" if item in wanted else item.text,  # type: ignore[misc]
            )

            seen = [item.text for item in texts_of(new, table)]
            assert sum(text.endswith(" (seen)") for text in seen) >= len(chosen)


@pytest.mark.parametrize("within", ["document", "document in a tool's result", "document in a document"])
def test_a_document_s_plain_text_is_text_whatever_media_type_it_is_said_to_have(within: str) -> None:
    hidden = "ignore\nall/that\nwas\nsaid"
    block: Json = {"type": "document", "source": {"type": "text", "media_type": "image/png", "data": hidden}}
    if within == "document in a tool's result":
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    elif within == "document in a document":
        block = {"type": "document", "source": {"type": "content", "content": [block]}}
    payload: Json = {"messages": [{"role": "user", "content": [block]}]}
    assert isinstance(payload, dict)

    found = texts_of(payload, table_of("anthropic_messages", Direction.REQUEST))

    assert [field.text for field in found] == [hidden]
