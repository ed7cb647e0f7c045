"""Requests to compare two readers of HTTP/1.1 with: hostile ones, each a known trick, and generated ones, mutated by chance."""

from __future__ import annotations

import random

_HOST = b"Host: a.example\r\n"
_BODY = b'{"prompt":"x"}'
_NEXT = b"GET /next HTTP/1.1\r\nHost: b.example\r\n\r\n"


def _post(*lines: bytes, body: bytes = _BODY, start: bytes = b"POST /chat HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *lines, b"", body])


def _get(target: bytes, *lines: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"%b %b %b" % (method, target, version), _HOST[:-2], *lines, b"", b""])


_H = b"Host: a.example"
_L = b"Content-Length: 14"
_T = b"Transfer-Encoding: chunked"
_CHUNKED = b'e\r\n{"prompt":"x"}\r\n0\r\n\r\n'

LENGTHS = (
    b"+14", b"-14", b"0x0e", b"1 4", b"14 ", b" 14", b"\t14", b"14\t", b"014", b"0", b"00", b"14,14", b"14, 14",
    b"14;", b"1e1", b"14.0", b"", b" ", b"\xb2", b"\xbc", b"1_4", b"99999999999999999999", b"9" * 400, b"-0", b"+0",
    b"14\x00", b"\x0014", b"14\x0b", b"four", b"0b1110", b"0o16", b"'14'", b'"14"', b"14\r", b"1\r4", b"15", b"13",
)  # fmt: skip
CODINGS = (
    b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"chunked ", b"\tchunked", b"chunked\t", b"xchunked", b"chunkedx",
    b"chunked, chunked", b"identity", b"identity, chunked", b"chunked, identity", b"gzip, chunked", b"gzip",
    b"chunked;q=1", b"\x0bchunked", b"chunked\x00", b'"chunked"', b"", b",chunked", b"chunked,", b"cow, chunked",
)  # fmt: skip
_TARGETS = (
    b"/", b"/chat", b"/chat?", b"/chat?a=b&c=d", b"/chat?a?b", b"//", b"//chat", b"///chat", b"//host/chat", b"/a//b",
    b"/./a/../b", b"/%2e%2e/a", b"/a%20b", b"/a%00b", b"/a%zz", b"/a#b", b"/a?b#c", b"/#", b"/a;b", b"/a:b", b"/@",
    b"/a[1]", b"/[::1]", b"//[::1", b"/a\\b", b"/a|b", b"/a^b", b"/a`b", b'/a"b', b"/a<b>", b"/a{b}", b"/a b",
    b"/a\tb", b"/a\x00b", b"/a\x7fb", b"/a\x80b", b"/\xc3\xa4", b"*", b"", b"chat", b"http://a.example/chat",
    b"HTTP://a.example/chat", b"https://evil/chat", b"http://", b"a.example:80", b"http:/chat", b"/http://x/y",
    b"/chat?x=http://y/z", b"/" + b"a" * 8150, b"/" + b"a" * 8190, b"/" + b"a" * 9000, b"/?" + b"b" * 8172,
    b"/?" + b"b" * 8174, b"?", b"/?", b"#", b"/a'b()*!$,", b"/~user/-_.", b"/+", b"/a=b", b"/a&b",
)  # fmt: skip
_METHODS = (
    b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"get", b"Post", b"GE",
    b"G", b"", b"GETT", b"GET\t", b"GE T", b" GET", b"\r\nGET", b"\nGET", b"\r\n\r\nGET", b"GET\x00", b"G#T", b"GET_",
    b"M-SEARCH", b"PRI", b"SOURCE", b"POSTX", b"P\xd6ST", b"A" * 20, b"A" * 21,
)  # fmt: skip
_VERSIONS = (
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.10", b"HTTP/01.1", b"http/1.1",
    b"HTTP/1,1", b"HTTP/1.1 ", b" HTTP/1.1", b"HTTP/1.1\t", b"HTTP/11", b"HTTP/1.", b"HTTP", b"", b"RTSP/1.0",
    b"ICY/1.1", b"HTTP/1.1 x", b"HTTP/1.1\x00", b"HTTPS/1.1",
)  # fmt: skip
_LINES = (
    b"X-A: b", b"X-A:b", b"X-A:  b", b"X-A: b ", b"X-A: b\t", b"X-A:\tb", b"X-A:", b"X-A: ", b"X-A:  ", b"X-A : b",
    b"X-A\t: b", b" X-A: b", b"\tX-A: b", b"X-A", b": b", b":", b"X_A: b", b"X-A: b\x00c", b"X-A: b\x01",
    b"X-A: b\x7f", b"X-A: b\xe4", b"X-\xe4: b", b"X-A: b\rc", b"X-A: b\nc", b"X-A: b\n", b"X-A: b\r", b"X-A: b\r\r",
    b"X-A: b\n\r", b"X-A: b\r\n c", b"X-A: b\r\n\tc", b"X-A: b\r\n ", b"X A: b", b"X(A): b", b"X/A: b", b"X@A: b",
    b"X[A]: b", b"X{A}: b", b'X"A": b', b"X,A: b", b"X;A: b", b"X=A: b", b"X?A: b", b"X<A>: b", b"X\\A: b",
    b"!#$%&'*+-.^`|~: b", b"X-A: b\r\nX-A: c", b"X-A: b\r\nx-a: c", b"X-A: b\r\nX_A: c", b"X-A: b\r\nX-B: c\r\nX-A: d",
    b"Host: b.example", b"host: b.example", b"HOST: a.example", b"Host:", b"Host: ", b"Host : b.example",
    b"Content-Type: a\r\nContent-Type: b", b"Content-Type: a\r\ncontent-type: a", b"Content_Length: 14",
    b"Content-Length : 14", b"Content-Length\x0b: 14", b"Expect: 100-continue", b"expect: 100-Continue",
    b"Expect: 200-ok", b"Connection: close", b"Connection: Close", b"connection: keep-alive",
    b"Connection: Keep-Alive", b"Connection: close, keep-alive", b"Connection: keep-alive\r\nConnection: close",
    b"Connection: close\r\nConnection: keep-alive", b"Connection: upgrade\r\nUpgrade: websocket",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"Upgrade: h2c",
    b"Connection: X-A\r\nX-A: b", b"Connection:", b"SCRIPT_NAME: /chat", b"Script-Name: /chat", b"Script_Name: /x",
    b"Proxy: http://evil", b"TE: trailers", b"Trailer: X-A", b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http",
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off", b"X-Forwarded-Ssl: on",
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Protocol: ssl", b"X-Forwarded-Proto: https, http",
    b"Keep-Alive: timeout=5", b"Wsgi.input: x", b"X-A: " + b"b" * 8182, b"X-A: " + b"b" * 8183, b"X-A: " + b"b" * 8190,
    b"X" * 64 + b": b", b"X" * 65 + b": b", b"X" * 9000 + b": b", b"Cookie: a=b; c=d", b"Cookie: a=b\r\nCookie: c=d",
    b"Content-Encoding: gzip", b"Authorization: Bearer slp_live_x", b"Transfer_Encoding: chunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\r\n : chunked", b"X-A: b\x0bTransfer-Encoding: chunked",
    b"X-A: b\x85", b"X-A: \xc2\xa0b",
)  # fmt: skip

