r"""Signed notes and checkpoints as text (C2SP signed-note and tlog-checkpoint, c2sp.org, read 2026-11).

    <origin>\n<size>\n<base64 root>\n<time>\n\n— <name> <base64(key id ‖ Ed25519 signature)>\n

The signature covers the text up to and with the newline before the empty line. The fourth line is an extension line: the
time of the checkpoint, so that nothing in the log's line around the note is unsigned. The key's name is the log's origin;
its id is the first four bytes of SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key). Only whole notes of one signature are read: any
other text for the same checkpoint is refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_llm_proxy.audit.format import FormatError, base64_text, strict_base64

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_SIGNATURE_BYTES = 64
_HASH_BYTES = 32
_NOTE = re.compile(
    r"(?P<body>(?P<log>[^\s+]{1,160})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/=]{44})\n(?P<t>\S{1,40})\n)"
    "\n\N{EM DASH} (?P<name>[^\\s+]{1,160}) (?P<signature>[A-Za-z0-9+/=]{92})\n"
)


class NoteBroken(ValueError):
    """A text is no checkpoint of ours, or was not signed by the key that was expected. Says which."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of `log` over its first `size` lines had `root`; `t` is when that was said."""

    log: str
    size: int
    root: bytes
    t: str

    @property
    def body(self) -> str:
        """The text that is signed."""
        return f"{self.log}\n{self.size}\n{base64_text(self.root)}\n{self.t}\n"


def key_id(name: str, public_key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The checkpoint as a signed note, under the log's own name."""
    signature = key.sign(checkpoint.body.encode())
    blob = key_id(checkpoint.log, key.public_key().public_bytes_raw()) + signature
    return f"{checkpoint.body}\n\N{EM DASH} {checkpoint.log} {base64_text(blob)}\n"


def read_checkpoint(note: str) -> Checkpoint:
    """The checkpoint in `note`; its signature is not looked at. Raises `NoteBroken`."""
    return _parts_of(note)[0]


def verify_checkpoint(note: str, public_key: bytes) -> Checkpoint:
    """The checkpoint in `note`, which the holder of `public_key` (32 bytes) has signed. Raises `NoteBroken`."""
    checkpoint, signed_by, signature = _parts_of(note)
    if signed_by != key_id(checkpoint.log, public_key):
        raise NoteBroken("the checkpoint is signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, checkpoint.body.encode())
    except (InvalidSignature, ValueError):
        raise NoteBroken("the checkpoint's signature does not verify") from None
    return checkpoint


def _parts_of(note: str) -> tuple[Checkpoint, bytes, bytes]:
    found = _NOTE.fullmatch(note)
    if found is None or found["name"] != found["log"]:
        raise NoteBroken("this is no signed checkpoint in the one form")
    try:
        root, blob = strict_base64(found["root"]), strict_base64(found["signature"])
    except FormatError:
        raise NoteBroken("this is no signed checkpoint in the one form") from None
    if len(root) != _HASH_BYTES or len(blob) != _KEY_ID_BYTES + _SIGNATURE_BYTES:
        raise NoteBroken("this is no signed checkpoint in the one form")
    checkpoint = Checkpoint(found["log"], int(found["size"]), root, found["t"])
    return checkpoint, blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:]
