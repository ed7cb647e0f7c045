"""Identifiers: prefixed, sortable, never twice."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from secure_llm_proxy.foundation import identifiers

CROCKFORD = "[0-9A-HJKMNP-TV-Z]"


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (identifiers.new_exchange_id, "exc_"),
        (identifiers.new_user_id, "usr_"),
        (identifiers.new_key_id, "key_"),
        (identifiers.new_record_id, ""),
    ],
)
def test_an_identifier_tells_its_kind_and_is_harmless_anywhere(make: Callable[[], str], prefix: str) -> None:
    assert re.fullmatch(rf"{prefix}[0-7]{CROCKFORD}{{25}}", make())


def test_no_identifier_comes_twice() -> None:
    assert len({identifiers.ulid() for _ in range(20_000)}) == 20_000


def test_identifiers_sort_by_the_time_they_were_made() -> None:
    earlier = identifiers.ulid()
    moment = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == moment:
        time.sleep(0.0005)

    assert earlier < identifiers.ulid()


def test_the_time_can_be_read_from_an_identifier() -> None:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

    before = time.time_ns() // 1_000_000
    made = identifiers.ulid()
    after = time.time_ns() // 1_000_000

    value = 0
    for character in made:
        value = value * 32 + alphabet.index(character)
    assert before <= value >> 80 <= after


_FORKING = """
import os
from secure_llm_proxy.foundation.identifiers import ulid
ulid()
child = os.fork()
os.write(1, (" ".join(ulid()[10:] for _ in range(150)) + "\\n").encode())
if child:
    os.waitpid(child, 0)
"""


def test_a_child_of_a_fork_draws_other_identifiers_than_its_parent() -> None:
    told = subprocess.run([sys.executable, "-c", _FORKING], check=True, capture_output=True, text=True, timeout=60)

    one, other = (set(line.split()) for line in told.stdout.splitlines())

    assert len(one) == len(other) == 150
    assert not one & other


def test_identifiers_never_repeat() -> None:
    drawn = [identifiers.ulid() for _ in range(20_000)]

    assert len({identifier[10:] for identifier in drawn}) == len(drawn)
