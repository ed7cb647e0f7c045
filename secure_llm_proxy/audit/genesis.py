"""Root of trust of one host's log: the owner's key signs the log's name and its first epoch key, once.

The owner's private half is returned to the operator and kept nowhere; whoever holds the public half can tell this
log from any other that claims its name. The first epoch key's private half lies in AUDIT_KEYS_DIR (`epoch.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_llm_proxy.audit.durable_files import write_durably
from secure_llm_proxy.audit.epoch import EPOCH_KEY_NAME, EpochKeys
from secure_llm_proxy.audit.format import FormatError, base64_text, strict_base64
from secure_llm_proxy.audit.segments import GENESIS_NAME, LOCK_NAME, LogDirectories, hosts_in
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.regular_files import read_file
from secure_llm_proxy.settings import AuditSettings

_STATEMENT = "secure-llm-proxy audit genesis v1\n{log}\n{owner}\n{epoch}\n"
_HOST_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}")
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Genesis:
    """`owner_private_key` is set only by the call of `initialise` that made it: show it to the operator, then forget it.

    Keys are base64 of 32 bytes; `log` is the origin, `slp.<deployment>/<host>`.
    """

    directory: Path
    log: str
    owner_public_key: str
    epoch_public_key: str
    owner_private_key: str | None = field(default=None, repr=False)


class GenesisBroken(Exception):
    """genesis.json is not what the owner signed. The text says what is wrong."""


def find_host_id(settings: AuditSettings) -> str:
    """The configured host id, else the one log that exists, else the host's name. Raises `OperatorError`."""
    if settings.host_id:
        if not _HOST_ID.fullmatch(settings.host_id):
            raise OperatorError("AUDIT_HOST_ID may hold letters, digits, `.`, `_` and `-` only, at most 64 of them.")
        return settings.host_id
    hosts = hosts_in(settings.directory)
    if not hosts and settings.fallback_directory:
        # The first directory may be away.
        hosts = hosts_in(settings.fallback_directory)
    if len(hosts) > 1:
        raise OperatorError(
            f"{settings.directory} holds the logs of several hosts ({', '.join(hosts)}); say which is ours with AUDIT_HOST_ID."
        )
    if hosts:
        return hosts[0]
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", socket.gethostname()).strip("-._")[:64] or "host"


def initialise(settings: AuditSettings) -> Genesis:
    """Afterwards this host's log has a root of trust; a second call changes nothing and returns no secret.

    Raises `OperatorError` when the key-encryption key is missing or wrong, or when half of the root of trust is lost.
    """
    if not _HOST_ID.fullmatch(settings.deployment):
        raise OperatorError("AUDIT_DEPLOYMENT may hold letters, digits, `.`, `_` and `-` only, at most 64 of them.")
    try:
        settings.keys_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(settings.keys_directory / ".lock"):
            host = settings.directory / find_host_id(settings)
            path = host / GENESIS_NAME
            if path.exists():
                genesis = _read_own(host)
                if settings.kek is not None:
                    _require_epoch_key(settings, genesis)
                return genesis
            for directory in (settings.directory, host):
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            fallback = settings.fallback_directory
            if LogDirectories(host, fallback and fallback / host.name).segments():
                raise OperatorError(
                    f"{path} is missing although there are segments beside it, or in the second directory; restore it from a backup."
                )
            _refuse_to_lose_a_key(settings, path)
            return _make(settings, host)
    except OSError as error:
        raise OperatorError(f"The audit log could not be set up: {error.strerror} ({error.filename}).") from None


def _refuse_to_lose_a_key(settings: AuditSettings, genesis: Path) -> None:
    """A signing key without its log: the log's disk is away, and a new key in its place could not go on signing it."""
    key = settings.keys_directory / EPOCH_KEY_NAME
    if key.exists():
        raise OperatorError(
            f"{genesis} is missing although the signing key of a log, {key}, is there: is the log's disk mounted? Mount it, or "
            "restore the log from a backup. To begin another log, move the folder of keys away first."
        )


