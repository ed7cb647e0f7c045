"""The keys that sign the log: one at a time, rolled every hour, the one before erased.

`AUDIT_KEYS_DIR/epoch.key` holds the private key in force, wrapped by the key-encryption key. A roll writes the next one as
`epoch.key.next`, appends the `kr` line in which the old key names it, and moves it over `epoch.key`: whatever a crash leaves of
that, the log's last `kr` line says which of the two files is the key in force. Who breaks in later finds no key of an earlier
hour, so what was signed stays as it is (forward security; the idea of systemd's sealed journal).
These files belong in no backup: a restored log goes on with a key that the owner signs (`restart_log`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit.durable_files import sync_directory, write_durably
from secure_llm_proxy.audit.format import base64_text, strict_base64
from secure_llm_proxy.audit.seal import KeyEncryptionKey, SealBroken
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings

EPOCH_KEY_NAME = "epoch.key"
NEXT_KEY_NAME = "epoch.key.next"
FIRST_EPOCH_KID = "epoch.1"
_MODE = 0o600


def keks_of(settings: AuditSettings) -> tuple[KeyEncryptionKey, ...]:
    """The key-encryption keys, the current one first. Raises `OperatorError` when one is no key."""
    if settings.kek is None:
        return ()
    previous = settings.previous_keks.get_secret_value().split(",") if settings.previous_keks else []
    texts = [settings.kek.get_secret_value(), *(text for text in previous if text.strip())]
    return tuple(KeyEncryptionKey.from_text(text) for text in texts)


@dataclass(frozen=True, slots=True)
class EpochKey:
    """One private key. `since_s` is when it was made (Unix seconds); `kek` the id of what wraps its file, None: nothing does."""

    kid: str
    private: Ed25519PrivateKey
    since_s: float
    kek: str | None

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()


class EpochKeys:
    """The key in force and, while a roll is under way, the next. Used by the one process that writes the log."""

    def __init__(self, directory: Path, keks: Sequence[KeyEncryptionKey]) -> None:
        self._directory = directory
        self._keks = tuple(keks)
        self._current: EpochKey | None = None
        self._next: EpochKey | None = None

    @classmethod
    def of(cls, settings: AuditSettings) -> EpochKeys:
        return cls(settings.keys_directory, keks_of(settings))

    @property
    def current(self) -> EpochKey:
        if self._current is None:
            raise RuntimeError("no epoch key is in force yet")
        return self._current

    def make_first(self) -> EpochKey:
        """Make and store the first key of a log, which `adopt` puts in force. Raises `OSError`."""
        self._next = self._store(NEXT_KEY_NAME, FIRST_EPOCH_KID, Ed25519PrivateKey.generate(), time.time())
        return self._next

    def finish_first(self, first: bytes) -> None:
        """Put the log's first key in force, when a crash came between its genesis and that."""
        if not (self._directory / EPOCH_KEY_NAME).exists():
            following = self._read(NEXT_KEY_NAME)
            if following is not None and following.public == first:
                self.take(first)

    def take(self, in_force: bytes) -> None:
        """Afterwards `current` is the key whose public half is `in_force`: what a roll left half done is finished or undone.

        Raises `OperatorError` when that key is lost, damaged, or wrapped by a key-encryption key that is not given.
        """
        current, following = self._read(EPOCH_KEY_NAME), self._read(NEXT_KEY_NAME)
        if following is not None and following.public == in_force:
            self._directory.joinpath(NEXT_KEY_NAME).rename(self._directory / EPOCH_KEY_NAME)
            sync_directory(self._directory)
            current = following
        elif following is not None:
            self._directory.joinpath(NEXT_KEY_NAME).unlink()
        path = self._directory / EPOCH_KEY_NAME
        if current is None:
            raise OperatorError(
                f"{path} is missing: the log's epoch key is lost. Backups never hold it; "
                "`manage.py audit restart --owner-key FILE` goes on with a new one."
            )
        if current.public != in_force:
            raise OperatorError(
                f"{path} is not the key that the log's last lines name: the log or the key is an older copy. "
                "`manage.py audit restart --owner-key FILE` goes on with a new one, and verifiers are told."
            )
        if self._keks and current.kek != self._keks[0].id:
            current = self._store(EPOCH_KEY_NAME, current.kid, current.private, current.since_s)
        self._current = current

    def prepare(self) -> EpochKey:
        """The key of the next epoch, on disk beside the current one. Asked again, it is the same. Raises `OSError`."""
        if self._next is None:
            kid = f"epoch.{time.time_ns()}"
            self._next = self._store(NEXT_KEY_NAME, kid, Ed25519PrivateKey.generate(), time.time())
        return self._next

    def adopt(self) -> None:
        """The log names the next key now: it is in force from here on, and the one before is erased.

        Raises `OSError` when the file could not be moved; the next start does it.
        """
        if self._next is None:
            raise RuntimeError("no next epoch key was prepared")
        self._current, self._next = self._next, None
        self._directory.joinpath(NEXT_KEY_NAME).rename(self._directory / EPOCH_KEY_NAME)
        sync_directory(self._directory)

    def check(self) -> EpochKey | None:
        """The stored key, if there is one and it can be read with the key-encryption keys given. Raises `OperatorError`."""
        return self._read(EPOCH_KEY_NAME)

    def _store(self, name: str, kid: str, private: Ed25519PrivateKey, since_s: float) -> EpochKey:
        kek = self._keks[0] if self._keks else None
        secret = private.private_bytes_raw()
        # Without encryption the file's mode is all that protects it; production refuses that setting.
        stored = {"wk": base64_text(kek.wrap(secret, kid))} if kek else {"sk": base64_text(secret)}
        key = EpochKey(kid, private, since_s, kek.id if kek else None)
        members = {"v": 1, "kid": kid, "kek": key.kek, "epk": base64_text(key.public), "since": int(since_s), **stored}
        write_durably(self._directory / name, orjson.dumps(members) + b"\n", _MODE)
        return key

    def _read(self, name: str) -> EpochKey | None:
        path = self._directory / name
        try:
            members = orjson.loads(path.read_bytes())
            kid, since = members["kid"], members.get("since")
            secret = (
                strict_base64(members["sk"]) if "sk" in members else self._unwrap(strict_base64(members["wk"]), kid)
            )
            private = Ed25519PrivateKey.from_private_bytes(secret)
            # Files of the first release do not say since when.
            since_s = float(since) if since is not None else path.stat().st_mtime
            return EpochKey(kid, private, since_s, members["kek"])
        except FileNotFoundError:
            return None
        except SealBroken:
            raise OperatorError(
                f"{path} was wrapped by another AUDIT_KEK than the one given now; give that one in AUDIT_KEK_PREVIOUS."
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise OperatorError(
                f"{path} is damaged. `manage.py audit restart --owner-key FILE` goes on with a new one."
            ) from None

    def _unwrap(self, wrapped: bytes, kid: str) -> bytes:
        if not self._keks:
            raise OperatorError("AUDIT_KEK is missing, and the log's epoch key is wrapped by it.")
        for kek in self._keks:
            try:
                return kek.unwrap(wrapped, kid)
            except SealBroken:
                continue
        raise SealBroken
