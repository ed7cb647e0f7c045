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

ACCEPTED: dict[str, bytes] = {
    "empty object": b"{}",
    "empty array": b"[]",
    "array with spaces": b"[ 1 , 2\t,\n3 ]\r\n",
    "null": b"null",
    "true": b" true ",
    "false": b"false",
    "string at top": b'"asd"',
    "empty string": b'""',
    "zero": b"0",
    "negative zero": b"-0",
    "negative zero float": b"-0.0",
    "exponent": b"[123e65]",
    "exponent plus": b"[1E+2]",
    "exponent minus": b"[1e-2]",
    "tiny number underflows to zero": b"[123.456e-789]",
    "largest double": b"[1.7976931348623157e308]",
    "largest signed integer": b"[9223372036854775807]",
    "largest unsigned integer": b"[18446744073709551615]",
    "smallest integer": b"[-9223372036854775808]",
    "many fraction digits": b"[0." + b"1" * 5000 + b"]",
    "escapes": rb'["\"\\\/\b\f\n\r\t"]',
    "escaped control characters": rb'["\u0000\u001f\u0012"]',
    "escaped surrogate pair": rb'["\ud83d\ude00"]',
    "upper-case surrogate pair": rb'["\uD834\uDd1e"]',
    "escaped backslash before u": rb'["\\ud800"]',
    "noncharacters": rb'["\uffff\ufdd0\udbff\udfff"]',
    "raw noncharacter": '["￿"]'.encode(),
    "raw astral": '["😀"]'.encode(),
    "raw line separators": '["\u2028\u2029"]'.encode(),
    "raw delete": b'["\x7f"]',
    "byte order mark inside a string": '["\ufeff"]'.encode(),
    "empty key": b'{"":0}',
    "key with nul": rb'{"foo\u0000bar":42}',
    "equal keys in different objects": b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}',
    "keys that differ in case": b'{"a":1,"A":2}',
    "keys that only look equal": '{"é":1,"e\u0301":2}'.encode(),
    "NaN as text": b'["NaN","Infinity"]',
}

