"""scripts/lib/database_url.py: what the installer takes from the URL of a database."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts/lib/database_url.py"


def ask(question: str, url: str) -> str:
    return subprocess.run(
        ["/usr/bin/python3", "-I", str(_SCRIPT), question],
        input=url + "\n", capture_output=True, text=True, check=True, timeout=60,
    ).stdout.removesuffix("\n")  # fmt: skip


def test_a_password_is_told_as_it_is_and_quoted_for_psql() -> None:
    url = "postgresql://secure_llm_proxy:a%27%5Cb%40%2F%25@127.0.0.1:5432/secure_llm_proxy"

    assert ask("password", url) == "a'\\b@/%"
    assert ask("psql-password", url) == "\\set password 'a''\\\\b@/%'"


@pytest.mark.parametrize(
    ("place", "addresses"),
    [
        ("192.0.2.7:5432/name", "192.0.2.7"),
        ("[2001:db8::7]:5432/name?sslmode=verify-full", "2001:db8::7"),
        ("192.0.2.7:5432,192.0.2.8/name", "192.0.2.7 192.0.2.8"),
        ("/name?host=192.0.2.9", "192.0.2.9"),
        ("/name?host=/run/postgresql", ""),
        ("127.0.0.1:5432/name", ""),
    ],
)
def test_the_addresses_are_those_outside_of_this_host(place: str, addresses: str) -> None:
    assert ask("addresses", f"postgresql://user:secret@{place}") == addresses
