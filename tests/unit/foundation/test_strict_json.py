"""JSON that two parsers could read differently is refused, and nothing but `InvalidRequest` ever comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import MAX_DEPTH, JsonValue
from tests.support.json_corpus import ACCEPTED, REFUSED


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_valid_json_is_accepted_and_means_what_the_standard_library_reads(body: bytes) -> None:
    value = strict_json.loads(body)

    assert value == json.loads(body)
    assert json.loads(strict_json.dumps(value)) == json.loads(body)


@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_json_or_could_be_read_in_two_ways_is_refused_with_its_code(body: bytes, code: ErrorCode) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(body)

    assert refused.value.code is code
    assert refused.value.status == 400
    assert refused.value.public.isprintable()
    refused.value.public.encode("utf-8")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"prompt"', b"1", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads_object(body)

    assert refused.value.code is ErrorCode.INVALID_TYPE


def _nested(shape: str, levels: int) -> bytes:
    if shape == "arrays":
        return b"[" * levels + b"]" * levels
    if shape == "objects":
        return b'{"a":' * levels + b"1" + b"}" * levels
    opening = b"".join(b"[" if level % 2 else b'{"a":' for level in range(levels))
    closing = b"".join(b"]" if level % 2 else b"}" for level in reversed(range(levels)))
    return opening + b"1" + closing


@pytest.mark.parametrize("shape", ["arrays", "objects", "mixed"])
def test_64_levels_are_accepted_and_65_are_not(shape: str) -> None:
    strict_json.loads(_nested(shape, MAX_DEPTH))

    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(_nested(shape, MAX_DEPTH + 1))

    assert MAX_DEPTH == 64
    assert refused.value.code is ErrorCode.NESTED_TOO_DEEPLY


@pytest.mark.parametrize("shape", ["arrays", "objects", "mixed"])
@pytest.mark.parametrize("levels", [66, 500, 990, 1_100, 5_000, 100_000])
def test_any_number_of_levels_too_many_is_one_refusal_and_no_crash(shape: str, levels: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(_nested(shape, levels))

    assert refused.value.code is ErrorCode.NESTED_TOO_DEEPLY


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'[{"":' * 50_000])
def test_levels_that_never_close_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(body)

    assert refused.value.code in {ErrorCode.NESTED_TOO_DEEPLY, ErrorCode.INVALID_JSON}


def test_depth_counts_on_the_deepest_branch_only() -> None:
    wide = b"[" + b",".join([_nested("mixed", MAX_DEPTH - 1)] * 50) + b"]"

    assert len(strict_json.loads(wide)) == 50  # type: ignore[arg-type]  # an array, as the text says


def test_a_duplicate_key_is_named_without_control_characters() -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(rb'{"x\u001b[31m\u2028":1,"x\u001b[31m\u2028":2}')

    assert refused.value.param is not None
    assert refused.value.param.startswith("x")
    assert refused.value.param.isprintable()
    assert refused.value.public.isprintable()


def test_a_long_duplicate_key_is_shortened() -> None:
    key = b'"' + b"k" * 1_000_000 + b'":1'

    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(b"{" + key + b"," + key + b"}")

    assert len(refused.value.public) < 1000


def test_a_refusal_never_quotes_the_body() -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.loads(b'{"prompt":"canary-7f3a" oops}')

    assert "canary" not in str(refused.value)
    assert "canary" not in repr(refused.value.__cause__)


def test_dumps_refuses_a_lone_surrogate() -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.dumps({"a": "\ud800"})

    assert refused.value.code is ErrorCode.INVALID_ENCODING


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT, inner, max_size=5),
    max_leaves=30,
)


@given(_JSON)
def test_what_is_written_is_read_back_as_it_was(value: JsonValue) -> None:
    again = strict_json.loads(strict_json.dumps(value))

    assert again == value
    assert repr(again) == repr(value)  # 1 is not 1.0, and -0.0 is not 0.0


@given(_JSON, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_the_same_meaning_leaves_that_came_in(value: JsonValue, ascii_only: bool, indent: int | str | None) -> None:  # noqa: FBT001  hypothesis gives it
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    written = strict_json.dumps(strict_json.loads(body))

    assert repr(json.loads(written)) == repr(json.loads(body))


_FRAGMENTS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"', b'"a"', b'"a":', rb'"\u0061":', rb'"\ud800"', rb"\ud83d", rb"\ude00", b"\\",
     b"1", b"-", b"1e999", b"0", b".5", b"NaN", b"-Infinity", b"null", b"true", b" ", b"\n", b"\x00", b"\xff", b"\xc3\xa9",
     b"\xef\xbb\xbf", b"9" * 5000, b"[[[[[[[[[["]
)  # fmt: skip


@settings(max_examples=1500)
@given(st.lists(_FRAGMENTS, max_size=25).map(b"".join) | st.binary(max_size=60))
def test_no_bytes_at_all_make_anything_but_a_value_or_a_refusal(body: bytes) -> None:
    try:
        value = strict_json.loads(body)
    except InvalidRequest as refused:
        assert (refused.status, refused.public.isprintable()) == (400, True)  # noqa: PT017  both outcomes are right
        return

    # What was accepted, the standard library accepts too, and reads alike; and it is free of what was promised.
    assert repr(json.loads(body)) == repr(value)
    assert repr(json.loads(strict_json.dumps(value))) == repr(value)
    assert all(math.isfinite(number) for number in _numbers(value))


def _numbers(value: JsonValue) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


# --- both ways of reading ---------------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.sampled_from(["ascii", "utf-8"]),
    st.integers(0, 200),
)
def test_the_fast_way_reads_what_the_slow_way_reads(
    value: object, separators: tuple[str, str], alphabet: str, cut: int
) -> None:
    text = json.dumps(value, separators=separators, ensure_ascii=alphabet == "ascii")
    body = text.encode("utf-8", "surrogatepass")

    for piece in (body, body[:cut], body + body[:cut], body.replace(b'"', b'"a', 1)):
        assert _outcome(strict_json.loads, piece) == _outcome(lambda body: strict_json._loads_slowly(body, 64), piece)


def _outcome(read: Callable[[bytes], object], body: bytes) -> tuple[str, str]:
    try:
        # repr, because 1 == 1.0 == True, and nan != nan
        return "read", repr(read(body))
    except InvalidRequest as error:
        return "refused", f"{error.code} {error.public}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}', b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b"1e20", b"100000000000000000000", b"-0", b"-0.0",
        b"0.1", b"1E5", b"1.50", b"18446744073709551615", b"18446744073709551616", b'"\\ud800"', b'"\\u00e9"', b"NaN",
        b"1e999", b"[" * 64 + b"]" * 64, b"[" * 65 + b"]" * 65, b"[[],[],[]," * 60 + b"1" + b"]" * 60, b'"' + b"{" * 100 + b'"',
        b"\xef\xbb\xbf{}", b" {} ", b"\x00", b'"\x7f"', b'"\\/"', b"[" * 2000,
    ],
)  # fmt: skip
def test_hostile_texts_are_read_alike_both_ways(body: bytes) -> None:
    assert _outcome(strict_json.loads, body) == _outcome(lambda body: strict_json._loads_slowly(body, 64), body)
