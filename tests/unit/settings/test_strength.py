"""Weak secrets are told apart from good ones."""

from __future__ import annotations

import secrets

import pytest

from secure_llm_proxy.settings.strength import weakness_of


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "only 0 characters"),
        ("short", "only 5 characters"),
        ("Zk9!qW3@eR5#tY7$uI8%oP0^aS2&dF4"[:31], "only 31 characters"),
        ("change-me-in-production-please-0123456789", "placeholder"),
        ("CHANGE-THIS-to-a-random-string-8f3k2j5h", "placeholder"),
        ("your-secret-key-here-9d8f7g6h5j4k3l2m1n", "placeholder"),
        ("your_secret_key_at_least_32_characters!", "placeholder"),
        ("dev-key-do-not-use-0q9w8e7r6t5y4u3i2o1p", "placeholder"),
        ("my-super-secret-jwt-0q9w8e7r6t5y4u3i2o", "placeholder"),
        ("Password1234567890!qwertzuiopasdfghjkly", "placeholder"),
        ("this-is-insecure-0q9w8e7r6t5y4u3i2o1p0a", "placeholder"),
        ("a" * 64, "too few different"),
        ("01" * 32, "too few different"),
        ("123456789" * 8, "too few different"),
        ("0123456789abcdef" * 4, "repeats"),
        ("0123456789abcdef0123456789abcdef", "repeats"),
        ("abcdefghijklm" * 3, "repeats"),
        ("abcdefghijklm" * 3 + "abc", "repeats"),
    ],
)
def test_a_weak_secret_is_told_by_its_reason_and_not_quoted(secret: str, reason: str) -> None:
    weakness = weakness_of(secret)

    assert weakness is not None
    assert reason in weakness
    assert not secret or secret not in weakness


def test_generated_secrets_are_good() -> None:
    for _ in range(200):
        assert weakness_of(secrets.token_hex(32)) is None