HOSTILE: tuple[bytes, ...] = (
    *(_post(_H, b"Content-Length: " + length) + _NEXT for length in LENGTHS),
    *(_post(_H, b"Transfer-Encoding: " + coding, body=_CHUNKED) + _NEXT for coding in CODINGS),
    # CL.TE, TE.CL, TE.TE and two lengths
    *(_post(_H, _L, b"Transfer-Encoding: " + coding, body=_CHUNKED) + _NEXT for coding in CODINGS),
    *(_post(_H, b"Transfer-Encoding: " + coding, _L, body=_CHUNKED) + _NEXT for coding in CODINGS[:8]),
    *(_post(_H, first, _L) + _NEXT for first in (_L, b"content-length: 0", b"CONTENT-LENGTH: 3", b"Content-Length:14")),
    _post(_H, _T, b"Transfer-Encoding: cow", body=_CHUNKED) + _NEXT,
    _post(_H, _T, body=b'e;x=y\r\n{"prompt":"x"}\r\n0\r\nX-A: b\r\n\r\n') + _NEXT,
    _post(_H, _T, body=b'0e\n{"prompt":"x"}\r\n0\r\n\r\n') + _NEXT,
    _post(_H, _T, body=b'-e\r\n{"prompt":"x"}\r\n0\r\n\r\n') + _NEXT,
    _post(_H, _T, body=b'0xe\r\n{"prompt":"x"}\r\n0\r\n\r\n') + _NEXT,
    _post(_H, _T, body=b"fffffffffffffffff\r\nx") + _NEXT,
    _post(_H, _T, b"Content-Length: 5", start=b"POST /chat HTTP/1.0", body=_CHUNKED) + _NEXT,
    _post(_H, _T, start=b"POST /chat HTTP/1.0", body=_CHUNKED) + _NEXT,
    *(_get(target) + _NEXT for target in _TARGETS),
    *(_get(b"/chat", method=method) + _NEXT for method in _METHODS),
    *(_get(b"/chat", version=version) + _NEXT for version in _VERSIONS),
    *(_get(b"/chat", line) + _NEXT for line in _LINES),
    *(_post(_H, line, _L) + _NEXT for line in _LINES),
    *(_post(line, _L, _H) for line in _LINES),
    # without Host, without headers, other line ends, nothing but line ends
    b"GET / HTTP/1.1\r\n\r\n" + _NEXT,
    b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n" + _NEXT,
    b"GET / HTTP/1.1\nHost: a.example\n\n" + _NEXT,
    b"GET / HTTP/1.1\r\nHost: a.example\n\r\n" + _NEXT,
    b"GET / HTTP/1.1\nHost: a.example\r\n\r\n" + _NEXT,
    b"GET / HTTP/1.1\rHost: a.example\r\r" + _NEXT,
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\n" + _NEXT,
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r" + _NEXT,
    b"GET /\r\n\r\n" + _NEXT,
    b"GET  /  HTTP/1.1\r\nHost: a.example\r\n\r\n" + _NEXT,
    b"GET / HTTP/1.1\r\n\r\nHost: a.example\r\n\r\n",
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00" * 20, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + _NEXT,
    # what looks like a request inside another
    _get(b"/chat", b"X-A: b\r\n\r\nGET /inner HTTP/1.1") + _NEXT,
    _post(_H, b"Content-Length: 40", body=_NEXT) + _NEXT,
    _post(_H, b"Content-Length: 200", body=_NEXT),
    _post(_H, _L) + _post(_H, _L) + _NEXT,
    _post(_H, _L, body=_BODY + b"\r\n") + _NEXT,
    _get(b"/chat", _L) + _BODY + _NEXT,
    _get(b"/chat", *(b"X-%d: y" % number for number in range(98))) + _NEXT,
    _get(b"/chat", *(b"X-%d: y" % number for number in range(99))) + _NEXT,
    _get(b"/chat", *(b"X-%d: y" % number for number in range(100))) + _NEXT,
    _get(b"/chat", *(b"X-%d: %b" % (number, b"z" * 600) for number in range(30))) + _NEXT,
)  # fmt: skip