def _make(settings: AuditSettings, host: Path) -> Genesis:
    log = f"slp.{settings.deployment}/{host.name}"
    _require_kek(settings)
    owner = Ed25519PrivateKey.generate()
    owner_public = base64_text(owner.public_key().public_bytes_raw())
    # The key first: a genesis whose epoch key was never stored would be a log that nobody can go on signing. Under its own name
    # last: one that is there belongs to a log.
    keys = EpochKeys.of(settings)
    epoch_public = base64_text(keys.make_first().public)
    signature = base64_text(owner.sign(_statement(log, owner_public, epoch_public)))
    write_durably(host / GENESIS_NAME, _document(log, owner_public, epoch_public, signature), 0o440)
    keys.adopt()
    return Genesis(
        directory=host,
        log=log,
        owner_public_key=owner_public,
        epoch_public_key=epoch_public,
        owner_private_key=base64_text(owner.private_bytes_raw()),
    )


def read_genesis(host: Path) -> Genesis:
    """Read and check genesis.json. Raises `GenesisBroken`, or `OSError`: `FileNotFoundError` when there is none."""
    return genesis_in(read_file(host / GENESIS_NAME), host)


def genesis_in(raw: bytes, host: Path) -> Genesis:
    """Check the content of a genesis.json, which lies (or lay) in `host`. Raises `GenesisBroken`."""
    try:
        members = orjson.loads(raw)
        log, owner, epoch, signature = (members[name] for name in ("log", "opk", "epk", "sig"))
        # Rebuilt from its own values, so that no bit of the file is free.
        if _document(log, owner, epoch, signature) != raw:
            raise GenesisBroken(f"{GENESIS_NAME} is not in the form of version 1")
        if len(strict_base64(signature)) != _SIGNATURE_BYTES or len(strict_base64(epoch)) != _KEY_BYTES:
            raise GenesisBroken(f"{GENESIS_NAME} holds a key or signature of the wrong length")
        key = Ed25519PublicKey.from_public_bytes(strict_base64(owner))
        key.verify(strict_base64(signature), _statement(log, owner, epoch))
    except InvalidSignature:
        raise GenesisBroken(f"the owner's signature in {GENESIS_NAME} does not verify") from None
    except (ValueError, KeyError, TypeError, FormatError):
        raise GenesisBroken(f"{GENESIS_NAME} is malformed") from None
    return Genesis(directory=host, log=log, owner_public_key=owner, epoch_public_key=epoch)


def _require_kek(settings: AuditSettings) -> None:
    if settings.kek is None and settings.encryption_enabled:
        raise OperatorError(
            "AUDIT_KEK is missing. Make one with: python3 -c 'import secrets; print(secrets.token_hex(32))'"
        )


def lock_log(host: Path) -> int:
    """Hold a log's lock for the life of the process, or until the descriptor is closed: two writers would fork the chain.

    Raises `OperatorError` when another process has it.
    """
    try:
        descriptor = os.open(host / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.ENOSPC, errno.EDQUOT}:
            raise
        # Nothing new can be written here, but the log may go on in its second directory.
        descriptor = os.open(host / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OperatorError(f"Another audit writer holds {host}; only one may write a log.") from None
    return descriptor


def owner_key_from(text: str, genesis: Genesis) -> Ed25519PrivateKey:
    """The owner's private key as it was shown once. Raises `OperatorError` when it is none, or another log's."""
    try:
        key = Ed25519PrivateKey.from_private_bytes(strict_base64(text.strip()))
    except ValueError:
        raise OperatorError(
            "This is no owner key: it must be the base64 text that was shown when the log began."
        ) from None
    if base64_text(key.public_key().public_bytes_raw()) != genesis.owner_public_key:
        raise OperatorError(f"This is the owner key of another log than {genesis.log}.")
    return key


def _require_epoch_key(settings: AuditSettings, genesis: Genesis) -> None:
    """Whether it is the one in force is told by the log's last lines, at the writer's start."""
    keys = EpochKeys.of(settings)
    keys.finish_first(strict_base64(genesis.epoch_public_key))
    if keys.check() is None:
        raise OperatorError(
            f"{settings.keys_directory / EPOCH_KEY_NAME} is missing: the log's epoch key is lost. Backups never hold it; "
            "`manage.py audit restart --owner-key FILE` goes on with a new one."
        )


def _read_own(host: Path) -> Genesis:
    try:
        return read_genesis(host)
    except GenesisBroken as error:
        raise OperatorError(
            f"The audit log in {host} has no valid root of trust: {error}. Restore it from a backup."
        ) from None


def _statement(log: str, owner: str, epoch: str) -> bytes:
    return _STATEMENT.format(log=log, owner=owner, epoch=epoch).encode()


def _document(log: str, owner: str, epoch: str, signature: str) -> bytes:
    return orjson.dumps({"v": 1, "log": log, "opk": owner, "epk": epoch, "sig": signature}) + b"\n"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
