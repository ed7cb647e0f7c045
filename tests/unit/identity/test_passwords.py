from __future__ import annotations

import string
import time

import argon2
import gevent
import pytest
from argon2.low_level import Type

from secure_llm_proxy.identity.passwords import (
    PASSWORD_BYTES_MAX,
    PasswordCheck,
    PasswordRules,
    PasswordVault,
    _peppered,
    common_passwords,
)
from secure_llm_proxy.settings import IdentitySettings

PASSPHRASE = "violet tram over nine hedges"
CONTEXT = ("cristobalina", "topher.smithson@example.org")


def refusal(password: str, **settings: object) -> str | None:
    rules = PasswordRules(IdentitySettings.model_validate(settings))
    return rules.refusal(password, context=CONTEXT)


@pytest.mark.parametrize(
    "password",
    [
        PASSPHRASE,
        "pässwörter sind überall länger",
        "安全なパスワードを長く書いてください",
        "Tk8#vLq2!mZr9@wXe",
        " leading and trailing spaces count ",
        "x7" + "♞♜♛♚♝♟♠♣♥♦" * 2,
        "tab\tand\x07bell are characters",
    ],
)
def test_long_uncommon_passwords_of_any_alphabet_are_taken(password: str) -> None:
    assert refusal(password) is None


def test_length_counts_characters_and_has_both_bounds() -> None:
    assert "at least 15" in (refusal("kvq8zm3wjt5rxp") or "")
    assert refusal("kvq8zm3wjt5rxpy") is None
    assert refusal("kvq8zm3wjt5r", password_length_min=12) is None
    assert refusal("aé€" + PASSPHRASE * 36) is None
    assert str(PASSWORD_BYTES_MAX) in (refusal("€" * 10 + PASSPHRASE * 36) or "")


def test_text_that_is_no_unicode_is_refused() -> None:
    assert "Unicode" in (refusal("\ud800" + PASSPHRASE) or "")


@pytest.mark.parametrize(
    "password",
    [
        "passwordpassword",
        "Password1234567!!",
        "P@ssw0rd20262026",
        "administrator123456",
        "!!!Letmein!!!2026!!!",
        "qwertyuiop1234567890",
        "1qaz2wsx3edc4rfv5tgb",
        "q1w2e3r4t5y6u7i8",
        "abcdefghijklmnopqrs",
        "98765432109876543",
        "aaaaaaaaaaaaaaaaaaaa",
        "abababababababababab",
        "hello12hello12hello12",
        "CorrectHorseBatteryStaple",
        "thisismypassword",
        "ThisIsMyPassword2026",
        "iloveyouforever!",
    ],
)
def test_what_attackers_try_first_is_refused(password: str) -> None:
    assert "attackers try" in (refusal(password) or "")


@pytest.mark.parametrize(
    "password",
    [
        "cristobalina2026!!",
        "Cristobalina-2026",
        "topher.smithson99",
        "SecureLLMProxy#2026",
        "secure-llm-proxy-1",
        "secure_llm_proxy cristobalina",
        "topher.smithson@example.org",
    ],
)
def test_names_of_the_user_and_the_product_are_no_password(password: str) -> None:
    assert "name of yours" in (refusal(password) or "")


def test_a_name_inside_a_long_uncommon_password_does_no_harm() -> None:
    assert refusal("cristobalina keeps violet trams") is None


@pytest.mark.parametrize(
    ("setting", "missing"),
    [
        ("password_require_uppercase", "upper-case"),
        ("password_require_lowercase", "lower-case"),
        ("password_require_digits", "digit"),
        ("password_require_special", "neither letter nor digit"),
    ],
)
def test_the_origins_class_rules_apply_only_when_switched_on(setting: str, missing: str) -> None:
    without = {
        "password_require_uppercase": "violet tram 4 hedges",
        "password_require_lowercase": "VIOLET TRAM 4 HEDGES",
        "password_require_digits": "Violet tram nine hedges",
        "password_require_special": "VioletTram4Hedges",
    }[setting]

    assert refusal(without) is None
    assert missing in (refusal(without, **{setting: True}) or "")
    assert refusal("Violet tram 4 hedges", **{setting: True}) is None


def test_the_block_list_is_long_and_written_plainly() -> None:
    words = common_passwords()

    assert len(words) > 2_000
    assert {"password", "123456", "qwerty", "letmein", "iloveyou"} <= words
    assert all(word == word.casefold().strip() and word.isascii() for word in words)


def test_a_hash_is_argon2id_with_64_mib_and_recognises_its_password_only() -> None:
    vault = PasswordVault(b"p" * 32)

    stored = vault.hash(PASSPHRASE)

    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert vault.check(stored, PASSPHRASE) is PasswordCheck.RIGHT
    assert vault.check(stored, PASSPHRASE + " ") is PasswordCheck.WRONG
    assert vault.check(stored, PASSPHRASE.title()) is PasswordCheck.WRONG
    assert vault.hash(PASSPHRASE) != stored


def test_a_stolen_hash_is_worth_nothing_without_the_pepper() -> None:
    stored = PasswordVault(b"p" * 32).hash(PASSPHRASE)

    assert PasswordVault(b"q" * 32).check(stored, PASSPHRASE) is PasswordCheck.WRONG
    with pytest.raises(argon2.exceptions.VerifyMismatchError):
        argon2.PasswordHasher().verify(stored, PASSPHRASE)


def test_a_password_of_nobody_is_wrong_after_the_same_work() -> None:
    assert PasswordVault(b"p" * 32).check(None, PASSPHRASE) is PasswordCheck.WRONG


def test_a_hash_made_with_weaker_parameters_is_called_outdated() -> None:
    vault = PasswordVault(b"p" * 32)
    weaker = argon2.PasswordHasher(1, 8192, 1, type=Type.ID).hash(_peppered(b"p" * 32, PASSPHRASE))

    assert vault.check(weaker, PASSPHRASE) is PasswordCheck.OUTDATED
    assert vault.check(weaker, string.ascii_letters) is PasswordCheck.WRONG


def test_hashing_leaves_the_event_loop_free() -> None:
    vault = PasswordVault(b"p" * 32)
    ticks: list[int] = []

    def tick() -> None:
        while True:
            ticks.append(len(ticks))
            gevent.sleep(0.001)

    ticker = gevent.spawn(tick)
    deadline = time.monotonic() + 60
    # Six that hold the loop let it turn once each. How often it turns beside those that don't is the machine's: a quick one
    # is done soon, and a busy one gives the loop few turns. So they are asked until it has turned often beside six.
    while len(ticks) <= 10 and time.monotonic() < deadline:
        ticks.clear()
        hashes = [gevent.spawn(vault.hash, PASSPHRASE) for _ in range(6)]
        gevent.joinall(hashes, raise_error=True)
        assert len({hashing.value for hashing in hashes}) == 6
    ticker.kill()

    assert len(ticks) > 10
