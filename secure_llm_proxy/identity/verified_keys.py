"""What one worker remembers of keys: small, bounded by number and by memory, gone the moment a key is revoked."""

from __future__ import annotations

import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import NewType

from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID
from secure_llm_proxy.vocabulary.caller import KIND_LIVE, Caller

KeyRecord = NewType("KeyRecord", bytes)

# ASCII "unit separator": neither JSON nor an id may hold it.
RECORD_SEPARATOR = "\x1f"
_DIGEST_LENGTH = 32
_ACTIVE = "active"
# The last column of a record, as the register words it; the first that applies stands there.
KILLED, REVOKED, QUARANTINED = "killed", "revoked", "quarantined"
_STOPPED = {
    KILLED: ErrorCode.KILLED,
    REVOKED: ErrorCode.API_KEY_REVOKED,
    QUARANTINED: ErrorCode.API_KEY_QUARANTINED,
}
# What Python adds to a record: its own header, the kid, their places in the map.
_OVERHEAD_BYTES = 190
# Keys used lately are kept ready; making one ready takes 4 µs. Counted by their records, of which their objects are some ten
# times the size.
_READY_MAX = 4096
_READY_BYTES_MAX = 2**20
# Making room takes the oldest sixteenth at once: one by one, a dict's front gets slow.
_ROOM = 16


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key whose digest matched. `refusal` is set when it, its account or its project is stopped in any way; expiry is
    judged at every use.
    """

    kid: Kid
    digest: bytes = field(repr=False)
    caller: Caller
    expires_at: datetime
    refusal: ErrorCode | None


def key_record(digest: bytes | memoryview, columns: str) -> KeyRecord:
    """A key as remembered: its digest, and its columns as one text (`RECORD_SEPARATOR` between them).

    The columns, empty where nothing is to be said: user, role, status, organisation (empty: the first), kind (empty: live),
    project (empty: the first), its status (empty: active), scopes, models (JSON, empty: all), requests per minute (its own or
    its project's), burst, concurrent, most tokens, addresses and agents (JSON, empty: all), expiry, and how it is stopped.
    """
    return KeyRecord(bytes(digest) + columns.encode())


def renewed(record: KeyRecord, digest: bytes) -> KeyRecord:
    """The same key, recognised by another digest."""
    return KeyRecord(digest + record[_DIGEST_LENGTH:])


def known_key(kid: Kid, record: KeyRecord) -> KnownKey:
    """What the record says. Raises `ValueError` when somebody wrote nonsense into the row."""
    # Nothing in a row can shift a column: a separator in somebody's text makes the number of columns wrong.
    (
        user_id,
        role,
        status,
        organisation_id,
        kind,
        project_id,
        project_status,
        scopes,
        models,
        rate,
        burst,
        concurrent,
        tokens_max,
        addresses,
        agents,
        expires,
        stopped,
    ) = record[_DIGEST_LENGTH:].decode().split(RECORD_SEPARATOR)
    expires_at = datetime.fromisoformat(expires)
    # SQLite keeps no zone: it is UTC there.
    expires_at = expires_at.replace(tzinfo=UTC) if expires_at.tzinfo is None else expires_at.astimezone(UTC)
    refusal = None
    if stopped:
        refusal = _STOPPED[stopped]
    elif status != _ACTIVE:
        refusal = ErrorCode.ACCOUNT_LOCKED
    elif project_status:
        refusal = ErrorCode.PROJECT_INACTIVE
    caller = Caller(
        user_id=user_id,
        key_id=kid,
        role=role,
        scopes=_names(scopes) or frozenset(),
        models=_names(models),
        requests_per_minute=int(rate) if rate else None,
        expires_at=expires_at,
        project_id=project_id or DEFAULT_PROJECT_ID,
        organisation_id=organisation_id or DEFAULT_ORGANISATION_ID,
        kind=kind or KIND_LIVE,
        burst=int(burst) if burst else None,
        concurrent=int(concurrent) if concurrent else None,
        tokens_max=int(tokens_max) if tokens_max else None,
        allowed_addresses=_entries(addresses) if addresses else None,
        allowed_agents=_entries(agents) if agents else None,
    )
    return KnownKey(kid, record[:_DIGEST_LENGTH], caller, expires_at, refusal)


@lru_cache(maxsize=256)
def _names(listed: str) -> frozenset[str] | None:
    """One set for all keys that are alike; None for null."""
    names = json.loads(listed) if listed else None
    return None if names is None else frozenset(names)


@lru_cache(maxsize=256)
def _entries(listed: str) -> tuple[str, ...] | None:
    """One tuple for all keys that are alike; None for null. Raises `ValueError` for what isn't a list of texts."""
    entries = json.loads(listed)
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("an allow-list of a key is not a list of texts")
    return tuple(entries)


class VerifiedKeys:
    """Records by `kid`, each good only for who shows its whole digest (LiteLLM CVE-2026-35030 cut it short).

    A record is bytes, 300 of memory in all, and nothing that the garbage collector walks: 100,000 keys are 30 MB and slow
    nothing down. Those used lately are `ready` as objects as well. The oldest that aren't make room.
    """

    def __init__(self, keys_max: int, bytes_max: int) -> None:
        self.ready: dict[str, KnownKey] = {}
        self._keys_max = keys_max
        self._bytes_max = bytes_max
        self._records: dict[Kid, KeyRecord] = {}
        self._ready_bytes = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def is_full(self) -> bool:
        """Something was dropped to make room, or soon would be."""
        full = 1 - 1 / _ROOM
        return len(self._records) >= full * self._keys_max or self.size_bytes >= full * self._bytes_max

    def get(self, kid: Kid, digest: bytes) -> KnownKey | None:
        known = self.ready.get(kid)
        if known is None:
            record = self._records.get(kid)
            if record is None or not hmac.compare_digest(record[:_DIGEST_LENGTH], digest):
                return None
            return self._make_ready(kid, record)
        return known if hmac.compare_digest(known.digest, digest) else None

    def record(self, kid: Kid, digest: bytes) -> KeyRecord | None:
        record = self._records.get(kid)
        return record if record is not None and hmac.compare_digest(record[:_DIGEST_LENGTH], digest) else None

    def put(self, kid: Kid, record: KeyRecord) -> KnownKey:
        """Remember what was just looked up."""
        self._store(kid, record)
        known = self._make_ready(kid, record)
        self._make_room()
        return known

    def put_page(self, records: Mapping[Kid, KeyRecord]) -> None:
        """Remember what was read along, as long as there is room. What is remembered already stays as it is."""
        for kid, record in records.items():
            if self.is_full:
                return
            if kid not in self._records:
                self._store(kid, record)

    def drop(self, kid: str) -> None:
        self.ready.pop(kid, None)
        record = self._records.pop(Kid(kid), None)
        if record is not None:
            self.size_bytes -= len(record) + _OVERHEAD_BYTES

    def clear(self) -> None:
        self.ready.clear()
        self._ready_bytes = 0
        self._records.clear()
        self.size_bytes = 0

    def _store(self, kid: Kid, record: KeyRecord) -> None:
        self.drop(kid)
        self._records[kid] = record
        self.size_bytes += len(record) + _OVERHEAD_BYTES

    def _make_ready(self, kid: Kid, record: KeyRecord) -> KnownKey:
        known = known_key(kid, record)
        self._ready_bytes += len(record)
        if len(self.ready) >= _READY_MAX or self._ready_bytes > _READY_BYTES_MAX:
            self.ready.clear()
            self._ready_bytes = len(record)
        self.ready[kid] = known
        return known

    def _make_room(self) -> None:
        while len(self._records) > self._keys_max or self.size_bytes > self._bytes_max:
            wanted = max(1, len(self._records) // _ROOM)
            oldest = list(islice((kid for kid in self._records if kid not in self.ready), wanted))
            for kid in oldest or list(islice(self._records, wanted)):
                self.drop(kid)


class RefusedKeys:
    """Digests that matched nothing a moment ago, so that the same wrong key asks the database once.

    By whole digest too, never by `kid`: an unknown `kid` and a wrong secret must cost the same (SECURITY A15).
    """

    def __init__(self, size_max: int, keep_s: float) -> None:
        self._size_max = size_max
        self._keep_s = keep_s
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_s)

    def holds(self, digest: bytes, now_s: float) -> bool:
        until_s = self._until_s.get(digest)
        return until_s is not None and now_s < until_s

    def put(self, digest: bytes, now_s: float) -> None:
        self._until_s[digest] = now_s + self._keep_s
        self._until_s.move_to_end(digest)
        if len(self._until_s) > self._size_max:
            self._until_s.popitem(last=False)