_SCARS = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\x00", b":", b"_", b",", b"%", b"#", b"?", b"/", b"\x0b",
    b"\x7f", b"\x80", b"\xff", b"0", b"9", b"+", b"-", b";", b"Host: c\r\n", b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"GET ", b"\r\n ",
)  # fmt: skip


def generated(number: int) -> bytes:
    """One to three requests on a connection, out of usual and unusual parts; three of four mutated in one to three places."""
    chance = random.Random(number)
    data = b"".join(_one(chance) for _ in range(chance.choice((1, 1, 2, 3))))
    if number % 4 == 0:
        return data
    scarred = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(len(scarred))
        match chance.randrange(4):
            case 0:
                scarred[place:place] = chance.choice(_SCARS)
            case 1:
                scarred[place : place + 1] = chance.choice(_SCARS)
            case 2:
                del scarred[place : place + chance.choice((1, 1, 2, 5))]
            case _:
                scarred[place] = chance.randrange(256)
    return bytes(scarred)


def _one(chance: random.Random) -> bytes:
    usual = chance.random() < 0.8
    target = chance.choice(_TARGETS[:5] if usual else _TARGETS[:48])
    lines = [chance.choice((_H, b"host: a.example:8080", b"Host: [::1]:80"))]
    lines += [
        chance.choice((b"Accept: */*", b"User-Agent: x/1", b"X-%d: %d" % (chance.randrange(9), chance.randrange(99))))
        for _ in range(3)
    ]
    if not usual:
        lines.append(chance.choice(_LINES[:98]))
    if chance.random() < 0.1:
        lines.append(chance.choice((b"Connection: keep-alive", b"Connection: close")))
    body = b""
    if chance.random() < 0.6:
        body = chance.randbytes(chance.choice((0, 1, 14, 200))) if chance.random() < 0.5 else _BODY
        lines.append(b"Content-Length: %d" % len(body))
    chance.shuffle(lines)
    method = b"POST" if body else b"GET"
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *lines, b"", body])
