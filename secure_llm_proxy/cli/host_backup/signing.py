"""Who made a set. `age` encrypts to a recipient whom anybody may know, so that a file opens proves nothing about who wrote it:
each manifest is signed by the host's own key (Ed25519), and through the digests in it every file of the set.

What that shows, and what it cannot: docs/decisions/0010.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# In the settings' folder of a host, or in an instance's folder of data. Never part of a set.
SIGNING_KEY = "backup-signing-key"
# How a line in the identity's file names a signer; for age it is a comment.
NAMED = "# backup signer:"

# The key signs nothing else, and what it signs can be taken for nothing else.
_CONTEXT = b"secure-llm-proxy backup set v1\n"
_VERSION = 1
_SIGNER = re.compile(r"[A-Za-z0-9+/]{43}=")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a set's signature shows: `signer` (a public key) has signed exactly this manifest. None: `trouble` says why not."""

    signer: str | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose sets are taken. With `unsigned` everybody's."""

    signers: tuple[str, ...]
    unsigned: bool = False

    def judge(self, origin: Origin) -> tuple[bool, str]:
        """Whether a set of this origin is taken, and why."""
        accepted = "; taken all the same, as you said (--unsigned)" if self.unsigned else ""
        if origin.signer is None:
            return self.unsigned, f"{origin.trouble}{accepted}"
        if origin.signer in self.signers:
            return True, f"by {origin.signer}, whom you trust"
        whom = f"you trust {' and '.join(self.signers)}" if self.signers else "nothing says whom you trust"
        return self.unsigned, f"by {origin.signer}, and {whom}{accepted}"


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature's file over a manifest's bytes."""
    signature = key.sign(_CONTEXT + content)
    told = {"v": _VERSION, "signer": public_text(key), "signature": base64.b64encode(signature).decode()}
    return orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n"


def origin_of(content: bytes, signature: bytes | None) -> Origin:
    """Of a manifest's bytes and the content of its signature's file, if there is one."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  imported where a set is looked at, not at every start
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  as above

    if signature is None:
        return Origin(None, "not signed: it was made by a release that signed none, or by somebody else")
    try:
        told = orjson.loads(signature)
        if told["v"] != _VERSION or not _SIGNER.fullmatch(told["signer"]):
            return Origin(None, "its signature is none of this release's")
        signer = str(told["signer"])
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signer, validate=True))
        key.verify(base64.b64decode(told["signature"], validate=True), _CONTEXT + content)
    except InvalidSignature:
        return Origin(None, "its signature is wrong: the manifest is not the one that was signed")
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Origin(None, "its signature is none of this release's")
    return Origin(signer)


def public_text(key: Ed25519PrivateKey) -> str:
    """The signer as operators write it down: 32 bytes in base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def signing_key_of(content: bytes, where: Path | str) -> Ed25519PrivateKey:
    """Of the key's file: 32 random bytes in base64. Raises `OperatorError` when it is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  as above

    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(content.strip(), validate=True))
    except ValueError:
        raise OperatorError(
            f"{where} is no key that signs backups: 32 random bytes in base64 (openssl rand -base64 32). docs/operations.md tells how "
            "it is replaced."
        ) from None


def drawn_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`, made now if there is none. Raises `OperatorError`."""
    try:
        if not path.exists():
            temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, base64.b64encode(os.urandom(32)) + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        return signing_key_of(path.read_bytes(), path)
    except OSError as error:
        raise OperatorError(f"The key that signs backups, {path}: {error.strerror}.") from None


def signers_in(identity: Path) -> tuple[str, ...]:
    """Who is named in the identity's file. Raises `OperatorError`."""
    try:
        lines = identity.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"The identity {identity} cannot be read: {error}.") from None
    marked = (line.strip() for line in lines)
    return tuple(signer_of(line.removeprefix(NAMED)) for line in marked if line.startswith(NAMED))


def signer_of(text: str) -> str:
    """A signer as somebody has written it down. Raises `OperatorError`."""
    signer = text.strip()
    if not _SIGNER.fullmatch(signer):
        raise OperatorError(
            f"{signer!r} is no signer of backups: scripts/install showed it beside the identity, and `secure-llm-backup --signer` "
            "shows it on the host itself, as 44 characters."
        )
    return signer


def named(signers: Sequence[str]) -> str:
    """As it has to stand in the identity's file."""
    return "\n".join(f"{NAMED} {signer}" for signer in signers)
