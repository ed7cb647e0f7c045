"""Prefixed, time-sortable identifiers: `exc_01KAHG…` (ULID, github.com/ulid/spec: 48 bits of ms, 80 random bits)."""

from __future__ import annotations

import os
import time
from typing import NewType

ExchangeId = NewType("ExchangeId", str)
RecordId = NewType("RecordId", str)
UserId = NewType("UserId", str)
KeyId = NewType("KeyId", str)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two digits at once: a request draws three identifiers, and each took 2.6 µs digit by digit (1.3 µs now, 2026-11).
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_SHIFTS = tuple(range(120, -1, -10))


_RANDOM_BYTES = 10
# Drawn a hundred at a time: asking the kernel for each cost more than all else here. Never used by two processes: a child
# of a fork begins with none.
_drawn: list[bytes] = []
os.register_at_fork(after_in_child=_drawn.clear)


def _draw() -> bytes:
    try:
        return _drawn.pop()
    except IndexError:
        block = os.urandom(_RANDOM_BYTES * 100)
        _drawn.extend(block[start : start + _RANDOM_BYTES] for start in range(_RANDOM_BYTES, len(block), _RANDOM_BYTES))
        return block[:_RANDOM_BYTES]


def ulid() -> str:
    """26 characters of Crockford base32; sorts by creation time at a resolution of 1 ms."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(_draw(), "big")
    pairs = _PAIRS
    return "".join([pairs[(value >> shift) & 1023] for shift in _SHIFTS])


def new_exchange_id() -> ExchangeId:
    return ExchangeId("exc_" + ulid())


def new_record_id() -> RecordId:
    return RecordId(ulid())


def new_user_id() -> UserId:
    return UserId("usr_" + ulid())


def new_key_id() -> KeyId:
    return KeyId("key_" + ulid())
