"""What goes wrong with Redis, in words that show no host and no password."""

from __future__ import annotations

import ssl

import hiredis

_REASONS = {
    "NOAUTH": "AuthenticationError",
    "WRONGPASS": "AuthenticationError",
    "NOPERM": "NoPermissionError",
    "READONLY": "ReadOnlyError",
    "OOM": "OutOfMemoryError",
    "LOADING": "BusyLoadingError",
}


class RedisAway(Exception):
    """Redis did not do what was asked of it: unreachable, slow, full, read-only, locked or speaking nonsense.

    `reason` is the kind of the error alone, fit for everybody's eyes: no host, no password. Whether it was done all the
    same is unknown after a timeout.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(error: BaseException) -> str:
    if isinstance(error, RedisAway):
        return error.reason
    if isinstance(error, (TimeoutError, ssl.SSLError)) or not isinstance(error, OSError):
        return "InvalidResponse" if isinstance(error, (IndexError, hiredis.ProtocolError)) else type(error).__name__
    return "ConnectionError"


def reason_of_reply(answer: Exception) -> str:
    """`ReadOnlyError`; for errors that have no name of their own, Redis' code: `MISCONF`."""
    code = str(answer).partition(" ")[0]
    return _REASONS.get(code) or (code if code.isalpha() and code.isupper() else "ResponseError")
