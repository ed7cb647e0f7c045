"""Whatever a provider sends: we read in it what llhttp reads, or refuse it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from secure_llm_proxy.upstream.http1 import BodyFraming, BrokenAnswer, HeadReader, body_framing
from tests.support.second_answer_parser import COMPARED_HEADERS, Meaning, read_with_llhttp

_ANSWERS = 12_000
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\n"


def read_by_us(pieces: Iterable[bytes]) -> Meaning | None:
    """What an `Exchange` makes of the pieces when the provider closes in good order behind them; None: refused."""
    reader = HeadReader()
    head, framing, body, surplus = None, None, b"", b""
    try:
        for received in pieces:
            piece = received
            if framing is None:
                head = reader.feed(received)
                if head is None:
                    continue
                framing, piece = body_framing(head), reader.rest
            if framing.done:
                surplus += piece
            elif piece:
                body += framing.feed(piece)
        if head is None or framing is None:
            return None
        reusable = framing.done and head.keeps_alive
        if not framing.done:
            framing.end()
    except BrokenAnswer:
        return None
    return Meaning(head.status, head.headers, body, _surplus(framing) + surplus, reusable)


def _surplus(framing: BodyFraming) -> bytes:
    return framing.surplus


def disagreement(answer: bytes, ours: Meaning | None) -> str | None:
    """A sentence when we read what llhttp reads otherwise or not at all."""
    if ours is None:
        return None
    theirs = read_with_llhttp(answer) or read_with_llhttp(without_optional_white_space(answer))
    if theirs is None:
        return f"only we accept {answer!r} as {ours}"
    same = (ours.status, ours.headers, ours.body, ours.surplus) == (
        theirs.status,
        theirs.headers,
        theirs.body,
        theirs.surplus,
    )
    if not same or (ours.reusable and not theirs.reusable):
        return f"{answer!r}: we read {ours}, llhttp {theirs}"
    return None


def without_optional_white_space(answer: bytes) -> bytes:
    """`answer` without what RFC 9112 §5 and §7.1.1 bid to drop and llhttp refuses: a tab behind a Transfer-Encoding, white
    space around the parts of a chunk extension.
    """
    end = answer.find(b"\r\n\r\n", max(answer.rfind(b"HTTP/1."), 0)) + 4
    head, rest = re.sub(rb"[ \t]+\r\n", b"\r\n", answer[:end]), answer[end:]
    written = [head]
    while line := re.match(rb"([0-9A-Fa-f]{1,8})([^\r\n]*)\r\n", rest):
        # within quotes white space counts
        extension = re.sub(rb'("[^"]*")|[ \t]+', lambda found: found[1] or b"", line[2])
        size = int(line[1], 16)
        body_end = line.end() + (size + 2 if size else 0)
        written += [line[1], extension, b"\r\n", rest[line.end() : body_end]]
        rest = rest[body_end:]
        if not size:
            break
    return b"".join([*written, rest])


HOSTILE = [
    # two lengths, and lengths that are none
    _OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    _OK + b"Content-Length: 5, 5\r\n\r\nabcde",
    _OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    _OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    *[
        _OK + b"Content-Length: " + length + b"\r\n\r\nabcde"
        for length in (b"", b"+5", b"-5", b"0x5", b"5_0", b"5 5", b"5;", b"05", b"5.0", b"\xb2", b"5\x00", b"1e0")
    ],
    *[
        _OK + b"Content-Length: " + length + b"\r\n\r\nabcde"
        for length in (b"999999999999999", b"9999999999999999", b"18446744073709551617", b"5\t", b"\t5", b" 5 ")
    ],
    _OK + b"Content-Length : 5\r\n\r\nabcde",
    _OK + b"Content_Length: 5\r\n\r\nabcde",
    _OK + b" Content-Length: 5\r\n\r\nabcde",
    _OK + b"content-LENGTH:5\r\n\r\nabcde",
    # transfer encodings
    *[
        _OK + b"Transfer-Encoding: " + encoding + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
        for encoding in (b"Chunked", b"gzip, chunked", b"chunked, gzip", b"xchunked", b"chunked,", b"", b"identity")
    ],
    *[
        _OK + b"Transfer-Encoding: " + encoding + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
        for encoding in (b"\x0bchunked", b"\xa0chunked", b"chunked\x00", b'"chunked"', b"chunked;a=b", b" chunked\t")
    ],
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + _OK + b"Content-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
    _OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    _OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    _OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
    # lines
    _OK.replace(b"\r\n", b"\n") + b"Content-Length: 5\r\n\r\nabcde",
    _OK + b"Content-Length: 5\n\r\nabcde",
    _OK + b"Content-Length: 5\r\n\nabcde",
    _OK + b"Content-Length: 5\n\nabcde",
    _OK + b"Content-Length: 5\r\r\n\r\nabcde",
    _OK + b"Content-Length: 5\r\n\rabcde",
    _OK + b"X: a\r\n folded\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: a\r\n\tContent-Length: 9\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: a\rContent-Length: 9\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: a\nContent-Length: 9\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: a\x00\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: a\x7f\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X: \xff\x80 \x09 y\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X\xff: a\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X(: a\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b": a\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X\r\nContent-Length: 5\r\n\r\nabcde",
    _OK + b"X:\r\nContent-Length: 5\r\n\r\nabcde",
    # status lines
    *[
        line + b"\r\nContent-Length: 5\r\n\r\nabcde"
        for line in (
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 ",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 099 OK",
            b"HTTP/1.1 600 OK",
            b"HTTP/1.1 +20 OK",
            b"HTTP/1.1 200OK",
            b"HTTP/1.1 200 O\x00K",
            b"HTTP/1.1 200 O\xffK",
            b"HTTP/1.2 200 OK",
            b"HTTP/0.9 200 OK",
            b"HTTP/2.0 200 OK",
            b"HTTP/2 200 OK",
            b"HTTP/11 200 OK",
            b"HTTP/1.10 200 OK",
            b"http/1.1 200 OK",
            b"ICE/1.1 200 OK",
            b"RTSP/1.0 200 OK",
            b" HTTP/1.1 200 OK",
            b"\r\nHTTP/1.1 200 OK",
            b"\nHTTP/1.1 200 OK",
            b"\xef\xbb\xbfHTTP/1.1 200 OK",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 500 Oh",
        )
    ],
    # answers that may have no body, and interim ones
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nabcde" + _OK + b"Content-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 7 + _OK + b"Content-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 8 + _OK + b"Content-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabcde",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nabcde",
    _OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nabcde",
    # ends
    b"",
    b"HTTP/1.1 200 OK",
    _OK,
    _OK + b"\r\n",
    _OK + b"\r\nabcde",
    _OK + b"Connection: keep-alive\r\n\r\nabcde",
    _OK + b"Content-Length: 5\r\n\r\nabcd",
    _OK + b"Content-Length: 5\r\n\r\nabcdeHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    _OK + b"Content-Length: 0\r\n\r\n\r\n",
    *[
        _OK + b"Content-Length: 5\r\nConnection: " + options + b"\r\n\r\nabcde"
        for options in (b"close", b"foo, CLOSE", b"keep-alive, close", b"keep-alive", b"", b"closed", b",close,")
    ],
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nabcde",
    # chunks
    *[
        _CHUNKED + chunks
        for chunks in (
            b"5\r\nabcde\r\n0\r\n\r\n",
            b"5\r\nabcde\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
            b"05\r\nabcde\r\n00\r\n\r\n",
            b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
            b"5\r\nabcde\r\n0\r\n",
            b"5\r\nabcde\r\n",
            b"5\r\nabcde",
            b"5\r\nabcd",
            b"5\r\nabcdef\r\n0\r\n\r\n",
            b"5\r\nabcde0\r\n\r\n",
            b"5\r\nabcde\n0\r\n\r\n",
            b"5\r\nabcde\r0\r\n\r\n",
            b"5\nabcde\r\n0\r\n\r\n",
            b"5\rabcde\r\n0\r\n\r\n",
            b"5\r\nabcde\r\n0\n\r\n",
            b"5\r\nabcde\r\n0\r\n\n",
            b"\r\n5\r\nabcde\r\n0\r\n\r\n",
            b" 5\r\nabcde\r\n0\r\n\r\n",
            b"5 \r\nabcde\r\n0\r\n\r\n",
            b"+5\r\nabcde\r\n0\r\n\r\n",
            b"-5\r\nabcde\r\n0\r\n\r\n",
            b"0x5\r\nabcde\r\n0\r\n\r\n",
            b"5_0\r\nabcde\r\n0\r\n\r\n",
            b"5h\r\nabcde\r\n0\r\n\r\n",
            b"zz\r\n",
            b"123456789\r\nabcde\r\n0\r\n\r\n",
            b"FFFFFFFFFFFFFFFF\r\nabcde\r\n0\r\n\r\n",
            b"10000000000000005\r\nabcde\r\n0\r\n\r\n",
            b"00000000000000005\r\nabcde\r\n0\r\n\r\n",
            b"5;a\r\nabcde\r\n0;b\r\n\r\n",
            b"5;a=b;c=d\r\nabcde\r\n0\r\n\r\n",
            b'5;a="x y;\\"\xff"\r\nabcde\r\n0\r\n\r\n',
            b'5;a="x\r\nabcde\r\n0\r\n\r\n',
            b'5;a="x\ny"\r\nabcde\r\n0\r\n\r\n',
            b"5;\r\nabcde\r\n0\r\n\r\n",
            b"5;=b\r\nabcde\r\n0\r\n\r\n",
            b"5;a=\r\nabcde\r\n0\r\n\r\n",
            b"5;a=b\nabcde\r\n0\r\n\r\n",
            b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
            b"5;a\x00\r\nabcde\r\n0\r\n\r\n",
            b"5;;\r\nabcde\r\n0\r\n\r\n",
            b"5 ;a\r\nabcde\r\n0\r\n\r\n",
            b"5\t; a = b ; c\r\nabcde\r\n0\r\n\r\n",
            b'5; a = "x ; y"\r\nabcde\r\n0\r\n\r\n',
            b"0\r\nX: 1\r\n\r\n",
            b"0\r\nX: 1\r\nY: 2\r\n\r\nmore",
            b"0\r\nX: 1\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\n: 1\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nX: a\r\n folded\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\nabcde",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
    ],
]


@pytest.mark.parametrize("answer", HOSTILE, ids=map(str, range(len(HOSTILE))))
def test_a_hostile_answer_means_the_same_to_llhttp_or_is_refused_wherever_it_is_cut(answer: bytes) -> None:
    whole = read_by_us([answer])

    cut = [read_by_us([answer[:at], answer[at:]]) for at in range(1, len(answer))]
    cut.append(read_by_us(answer[at : at + 1] for at in range(len(answer))))

    assert disagreement(answer, whole) is None
    assert [meaning for meaning in cut if meaning != whole] == []


def lawful(chance: random.Random) -> tuple[bytes, int, bytes]:
    """An answer that nobody may refuse, its status and its body."""
    status = chance.choice([200, 200, 200, 201, 400, 401, 429, 500, 503])
    body = chance.randbytes(chance.choice([0, 1, 5, 40, 200]))
    lines = [b"HTTP/1.1 %d %b" % (status, chance.choice([b"OK", b"", b"Quite So", b"\xc3\xa4"]))]
    headers = [
        b"Date: Sat, 21 Nov 2026 12:00:00 GMT",
        b"Content-Type: application/json; charset=utf-8",
        b"x-request-id:req_%d" % chance.randrange(10**6),
        b"X-Empty:",
        b"Set-Cookie: a=b;\tc=\xfc",
        b"Retry-After:  7 ",
        b"Connection: " + chance.choice([b"keep-alive", b"close", b"Keep-Alive, x"]),
    ]
    headers = chance.sample(headers, chance.randrange(len(headers) + 1))
    form = chance.choice(["sized", "chunked", "chunked", "until closed"])
    if form == "sized":
        headers.insert(chance.randrange(len(headers) + 1), b"Content-Length: %d" % len(body))
    elif form == "chunked":
        headers.insert(chance.randrange(len(headers) + 1), b"Transfer-Encoding: chunked")
    sent = body if form != "chunked" else _in_chunks(chance, body)
    interim = chance.choice(
        [b""] * 5 + [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
    )
    return interim + b"\r\n".join([*lines, *headers, b"", b""]) + sent, status, body


def _in_chunks(chance: random.Random, body: bytes) -> bytes:
    chunks: list[bytes] = []
    while body:
        size = chance.randrange(1, len(body) + 1)
        written = chance.choice([b"%x", b"%X", b"0%x"]) % size
        chunks.append(written + chance.choice([b"", b"", b";a", b';a=b;c="d e"']) + b"\r\n" + body[:size] + b"\r\n")
        body = body[size:]
    return (
        b"".join(chunks)
        + b"0"
        + chance.choice([b"", b";end"])
        + b"\r\n"
        + chance.choice([b"", b"X-T: 1\r\n"])
        + b"\r\n"
    )


_INSERTIONS = [
    *[
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\x00",
        b"\x7f",
        b"\xff",
        b":",
        b";",
        b",",
        b"0",
        b"5",
        b"-",
        b"x",
    ],
    *[b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\nContent-Length: 0", b"Connection: close\r\n"],
    *[b"chunked", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 X\r\n\r\n", b'"', b"_"],
]


def spoilt(chance: random.Random, answer: bytes) -> bytes:
    """`answer` with one to three things cut out, put in, doubled or changed; mostly in what is not body."""
    for _ in range(chance.randrange(1, 4)):
        spots = [at for at, byte in enumerate(answer) if byte in b"\r\n:; "] or [0]
        at = min(max(chance.choice(spots) + chance.randrange(-2, 3), 0), len(answer))
        size = chance.choice([1, 1, 2, 5])
        change = chance.randrange(5)
        if change == 0:
            answer = answer[:at] + answer[at + size :]
        elif change == 1:
            answer = answer[:at] + chance.choice(_INSERTIONS) + answer[at:]
        elif change == 2:
            answer = answer[:at] + answer[at : at + size] + answer[at:]
        elif change == 3:
            answer = answer[:at] + chance.choice(_INSERTIONS) + answer[at + size :]
        else:
            answer = answer[: chance.randrange(len(answer) + 1)]
    return answer


def test_thousands_of_answers_mean_the_same_to_llhttp_or_are_refused() -> None:
    chance = random.Random(20_261_121)
    wrong: list[str] = []
    accepted = refused = 0
    for number in range(_ANSWERS):
        answer, status, body = lawful(chance)
        whole = read_by_us([answer])
        if whole is None or (whole.status, whole.body) != (status, body):
            wrong.append(f"a lawful answer is read wrongly: {answer!r}")
        if number % 4:
            answer = spoilt(chance, answer)
            whole = read_by_us([answer])
        accepted, refused = accepted + (whole is not None), refused + (whole is None)
        places = sorted(chance.randrange(len(answer) + 1) for _ in range(3))
        pieces = [answer[start:end] for start, end in zip([0, *places], [*places, len(answer)], strict=True)]
        if read_by_us(pieces) != whole:
            wrong.append(f"another meaning when cut at {places}: {answer!r}")
        if found := disagreement(answer, whole):
            wrong.append(found)

    assert wrong == []
    # neither side of the test is empty
    assert accepted > _ANSWERS // 4
    assert refused > _ANSWERS // 4


def test_the_headers_that_are_compared_are_those_that_we_read() -> None:
    head = HeadReader().feed(_OK + b"".join(name.encode() + b": x\r\n" for name in COMPARED_HEADERS) + b"\r\n")

    assert head is not None
    assert head.headers.keys() == COMPARED_HEADERS
