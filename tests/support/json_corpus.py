"""Texts that are JSON, and texts that are none or could be read in two ways, written by us after the cases that RFC 8259 leaves no
doubt about, those that it leaves open, and those that parsers were found to disagree on.

What RFC 8259 leaves open is settled here: no duplicate names, no numbers beyond 64 bits or doubles, no lone surrogates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from secure_llm_proxy.foundation.errors import ErrorCode

_ACCEPTED: dict[str, bytes] = {
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

_REFUSED: dict[str, tuple[bytes, ErrorCode]] = {
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

_WHOLE = b'{"a": [1, "b\\n", {"c": null}], "d": true, "e": -1.5E+2}'


def _more_accepted() -> Iterator[tuple[str, bytes]]:
    for number in (
        "1",
        "-1",
        "10",
        "0.5",
        "-0.5",
        "1e0",
        "1E0",
        "1e-1",
        "1.5e+10",
        "1.0E-2",
        "9007199254740993",
        "0e1",
        "0.0",
    ):
        yield f"number {number}", f"[{number}]".encode()
    for point in (0x20, 0x21, 0x7E, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0x10000, 0x10FFFF):
        yield f"raw U+{point:04X}", f'["{chr(point)}"]'.encode()
        escaped = json.dumps(chr(point)) if point > 0x7E else f'"\\u{point:04x}"'
        yield f"escaped U+{point:04X}", f"[{escaped}]".encode()
    for letter in '"\\/bfnrt':
        yield f"escape {letter}", f'{{"\\{letter}": "\\{letter}"}}'.encode()
    for space in (" ", "\t", "\n", "\r", "\r\n", "  \n\t "):
        yield (
            f"space {space!r}",
            f'{space}{{{space}"a"{space}:{space}[{space}1{space},{space}2{space}]{space}}}{space}'.encode(),
        )
    for levels in (2, 8, 32, 64):
        yield f"{levels} arrays", b"[" * levels + b"]" * levels
        yield f"{levels} objects", b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)
    yield "10,000 names", json.dumps({f"n{number}": number for number in range(10_000)}).encode()
    yield "10,000 items", json.dumps(list(range(10_000))).encode()
    yield "a megabyte of text", json.dumps("x" * 2**20).encode()


def _more_refused() -> Iterator[tuple[str, tuple[bytes, ErrorCode]]]:
    for at in range(1, len(_WHOLE)):
        yield f"cut at byte {at}", (_WHOLE[:at], ErrorCode.INVALID_JSON)
    for at in range(len(_WHOLE)):
        changed = _WHOLE[:at] + _WHOLE[at + 1 :]
        if not _is_json(changed):
            yield f"without byte {at}", (changed, ErrorCode.INVALID_JSON)
    for code in range(0x20):
        yield f"raw control {code:#04x}", (b'{"a": "' + bytes([code]) + b'"}', ErrorCode.INVALID_JSON)
    for code in (*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F):
        yield f"control {code:#04x} as space", (b"[" + bytes([code]) + b"]", ErrorCode.INVALID_JSON)
    for letter in "aAcdeghijklmopqsvwxyzUN01238'#.":
        yield f"escape {letter}", (f'["\\{letter}"]'.encode(), ErrorCode.INVALID_JSON)
    for start in (0x80, 0xBF, 0xC0, 0xC1, 0xF5, 0xF8, 0xFC, 0xFE, 0xFF):
        yield f"byte {start:#x}", (b'["' + bytes([start]) + b'"]', ErrorCode.INVALID_ENCODING)
        yield (
            f"byte {start:#x} and continuations",
            (
                b'["' + bytes([start]) + b'\x80\x80\x80"]',
                ErrorCode.INVALID_ENCODING,
            ),
        )


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


ACCEPTED: Mapping[str, bytes] = {**_ACCEPTED, **dict(_more_accepted())}
REFUSED: Mapping[str, tuple[bytes, ErrorCode]] = {**_REFUSED, **dict(_more_refused())}
