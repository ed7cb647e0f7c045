"""What one worker remembers of keys: bounded, keyed by the whole digest, gone the moment a key is revoked."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.identity.api_keys import Kid
from secure_llm_proxy.vocabulary.caller import Caller


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key whose digest matched, as the database had it at `seen_s` (monotonic).

    `refusal` is set when the key is revoked or its account locked; expiry is judged at every use.
    """

    kid: Kid
    caller: Caller
    expires_at: datetime
    refusal: ErrorCode | None
    seen_s: float


class VerifiedKeys:
    """The least recently used ones make room. The key of the map is the full HMAC (LiteLLM CVE-2026-35030 cut it short)."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._by_digest: OrderedDict[bytes, KnownKey] = OrderedDict()
        self._digest_of: dict[Kid, bytes] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def get(self, digest: bytes) -> KnownKey | None:
        known = self._by_digest.get(digest)
        if known is not None:
            self._by_digest.move_to_end(digest)
        return known

    def put(self, digest: bytes, known: KnownKey) -> None:
        self._by_digest[digest] = known
        self._by_digest.move_to_end(digest)
        self._digest_of[known.kid] = digest
        if len(self._by_digest) > self._size_max:
            _, oldest = self._by_digest.popitem(last=False)
            del self._digest_of[oldest.kid]

    def drop(self, kid: Kid) -> None:
        if (digest := self._digest_of.pop(kid, None)) is not None:
            del self._by_digest[digest]


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
