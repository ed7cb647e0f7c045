"""Well-formed keys are found in texts and files, whatever stands around them."""

from __future__ import annotations

import io
import random

import pytest

from secure_llm_proxy.identity import KeyKind, draw_api_key, keys_in, keys_in_stream
from secure_llm_proxy.identity.leaked_keys import KEYS_FOUND_MAX

LIVE = draw_api_key().secret
OTHER = draw_api_key(KeyKind.TEST).secret
MANAGES = draw_api_key(KeyKind.ADM).secret


@pytest.mark.parametrize("key", [LIVE, OTHER, MANAGES])
@pytest.mark.parametrize(
    "around", ["{}", "x{}y", "_{}_", "key={}&a=b", '"{}\\n"', "\u00e9{}\u00e9", "slp_live_{}", "slp_{}"]
)
def test_a_key_is_found_whatever_stands_around_it(key: str, around: str) -> None:
    text = around.replace("{}", key)

    assert keys_in(text) == keys_in(text.encode()) == (key,)


def test_a_key_that_begins_within_what_only_looked_like_one_is_found() -> None:
    decoy = "slp_live_AAAAAAAA_" + "B" * 35

    assert keys_in(decoy + LIVE) == (LIVE,)


def test_what_is_no_key_is_not_found() -> None:
    last = "0" if LIVE[-1] != "0" else "1"

    for text in (
        "",
        "slp_",
        "slp_live_",
        LIVE[:-1],
        LIVE[:-1] + last,
        LIVE.upper(),
        LIVE.replace("_", "-"),
        "slp_setup_x",
    ):
        assert keys_in(text) == ()
    assert keys_in("\ud800" + LIVE) == (LIVE,)


def test_each_key_is_told_once_in_the_order_found_and_not_more_than_a_few() -> None:
    many = [draw_api_key().secret for _ in range(KEYS_FOUND_MAX + 5)]

    assert keys_in(f"{OTHER} {LIVE} {OTHER} {MANAGES}") == (OTHER, LIVE, MANAGES)
    assert keys_in(" ".join(many)) == tuple(many[:KEYS_FOUND_MAX])


def test_a_huge_text_full_of_what_looks_like_keys_is_given_up_on() -> None:
    text = ("slp_live_AAAAAAAA_" + "B" * 38) * 20_000

    assert keys_in(text + LIVE) == ()
    assert keys_in("x" * 2**20 + LIVE) == (LIVE,)


def test_keys_in_a_file_are_found_on_their_lines_however_it_is_cut() -> None:
    chance = random.Random(4)
    lines = ["".join(chance.choices("ab slp_live_\u00e9", k=chance.randrange(300))) for _ in range(8000)]
    places = sorted(chance.sample(range(len(lines)), 50))
    for place in places:
        lines[place] += draw_api_key().secret
    text = "\n".join(lines).encode()
    assert len(text) > 2**20

    class Trickle(io.BytesIO):
        """As a pipe gives it: some bytes at a time."""

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            return super().read(min(size, chance.randrange(1, 5000)))

    for stream in (io.BytesIO(text), Trickle(text)):
        found = list(keys_in_stream(stream))
        assert [line for line, _ in found] == [place + 1 for place in places]
        assert [credential for _, credential in found] == [lines[place][-56:] for place in places]
