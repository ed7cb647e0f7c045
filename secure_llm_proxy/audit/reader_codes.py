"""Who may open bodies through the read socket: readers, each with an authenticator app of their own (RFC 6238).

A reader is enrolled on the host by who holds the key-encryption key; the secret lies wrapped in the key store and is
opened only in the audit writer's processes, never in a web worker: who takes a worker over reads no past content. SHA-1, six
digits, 30 seconds, as everywhere in the product. The code of the current 30 seconds and of those before them are right, each once:
using one is a compare-and-set in a transaction. After 5 wrong codes in 15 minutes a reader is closed for 15 minutes; names
that are no reader's share one such count, so that they are told nothing about who is one.

How many bodies are opened in an hour is counted here too, durably, before one is shown. A clock that jumped back makes all of
this stricter, never looser.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from base64 import b32encode
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import orjson
import pyotp

from secure_llm_proxy.audit.keystore import KEYS_NAME, KeyStore
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError
from secure_llm_proxy.settings import AuditSettings

STEP_S = 30
WRONG_MAX = 5
CLOSED_S = 15 * 60
HOUR_MINUTES = 60

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_READERS = "reader:"
# Not a name that a reader can have.
_NOBODY = "reader.nobody"
_REVEALS = "reveals.hour"
_SEED_BYTES = 20
_CODE_LENGTH = 6
_ASCII_DIGITS = frozenset("0123456789")


class Verdict(Enum):
    """`CLOSED`: too many wrong codes came before; the code was not looked at."""

    RIGHT = "right"
    WRONG = "wrong"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Reader:
    """`used_at` is the beginning of the last code's 30 seconds; both are Unix seconds. `closed_until` is 0 when it is not."""

    name: str
    since: int
    used_at: int
    closed_until: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether so many bodies may be opened now, and how many were opened in the last hour before them."""

    granted: bool
    opened: int


@dataclass(slots=True)
class _State:
    seed: str
    since: int
    step: int
    wrong: list[int]
    closed_until: int

    @classmethod
    def read(cls, content: bytes) -> _State:
        told = orjson.loads(content)
        return cls(told["seed"], told["since"], told["step"], told["wrong"], told["closed_until"])

    def written(self) -> bytes:
        return orjson.dumps(
            {
                "seed": self.seed,
                "since": self.since,
                "step": self.step,
                "wrong": self.wrong,
                "closed_until": self.closed_until,
            }
        )


class ReaderCodes:
    """Readers, their codes, and the hour's count. Used by one thread.

    Every method raises `KeyStoreUnavailable` when the key store is away.
    """

    def __init__(self, store: KeyStore, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_s = now_s

    @classmethod
    def of(cls, settings: AuditSettings) -> ReaderCodes:
        """Over the key store that the writer has made. Raises `OperatorError` when the key-encryption key is not here."""
        return cls(writable_store(settings))

    def close(self) -> None:
        self._store.close()

    # --- readers ------------------------------------------------------------------------------------------------------

    def readers(self) -> list[Reader]:
        found = []
        for name in self._store.secrets(_READERS):
            content = self._store.secret(name)
            if content is not None:
                state = _State.read(content)
                found.append(Reader(name[len(_READERS) :], state.since, state.step * STEP_S, state.closed_until))
        return found

    def require_free(self, name: str) -> None:
        """Raises `OperatorError` when nobody can be called so, `ConflictError` when somebody is."""
        if not _NAME.fullmatch(name):
            raise OperatorError(
                "A reader's name has 1 to 32 small letters, digits, `.`, `_` and `-`, and begins with a letter or digit."
            )
        if self._store.secret(_READERS + name) is not None:
            raise ConflictError(f"There is a reader {name} already; `audit remove-reader` removes it.")

    def require_known(self, name: str) -> None:
        """Raises `NotFoundError` when there is no such reader."""
        if not _NAME.fullmatch(name) or self._store.secret(_READERS + name) is None:
            raise NotFoundError(f"There is no reader {name!r}.")

    def enrol(self, name: str, seed: str, code: str) -> None:
        """Afterwards `name` is a reader, and `code` is used up. Raises as `require_free`, and when the code isn't right."""
        self.require_free(name)
        step = self._step_of(seed, code)
        if step is None:
            raise OperatorError("The code is not right.")
        state = _State(seed, int(self._now_s()), step, [], 0)

        def enrol(content: bytes | None) -> tuple[bytes | None, bool]:
            return (state.written(), True) if content is None else (content, False)

        if not self._store.revise_secret(_READERS + name, enrol):
            raise ConflictError(f"There is a reader {name} already; `audit remove-reader` removes it.")

    def remove(self, name: str) -> None:
        """Raises `NotFoundError` when there is no such reader."""
        self.require_known(name)
        self._store.drop_secret(_READERS + name)

    # --- codes --------------------------------------------------------------------------------------------------------

    def is_right(self, seed: str, code: str) -> bool:
        """Whether an app with this secret shows the code now. Uses nothing up."""
        return self._step_of(seed, code) is not None

    def check(self, name: str, code: str) -> Verdict:
        """Judge a reader's code; a right one is used up by this, durably. Takes exactly six ASCII digits, as they are."""
        known = _NAME.fullmatch(name) is not None and self._store.secret(_READERS + name) is not None
        key = _READERS + name if known else _NOBODY
        content = self._store.secret(key)
        if content is not None and self._is_closed(_State.read(content)):
            # Without a transaction: a closed reader must cost the writer nothing.
            return Verdict.CLOSED

        def judge(content: bytes | None) -> tuple[bytes | None, Verdict]:
            if content is None and known:
                # Removed at this moment.
                return None, Verdict.WRONG
            # Nobody's secret is new each time, so no code of it can be right but by chance, and that counts as wrong, too.
            state = _State.read(content) if content is not None else _State(new_reader_seed(), 0, 0, [], 0)
            if self._is_closed(state):
                return content, Verdict.CLOSED
            step = self._step_of(state.seed, code)
            if known and step is not None and step > state.step:
                state.step = step
                state.wrong = []
                return state.written(), Verdict.RIGHT
            now = int(self._now_s())
            state.wrong = [*(moment for moment in state.wrong if moment > now - CLOSED_S), now]
            if len(state.wrong) >= WRONG_MAX:
                state.wrong, state.closed_until = [], now + CLOSED_S
            return state.written(), Verdict.WRONG

        return self._store.revise_secret(key, judge)

    def _is_closed(self, state: _State) -> bool:
        return self._now_s() < state.closed_until

    def _step_of(self, seed: str, code: str) -> int | None:
        """The time step whose code this is; the work is the same whatever it is."""
        well_formed = len(code) == _CODE_LENGTH and _ASCII_DIGITS.issuperset(code)
        given = code if well_formed else "0" * _CODE_LENGTH
        totp = pyotp.TOTP(seed)
        current = int(self._now_s()) // STEP_S
        found = None
        for step in (current - 1, current):
            if hmac.compare_digest(totp.generate_otp(step), given):
                found = step
        return found if well_formed else None

    # --- the hour -----------------------------------------------------------------------------------------------------

    def opened_in_hour(self) -> int:
        content = self._store.secret(_REVEALS)
        return sum(self._minutes(content).values())

    def allow(self, records: int, per_hour: int) -> Allowance:
        """Count so many bodies as opened, unless that were more than `per_hour` within 60 minutes."""

        def count(content: bytes | None) -> tuple[bytes | None, Allowance]:
            minutes = self._minutes(content)
            opened = sum(minutes.values())
            if opened + records > per_hour:
                return content, Allowance(granted=False, opened=opened)
            minute = str(int(self._now_s()) // 60)
            minutes[minute] = minutes.get(minute, 0) + records
            return orjson.dumps(minutes), Allowance(granted=True, opened=opened)

        return self._store.revise_secret(_REVEALS, count)

    def _minutes(self, content: bytes | None) -> dict[str, int]:
        """What counts yet, by minute; a minute's share counts until the last of it is an hour old."""
        told: dict[str, int] = orjson.loads(content) if content is not None else {}
        oldest = int(self._now_s()) // 60 - HOUR_MINUTES
        return {minute: opened for minute, opened in told.items() if int(minute) >= oldest}


def new_reader_seed() -> str:
    """A secret for an authenticator app: 160 bits as base32."""
    return b32encode(os.urandom(_SEED_BYTES)).decode()


def reader_uri(name: str, seed: str, *, issuer: str, log: str) -> str:
    """What an app scans: the reader, and whose log it reads."""
    return pyotp.TOTP(seed).provisioning_uri(name=f"{name} ({log})", issuer_name=issuer)


def writable_store(settings: AuditSettings) -> KeyStore:
    """The key store as the writer has made it. Raises `OperatorError` when the key-encryption key is not here."""
    ring = KeyRing.of(settings) if settings.encryption_enabled else None
    if ring is None:
        raise OperatorError(
            "Readers need AUDIT_KEK; run this as a user who may read the audit writer's key, on a log that is encrypted."
        )
    return KeyStore(settings.keys_directory / KEYS_NAME, ring, read_only=False)
