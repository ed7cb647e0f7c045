from __future__ import annotations

from binascii import crc32

import pytest
from hypothesis import given, strategies

from secure_llm_proxy.identity.api_keys import BASE62, KEY_LENGTH, checksum_of, digest_of, draw_api_key, is_kid, kid_of

PEPPER = b"p" * 32


def test_a_drawn_key_has_the_documented_form() -> None:
    drawn = draw_api_key()

    prefix, live, kid, rest = drawn.secret.split("_")
    assert (prefix, live) == ("slp", "live")
    assert len(drawn.secret) == KEY_LENGTH == 56
    assert kid == drawn.kid == kid_of(drawn.secret)
    assert is_kid(kid)
    assert len(rest) == 38
    assert drawn.id.startswith("key_")


def test_two_keys_share_neither_public_part_nor_secret() -> None:
    keys = [draw_api_key() for _ in range(200)]

    assert len({key.kid for key in keys}) == 200
    assert len({key.secret for key in keys}) == 200
    assert len({key.id for key in keys}) == 200


def test_the_checksum_is_the_crc32_of_everything_before_it_in_base62() -> None:
    drawn = draw_api_key()

    value = 0
    for character in drawn.secret[-6:]:
        value = 62 * value + BASE62.index(character)

    assert value == crc32(drawn.secret[:-6].encode())


def test_the_printed_form_of_a_drawn_key_does_not_hold_it() -> None:
    drawn = draw_api_key()

    assert drawn.secret not in repr(drawn)
    assert drawn.secret not in str(drawn)


@given(position=strategies.integers(0, KEY_LENGTH - 1), replacement=strategies.sampled_from(BASE62 + "_-é\n"))
def test_a_key_with_one_character_changed_is_another_key_or_none(position: int, replacement: str) -> None:
    secret = draw_api_key().secret

    changed = secret[:position] + replacement + secret[position + 1 :]

    assert changed == secret or kid_of(changed) is None
    assert changed == secret or digest_of(PEPPER, changed) != digest_of(PEPPER, secret)


@given(strategies.text(max_size=120))
def test_no_other_text_is_taken_for_a_key(text: str) -> None:
    assert kid_of(text) is None
    assert kid_of(f"slp_live_{text}") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda secret: secret + "\n",
        lambda secret: " " + secret,
        lambda secret: secret.upper(),
        lambda secret: secret[:-1],
        lambda secret: secret.replace("live", "test"),
        lambda secret: secret.replace("live", "adm"),
        lambda secret: "Bearer " + secret,
        lambda secret: secret.replace("slp", "\u0455lp"),
    ],
)
def test_a_key_written_otherwise_is_refused_by_its_form(damage: object) -> None:
    assert callable(damage)

    assert kid_of(damage(draw_api_key().secret)) is None


def test_keys_of_other_kinds_are_refused_even_with_a_right_checksum() -> None:
    body = "slp_adm_" + "a" * 8 + "_" + "b" * 33

    assert kid_of(body + checksum_of(body)) is None


def test_the_digest_depends_on_the_pepper_and_on_every_character() -> None:
    secret = draw_api_key().secret

    assert digest_of(PEPPER, secret) == digest_of(PEPPER, secret)
    assert digest_of(PEPPER, secret) != digest_of(b"q" * 32, secret)
    assert digest_of(PEPPER, secret) != digest_of(PEPPER, secret[:-1])
    assert len(digest_of(PEPPER, secret)) == 32
