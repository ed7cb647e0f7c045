"""Values with which somebody would break out of a header, a line or a path; the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

_BREAKS = [
    "\r\n", "\n", "\r", "\x00", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\t", " ", "\r\n\r\n", "\n\n",
    "\r\n\t", "%0d%0a", "%0a", "%00", "\\r\\n", "\u560a", "\u560d", "\uff0d\uff0a", "\u010a", "\u010d", "\ud800", "\udfff",
    "\x7f", "\x1b[2J",
]  # fmt: skip
_PAYLOADS = [
    "Set-Cookie: a=b", "X-Injected: 1", "HTTP/1.1 200 OK", "Content-Length: 0", "Transfer-Encoding: chunked", "Location: //evil.example",
    "GET /admin HTTP/1.1", "Authorization: Bearer x", "<script>alert(1)</script>", "test-model", "../../admin", "", "é", "ß", "漢字", "😀",
]  # fmt: skip


def hostile_values(count: int, seed: str) -> Iterator[str]:
    """`count` strings of up to about 100 characters, lone surrogates and every control character among them."""
    dice = random.Random(seed)
    for _ in range(count):
        pieces = []
        for _piece in range(dice.randint(1, 5)):
            source = dice.random()
            if source < 0.4:
                pieces.append(dice.choice(_BREAKS))
            elif source < 0.8:
                pieces.append(dice.choice(_PAYLOADS))
            elif source < 0.9:
                pieces.append("".join(chr(dice.randrange(0x20)) for _ in range(dice.randint(1, 3))))
            else:
                pieces.append("".join(chr(dice.randrange(0x110000)) for _ in range(dice.randint(1, 8))))
        yield "".join(pieces)
