"""Whole API keys where none belongs: found in a text, recognised as ours, and refused from then on.

A key in a URL stands in logs and histories; one in a prompt would stand with a provider. Recognised is who bears the whole
secret, not a public part: whoever could have a key quarantined could as well have used it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import gevent
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ConflictError, ErrorCode, Unavailable
from secure_llm_proxy.identity.api_keys import KEY_LENGTH, SCANNER_RULE, Kid, kid_of
from secure_llm_proxy.identity.issued_keys import ApiKeys, KeyStatus
from secure_llm_proxy.vocabulary.leaks import LeakedKey

T = TypeVar("T")

KEYS_FOUND_MAX = 64
"""More are not looked for in one text: who writes so many hides nothing by accident."""

_MARK = b"slp_"
_FORM = re.compile(SCANNER_RULE.encode())
# A checksum takes 1 µs, and 8 MiB could hold 150,000 texts of the form.
_CANDIDATES_MAX = 10_000
_HOPS_MAX = 8
_CHUNK_BYTES = 2**20
_PATIENCE_S = 3.0


def keys_in(text: bytes | str) -> tuple[str, ...]:
    """The well-formed keys (form and checksum) that `text` holds, each once, `KEYS_FOUND_MAX` at most.

    Whether they are anybody's, only the database knows. A text without `slp_` takes 0.5 µs for each kB at most, one with
    few underscores next to nothing (2026-11-21).
    """
    written = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not _has_mark(written):
        return ()
    found: dict[str, None] = {}
    for _, credential in _search(written):
        found[credential] = None
        if len(found) == KEYS_FOUND_MAX:
            break
    return tuple(found)


def keys_in_stream(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Line number and key for every well-formed key in a file, however long it is."""
    line, kept = 1, b""
    while chunk := stream.read(_CHUNK_BYTES):
        window = kept + chunk
        done = counted = 0
        for start, credential in _search(window, candidates_max=None):
            line += window.count(b"\n", counted, start)
            counted = start
            yield line, credential
            done = start + len(_MARK)
        done = max(done, len(window) - KEY_LENGTH)
        line += window.count(b"\n", counted, done)
        kept = window[done:]


class LeakedKeys:
    """Asks the database, and tells it. `on_quarantine` is told the public part of a key that must be forgotten."""

    def __init__(self, keys: ApiKeys, database: Database, clock: Clock, on_quarantine: Callable[[Kid], None]) -> None:
        self._keys = keys
        self._clock = clock
        self._database = database
        self._on_quarantine = on_quarantine

    def ours(self, credentials: Sequence[str]) -> tuple[LeakedKey, ...]:
        """Those of this deployment that work, or would again if they were released. Raises `Unavailable`."""
        if not credentials:
            return ()
        known = self._run(lambda session: self._keys.recognised(session, credentials))
        now = self._clock.now()
        return tuple(
            LeakedKey(key.kid, key.id, key.user_id, quarantined=key.quarantined_at is not None)
            for key in known.values()
            if key.status(now) in {KeyStatus.ACTIVE, KeyStatus.QUARANTINED}
        )

    def quarantine(self, kid: str, reason: str) -> None:
        """The key is refused within `cache_s` everywhere, here and where Redis tells of it at once. Raises `Unavailable`."""
        try:
            self._run(lambda session: self._keys.quarantine_api_key(session, kid, reason))
        except ConflictError:
            return  # revoked meanwhile, which is more
        self._on_quarantine(Kid(kid))

    def _run(self, work: Callable[[Session], T]) -> T:
        """A database that doesn't answer at all must not hold a request as long as TCP is patient."""
        patience = gevent.Timeout(_PATIENCE_S)
        try:
            with patience:
                return self._database.run(work)
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            raise Unavailable(
                "The proxy's database is unavailable; try again shortly.",
                code=ErrorCode.DATABASE_UNAVAILABLE,
                detail="no answer in time",
                retry_after_s=2,
            ) from None


def _has_mark(written: bytes) -> bool:
    # One character is sought seventy times faster than four: from underscore to underscore, unless there are many.
    at = -1
    for _ in range(_HOPS_MAX):
        at = written.find(b"_", at + 1)
        if at < 0:
            return False
        if written[at - 3 : at] == b"slp":
            return True
    return written.find(_MARK, at) >= 0


def _search(written: bytes, candidates_max: int | None = _CANDIDATES_MAX) -> Iterator[tuple[int, str]]:
    """Where a well-formed key begins, and the key."""
    at = looked_at = 0
    while (match := _FORM.search(written, at)) is not None:
        looked_at += 1
        credential = match[0].decode("ascii")
        if kid_of(credential) is None:
            # Another may begin within what only looked like one.
            at = match.start() + len(_MARK)
        else:
            at = match.end()
            yield match.start(), credential
        if candidates_max is not None and looked_at >= candidates_max:
            return