REFUSED: dict[str, tuple[bytes, ErrorCode]] = {
    **{
        name: (body, ErrorCode.INVALID_JSON)
        for name, body in {
            "trailing comma": b"[1,]",
            "leading comma": b"[,1]",
            "double comma": b"[1,,2]",
            "only a comma": b"[,]",
            "missing comma": b"[1 2]",
            "unclosed array": b"[1",
            "unclosed object": b'{"a":1',
            "unclosed string": b'["a',
            "wrong bracket": b"[1}",
            "closing without opening": b"]",
            "extra close": b"[1]]",
            "two values": b"{}{}",
            "trailing text": b"{} x",
            "trailing hash": b'{"a":"b"}#',
            "comment": b'{"a":"b"/* */}',
            "line comment": b'{"a":"b"} // c',
            "single quotes": b"{'a':0}",
            "unquoted key": b"{a:0}",
            "number as key": b"{1:1}",
            "missing colon": b'{"a" 1}',
            "two colons": b'{"a"::1}',
            "missing value": b'{"a":}',
            "missing key": b'{:"b"}',
            "trailing comma in object": b'{"a":0,}',
            "many trailing commas": b'{"id":0,,,,,}',
            "key without value": b'{"a"}',
            "value in array of object": b'["a":1]',
            "leading zero": b"[01]",
            "negative leading zero": b"[-01]",
            "plus sign": b"[+1]",
            "bare minus": b"[-]",
            "minus space": b"[- 1]",
            "bare fraction": b"[.5]",
            "no digit after point": b"[1.]",
            "no digit after exponent": b"[1e]",
            "exponent plus without digit": b"[1e+]",
            "hexadecimal": b"[0x1F]",
            "underscore in number": b"[1_000]",
            "fullwidth digit": "[\uff11]".encode(),
            "arabic digit": "[٣]".encode(),
            "capital True": b"[True]",
            "nul literal": b"[nul]",
            "inf": b"[inf]",
            "nan small": b"[nan]",
            "undefined": b"[undefined]",
            "plus infinity": b"[+Infinity]",
            "bad escape": rb'["\x00"]',
            "escape at end": b'["\\',
            "short unicode escape": rb'["\u00A"]',
            "unicode escape with a sign": rb'["\u+123"]',
            "unicode escape with spaces": rb'["\u 123"]',
            "upper-case escape": rb'["\U0041"]',
            "raw newline in string": b'["a\nb"]',
            "raw tab in string": b'["\t"]',
            "raw nul in string": b'["\x00"]',
            "raw escape in string": b'["\x1b"]',
            "nul after the value": b"{}\x00",
            "form feed as space": b"[\x0c]",
            "no-break space": "[\u00a0]".encode(),
            "ideographic space": "{}\u3000".encode(),
            "zero-width byte order mark in the middle": '{"a":\ufeff1}'.encode(),
            "bare word": b"hello",
            "angle bracket": b"<.>",
            "form": b"prompt=hello",
            "json lines": b'{"a":1}\n{"a":2}',
            "utf-16 spaces": b"[\x001]",
        }.items()
    },
    **{
        name: (body, ErrorCode.INVALID_NUMBER)
        for name, body in {
            "NaN": b"[NaN]",
            "negative NaN is no JSON": b'{"a":NaN}',
            "Infinity": b"[Infinity]",
            "minus Infinity": b'{"temperature":-Infinity}',
            "1e999": b"[1e999]",
            "-1e999": b"[-1e999]",
            "1e400 with fraction": b"[1.5E400]",
            "one over 64 bits": b"[18446744073709551616]",
            "one under 64 bits": b"[-9223372036854775809]",
            "100 digits": b"[" + b"9" * 100 + b"]",
            "10,000 digits": b"[" + b"9" * 10_000 + b"]",
            "10,000 negative digits": b'{"a":-' + b"9" * 10_000 + b"}",
            "1,000,000 digits": b"[" + b"1" * 1_000_000 + b"]",
        }.items()
    },
    **{
        name: (body, ErrorCode.INVALID_ENCODING)
        for name, body in {
            "byte order mark": b"\xef\xbb\xbf{}",
            "utf-16 little endian": '{"a":1}'.encode("utf-16"),
            "utf-16 big endian": b"\xfe\xff\x00{\x00}",
            "lone continuation byte": b'["\x81"]',
            "truncated sequence": b'["\xe0\xff"]',
            "overlong slash": b'["\xc0\xaf"]',
            "overlong six bytes": b'["\xfc\x83\xbf\xbf\xbf\xbf"]',
            "encoded surrogate": b'["\xed\xa0\x80"]',
            "encoded surrogate pair (CESU-8)": b'["\xed\xa0\xbd\xed\xb8\x80"]',
            "beyond unicode": b'["\xf4\xbf\xbf\xbf"]',
            "latin-1": b'["\xe9"]',
            "bad byte in key": b'{"\xff":1}',
            "bad byte after the value": b"{}\xff",
            "lone high surrogate": rb'["\ud800"]',
            "lone low surrogate": rb'["\udc00"]',
            "upper-case lone surrogate": rb'["\uDADA"]',
            "reversed pair": rb'["\udc00\ud800"]',
            "high surrogate and a letter": rb'["\ud800a"]',
            "two high surrogates": rb'["\ud800\ud800\udc00"]',
            "lone surrogate in a key": rb'{"\ud800":1}',
            "lone surrogate deep in a key": rb'{"a":[{"b":{"\udfff":1}}]}',
            "lone surrogate deep in a value": rb'{"messages":[{"content":[{"text":"x\ud83d"}]}]}',
            "escaped backslash, then a lone surrogate": rb'["\\\ud800"]',
        }.items()
    },
    **{
        name: (body, ErrorCode.EMPTY_BODY)
        for name, body in {
            "nothing": b"",
            "space": b" ",
            "white space": b" \t\r\n\n ",
            "64 KiB of spaces": b" " * 65536,
        }.items()
    },
    **{
        name: (body, ErrorCode.DUPLICATE_KEY)
        for name, body in {
            "at the top": b'{"a":1,"a":2}',
            "with equal values": b'{"a":1,"a":1}',
            "three times": b'{"a":1,"b":2,"a":3,"a":4}',
            "one level down": b'{"x":{"a":1,"a":2}}',
            "in an array": b'[{"a":1,"a":2}]',
            "in the second message": b'{"messages":[{"role":"user"},{"role":"user","role":"system"}]}',
            "escaped-equal": rb'{"a":1,"\u0061":2}',
            "both escaped": rb'{"\u0061":1,"\u0061":2}',
            "escaped with other case": rb'{"\u006A":1,"\u006a":2}',
            "escaped solidus": rb'{"/":1,"\/":2}',
            "escaped astral": '{"😀":1,"\\ud83d\\ude00":2}'.encode(),
            "empty keys": b'{"":1,"":2}',
            "hidden behind null": b'{"model":null,"model":"x"}',
            "63 levels down": b"[" * 62 + b'{"a":1,"a":2}' + b"]" * 62,
        }.items()
    },
}


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
