"""Format version 1 of the audit log: how a line is built, read and hashed. docs/audit-format.md is its specification.

There is one parser, for whoever verifies and whoever looks: what one of them accepts, the other has accepted too
(systemd's sealed journal once showed other entries than it verified, CVE-2023-31438).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import orjson

from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType

VERSION = 1
LINE_BYTES_MAX = 1 << 20
METADATA_BYTES_MAX = 16 << 10
# Bigger bodies are split into `llm.part` records by the journal; with base64 and metadata this stays below a line.
BODY_BYTES_MAX = 512 << 10

ALGORITHMS_SEALED = "XAES-256-GCM/SHA-256/Ed25519"
ALGORITHMS_CLEAR = "none/SHA-256/Ed25519"

NO_HASH = bytes(32)

# Line kinds beside `seg`, `key`, `rec` and `end`, as a segment of today announces them in `ft`.
FEATURES = ("cp", "kr", "tr")
BY_EPOCH, BY_OWNER = "epoch", "owner"

# Names that the format itself uses or keeps for its next versions; a worker may not choose them.
RESERVED_NAMES = frozenset(
    {"k", "n", "t", "m", "w", "kid", "nc", "p", "ct", "pt", "z", "v", "seg", "log", "prev", "root", "note", "sig"}
)
_FIXED_NAMES = ("ty", "ev", "id", "rid")
_FIRST_NAMES = frozenset({_FIXED_NAMES, ("ty", "id", "rid")})
_CLEAR_TYPES = frozenset({str, int, bool, type(None)})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TYPE = re.compile(r"[a-z]{1,16}\.[a-z_]{1,24}")
_EVENT = re.compile(r"[A-Z][A-Z_]{0,63}")
_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_HEX_16 = re.compile(r"[0-9a-f]{16}")
_HEX_32 = re.compile(r"[0-9a-f]{32}")
_WORKER = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,18})")
_SUBJECT = re.compile(r"s_[0-9a-f]{16}")
_MEMBERS_MAX = 64
_COUNTER_MAX = 1 << 63


class FormatError(ValueError):
    """These bytes are no line of format version 1. The text says what is wrong, never what stands in the line."""


class RefusedMetadata(ValueError):
    """A record's metadata may not enter the log."""


def leaf(line: bytes) -> bytes:
    """Hash of one line without its newline (RFC 9162 leaf hash)."""
    return hashlib.sha256(b"\x00" + line).digest()


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def strict_base64(text: str) -> bytes:
    """Decode the one base64 form of a value; a second text for the same bytes is refused (stray trailing bits)."""
    try:
        value = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise FormatError("a value is not base64") from None
    # The strict decoder leaves only the stray bits of the last four characters open; to encode all again costs 3 µs of 2 kB.
    size = len(value)
    if len(text) != (size + 2) // 3 * 4 or (
        size and binascii.b2a_base64(value[-(size % 3 or 3) :], newline=False) != text[-4:].encode()
    ):
        raise FormatError("a value is not in the one base64 form")
    return value


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Torn:
    """A tail that is not part of the log. `synced` False: left by a failed disk, its content proves nothing."""

    size: int
    sha256: bytes
    synced: bool


@dataclass(frozen=True, slots=True)
class Previous:
    """Where the segment before ended: its number, the index and hash of its last valid line, and what is ignored."""

    number: int
    n: int
    h: bytes
    torn: Torn | None = None


@dataclass(frozen=True, slots=True)
class CarriedState:
    """What start-up must know without reading older segments: open exchanges and each worker's last counter."""

    open: dict[str, tuple[str, str]]
    seen: dict[str, int]


@dataclass(frozen=True, slots=True)
class SegmentLine:
    log: str
    number: int
    sid: str
    n: int
    t: str
    previous: Previous | None
    features: tuple[str, ...]
    algorithms: str
    epoch_public_key: bytes
    kek_id: str | None
    carry: CarriedState


@dataclass(frozen=True, slots=True)
class KeyLine:
    """Announces a data key. `wrapped` is None for keys that live in a key store."""

    n: int
    t: str
    kid: str
    commitment: bytes
    wrapped: bytes | None
    p: bytes


@dataclass(frozen=True, slots=True)
class TreeLine:
    """Right edge of the tree over all lines before its segment, the biggest subtree first (`merkle.TreeEdge`)."""

    n: int
    t: str
    edge: tuple[bytes, ...]
    p: bytes


@dataclass(frozen=True, slots=True)
class CheckpointLine:
    """The tree over lines 0 … n-1 had `root`; `note` says and signs it (`notes.Checkpoint`)."""

    n: int
    t: str
    root: bytes
    note: str
    p: bytes


@dataclass(frozen=True, slots=True)
class KeyRollLine:
    """From here on `epoch_public_key` signs. `by`: the key before it, or the owner after that one was lost."""

    n: int
    t: str
    epoch_public_key: bytes
    by: str
    signature: bytes
    p: bytes


@dataclass(frozen=True, slots=True)
class RecordLine:
    """One event. Sealed: `kid`, `nonce` and `sealed` are set; otherwise `plain` is. `header` is what the seal binds."""

    n: int
    t: str
    m: int
    worker: str
    counter: int
    type: str
    event: str | None
    id: str
    exchange_id: str
    clear: dict[str, ClearValue]
    p: bytes
    header: bytes
    kid: str | None
    nonce: bytes | None
    sealed: bytes | None
    plain: bytes | None


class RecordGlance(NamedTuple):
    """What a record means for what may follow it; `start` is the `sid` of an `llm.end`."""

    n: int
    worker: str
    counter: int
    type: str
    id: str
    exchange_id: str
    start: ClearValue


@dataclass(frozen=True, slots=True)
class EndLine:
    n: int
    t: str
    reason: str
    lines: int
    p: bytes


@dataclass(frozen=True, slots=True)
class NewerLine:
    """A line of a kind that its segment announced as a feature which this version does not know."""

    n: int
    kind: str
    p: bytes


Line: TypeAlias = SegmentLine | TreeLine | KeyLine | RecordLine | CheckpointLine | KeyRollLine | EndLine | NewerLine


class NewerVersion(Exception):
    """The log was written by a later version of the product; this one cannot judge it."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version} is newer than this program, which knows {VERSION}")


# --- metadata ---------------------------------------------------------------------------------------------------------


def check_metadata(metadata: dict[str, Any]) -> dict[str, ClearValue]:
    """Return `metadata` with its fixed names first, or raise `RefusedMetadata`.

    Both ends call it: the journal, so that a mistake is seen where it is made, and the writer, which does not trust
    the worker with the form of a line.
    """
    names = tuple(metadata)
    if not _may_stand_together(names):
        raise RefusedMetadata(_wrong_with(names))
    kind, identifier = metadata["ty"], metadata["id"]
    if not (isinstance(kind, str) and _TYPE.fullmatch(kind)):
        raise RefusedMetadata("`ty` is malformed")
    if not _is_identifier(identifier):
        raise RefusedMetadata("`id` is malformed")
    if not _is_identifier(metadata["rid"]):
        raise RefusedMetadata("`rid` is malformed")
    if "ev" in metadata and not (isinstance(metadata["ev"], str) and _EVENT.fullmatch(metadata["ev"])):
        raise RefusedMetadata("`ev` is malformed")
    if not _CLEAR_TYPES.issuperset(map(type, metadata.values())):
        for name, value in metadata.items():
            # A subclass of one of them is well, too.
            if not (value is None or isinstance(value, (str, int))):
                raise RefusedMetadata(f"`{name}` is neither text, integer, boolean nor null")
    if kind == AuditType.LLM_END and not _is_identifier(metadata.get("sid")):
        raise RefusedMetadata("`llm.end` does not name its start in `sid`")
    if names[: 4 if "ev" in metadata else 3] in _FIRST_NAMES:
        return metadata
    first = [name for name in _FIXED_NAMES if name in metadata]
    return {name: metadata[name] for name in dict.fromkeys([*first, *names])}


def subject_in(clear: dict[str, ClearValue]) -> str | None:
    """The person by whose key a record with this metadata is sealed; None without a well-formed `sub`."""
    subject = clear.get("sub")
    return subject if is_subject(subject) else None


def is_subject(value: object) -> TypeGuard[str]:
    """Whether it is a pseudonym: `s_` and 16 hexadecimal digits."""
    return type(value) is str and _SUBJECT.fullmatch(value) is not None


@lru_cache(maxsize=1024)
def _may_stand_together(names: tuple[str, ...]) -> bool:
    """Whether these are the names of a record. The same few sets of names come again and again."""
    return _wrong_with(names) == ""


def _wrong_with(names: tuple[str, ...]) -> str:
    if len(names) > _MEMBERS_MAX:
        return f"more than {_MEMBERS_MAX} members"
    for name in ("ty", "id", "rid"):
        if name not in names:
            return f"`{name}` is missing"
    if not all(_is_free_name(name) for name in names if name not in _FIXED_NAMES):
        return "a member's name is reserved or malformed"
    return ""


def _is_free_name(name: str) -> bool:
    return name not in RESERVED_NAMES and _NAME.fullmatch(name) is not None


def _is_identifier(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


# --- building ---------------------------------------------------------------------------------------------------------


def segment_line(line: SegmentLine) -> bytes:
    previous = line.previous
    return orjson.dumps(
        {
            "k": "seg",
            "v": VERSION,
            "ft": list(line.features),
            "log": line.log,
            "seg": line.number,
            "sid": line.sid,
            "n": line.n,
            "t": line.t,
            "prev": previous
            and {
                "seg": previous.number,
                "n": previous.n,
                "h": base64_text(previous.h),
                "torn": previous.torn
                and {
                    "bytes": previous.torn.size,
                    "sha256": base64_text(previous.torn.sha256),
                    "synced": previous.torn.synced,
                },
            },
            "alg": line.algorithms,
            "epk": base64_text(line.epoch_public_key),
            "kek": line.kek_id,
            "carry": {"open": {key: list(value) for key, value in line.carry.open.items()}, "seen": line.carry.seen},
        }
    )


def key_line(line: KeyLine) -> bytes:
    members: dict[str, object] = {
        "k": "key",
        "n": line.n,
        "t": line.t,
        "kid": line.kid,
        "kc": base64_text(line.commitment),
    }
    if line.wrapped is not None:
        members["wk"] = base64_text(line.wrapped)
    members["p"] = base64_text(line.p)
    return orjson.dumps(members)


def tree_line(line: TreeLine) -> bytes:
    edge = [base64_text(each) for each in line.edge]
    return orjson.dumps({"k": "tr", "n": line.n, "t": line.t, "edge": edge, "p": base64_text(line.p)})


def checkpoint_line(line: CheckpointLine) -> bytes:
    return orjson.dumps(
        {
            "k": "cp",
            "n": line.n,
            "t": line.t,
            "root": base64_text(line.root),
            "note": line.note,
            "p": base64_text(line.p),
        }
    )


def key_roll_line(line: KeyRollLine) -> bytes:
    return orjson.dumps(
        {
            "k": "kr",
            "n": line.n,
            "t": line.t,
            "epk": base64_text(line.epoch_public_key),
            "by": line.by,
            "sig": base64_text(line.signature),
            "p": base64_text(line.p),
        }
    )


def key_roll_statement(log: str, line: KeyRollLine) -> bytes:
    """What the signature of a key roll covers: all of its line, and so its place and everything before it."""
    key, p = base64_text(line.epoch_public_key), base64_text(line.p)
    return f"secure-llm-proxy audit key roll v1\n{log}\n{line.n}\n{p}\n{key}\n{line.by}\n{line.t}\n".encode()


def end_line(line: EndLine) -> bytes:
    return orjson.dumps(
        {"k": "end", "n": line.n, "t": line.t, "reason": line.reason, "lines": line.lines, "p": base64_text(line.p)}
    )


def record_header(
    n: int,
    t: bytes,
    m: int,
    worker: bytes,
    counter: int,
    metadata: bytes,
    p: bytes,
    kid: bytes | None,
    nonce: bytes | None,
) -> bytes:
    """The bytes of a `rec` line up to and including `p`. `metadata` is a checked JSON object, as bytes."""
    opening = b'{"k":"rec","n":%d,"t":"%b","m":%d,"w":"%b.%d",%b' % (n, t, m, worker, counter, metadata[1:-1])
    chained = b',"p":"%b"' % _b64(p)
    if kid is None or nonce is None:
        return opening + chained
    return b'%b,"kid":"%b","nc":"%b"%b' % (opening, kid, _b64(nonce), chained)


def sealed_record(header: bytes, sealed: bytes) -> bytes:
    return b'%b,"ct":"%b"}' % (header, _b64(sealed))


def clear_record(header: bytes, plain: bytes) -> bytes:
    return b'%b,"pt":"%b"}' % (header, _b64(plain))


def _b64(value: bytes) -> bytes:
    return binascii.b2a_base64(value, newline=False)


# --- parsing ----------------------------------------------------------------------------------------------------------

_SEGMENT_MEMBERS = ("k", "v", "ft", "log", "seg", "sid", "n", "t", "prev", "alg", "epk", "kek", "carry")
_KEY_MEMBERS = (("k", "n", "t", "kid", "kc", "wk", "p"), ("k", "n", "t", "kid", "kc", "p"))
_END_MEMBERS = ("k", "n", "t", "reason", "lines", "p")
_TREE_MEMBERS = ("k", "n", "t", "edge", "p")
_CHECKPOINT_MEMBERS = ("k", "n", "t", "root", "note", "p")
_KEY_ROLL_MEMBERS = ("k", "n", "t", "epk", "by", "sig", "p")
_SIGNATURE_BYTES = 64
_RECORD_OPENING = ("k", "n", "t", "m", "w", "ty")


def parse_line(raw: bytes, features: tuple[str, ...] = ()) -> Line:
    """Read one line without its newline, or raise `FormatError`; `NewerVersion` for a `seg` line of a later version.

    `features` are those of the segment that the line stands in.
    """
    if len(raw) > LINE_BYTES_MAX:
        raise FormatError("the line is longer than 1 MiB")
    try:
        members = orjson.loads(raw)
        written = orjson.dumps(members)
    except orjson.JSONDecodeError:
        raise FormatError("the line is not JSON") from None
    except orjson.JSONEncodeError:
        # It is read to a depth of 1,024 and written to 254.
        raise FormatError("the line is nested too deeply") from None
    # One text for one value: this refuses duplicate names, blanks, other escapes, other forms of numbers.
    if not isinstance(members, dict) or written != raw:
        raise FormatError("the line is not a JSON object in compact form without duplicate names")
    kind = members.get("k")
    try:
        if kind == "rec":
            return _record(members, raw)
        if kind == "seg":
            return _segment(members)
        if kind == "key":
            return _key(members)
        if kind == "end":
            return _end(members)
        if kind in _FEATURE_PARSERS and kind in features:
            return _FEATURE_PARSERS[kind](members)
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError):
        raise FormatError("a member is missing or has the wrong type") from None
    if isinstance(kind, str) and kind in features:
        return NewerLine(n=_integer(members.get("n")), kind=kind, p=_hash(members.get("p")))
    raise FormatError("the line is of no known kind")


def glance_at_record(raw: bytes) -> RecordGlance | None:
    """A record line without a look at its content, its order or its hash: for lines that were found good before. None for any
    other line, and where `parse_line` should judge.
    """
    if not raw.startswith(b'{"k":"rec",'):
        return None
    try:
        members = orjson.loads(raw)
        n, kind, identifier, exchange = members["n"], members["ty"], members["id"], members["rid"]
        worker = _WORKER.fullmatch(members["w"])
        start = members.get("sid")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if worker is None or not _is_identifier(identifier) or not _is_identifier(exchange):
        return None
    counter = int(worker[2])
    if counter >= _COUNTER_MAX or type(kind) is not str or type(n) is not int or type(start) not in _CLEAR_TYPES:
        return None
    return RecordGlance(n, worker[1], counter, kind, identifier, exchange, start)


def _record(members: dict[str, Any], raw: bytes) -> RecordLine:
    names = tuple(members)
    if names[:6] != _RECORD_OPENING:
        raise FormatError("the members of the record are not in order")
    if names[-4:] == ("kid", "nc", "p", "ct"):
        sealed_form, fixed = True, 4
    elif names[-2:] == ("p", "pt"):
        sealed_form, fixed = False, 2
    else:
        raise FormatError("the members of the record are not in order")
    metadata = {name: members[name] for name in names[5:-fixed]}
    try:
        ordered = check_metadata(metadata)
    except RefusedMetadata as error:
        raise FormatError(str(error)) from None
    if tuple(ordered) != tuple(metadata):
        raise FormatError("the members of the record are not in order")
    worker = _match(_WORKER, members["w"])
    counter = int(worker[2])
    if counter >= _COUNTER_MAX:
        raise FormatError("the worker's counter is out of range")
    body = members["ct" if sealed_form else "pt"]
    nonce = strict_base64(members["nc"]) if sealed_form else None
    if nonce is not None and len(nonce) != 24:  # noqa: PLR2004 - XAES-256-GCM
        raise FormatError("the nonce has not 24 bytes")
    content = strict_base64(body)
    return RecordLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        m=_integer(members["m"]),
        worker=worker[1],
        counter=counter,
        type=members["ty"],
        event=members.get("ev"),
        id=members["id"],
        exchange_id=members["rid"],
        clear={name: value for name, value in ordered.items() if name not in _FIXED_NAMES},
        p=_hash(members["p"]),
        # `,"ct":"` and `"}` around the last value: nine bytes
        header=raw[: -len(body) - 9],
        kid=_match(_IDENTIFIER_DOTTED, members["kid"])[0] if sealed_form else None,
        nonce=nonce,
        sealed=content if sealed_form else None,
        plain=None if sealed_form else content,
    )


_IDENTIFIER_DOTTED = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_LOG = re.compile(r"slp\.[0-9A-Za-z_.-]{1,64}/[0-9A-Za-z_.-]{1,64}")
_FEATURE = re.compile(r"[a-z][a-z0-9]{0,7}")


def _segment(members: dict[str, Any]) -> SegmentLine:
    version = _integer(members.get("v"))
    if version > VERSION:
        raise NewerVersion(version)
    if version != VERSION or tuple(members) != _SEGMENT_MEMBERS:
        raise FormatError("the members of the segment line are not those of version 1")
    features = tuple(_match(_FEATURE, item)[0] for item in members["ft"])
    if list(features) != sorted(set(features)):
        raise FormatError("the features are not sorted")
    algorithms = members["alg"]
    kek = members["kek"]
    if algorithms not in {ALGORITHMS_SEALED, ALGORITHMS_CLEAR}:
        raise FormatError("the algorithms are unknown")
    if (kek is None) != (algorithms == ALGORITHMS_CLEAR):
        raise FormatError("the key encryption key's id does not fit the algorithms")
    return SegmentLine(
        log=_match(_LOG, members["log"])[0],
        number=_integer(members["seg"]),
        sid=_match(_HEX_32, members["sid"])[0],
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        previous=None if members["prev"] is None else _previous(members["prev"]),
        features=features,
        algorithms=algorithms,
        epoch_public_key=_hash(members["epk"]),
        kek_id=None if kek is None else _match(_HEX_16, kek)[0],
        carry=_carry(members["carry"]),
    )


def _previous(members: dict[str, Any]) -> Previous:
    if tuple(members) != ("seg", "n", "h", "torn"):
        raise FormatError("the members of `prev` are not those of version 1")
    torn = members["torn"]
    if torn is not None and (tuple(torn) != ("bytes", "sha256", "synced") or not isinstance(torn["synced"], bool)):
        raise FormatError("the members of `torn` are not those of version 1")
    return Previous(
        number=_integer(members["seg"]),
        n=_integer(members["n"]),
        h=_hash(members["h"]),
        torn=torn and Torn(size=_integer(torn["bytes"]), sha256=_hash(torn["sha256"]), synced=torn["synced"]),
    )


def _carry(members: dict[str, Any]) -> CarriedState:
    if tuple(members) != ("open", "seen"):
        raise FormatError("the members of `carry` are not those of version 1")
    opened: dict[str, tuple[str, str]] = {}
    for identifier, value in members["open"].items():
        exchange, worker = value
        _match(_IDENTIFIER, identifier)
        opened[identifier] = (_match(_IDENTIFIER, exchange)[0], _match(_HEX_32, worker)[0])
    seen = {_match(_HEX_32, worker)[0]: _integer(counter) for worker, counter in members["seen"].items()}
    return CarriedState(open=opened, seen=seen)


def _key(members: dict[str, Any]) -> KeyLine:
    if tuple(members) not in _KEY_MEMBERS:
        raise FormatError("the members of the key line are not those of version 1")
    return KeyLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        kid=_match(_IDENTIFIER_DOTTED, members["kid"])[0],
        commitment=_hash(members["kc"]),
        wrapped=strict_base64(members["wk"]) if "wk" in members else None,
        p=_hash(members["p"]),
    )


def _end(members: dict[str, Any]) -> EndLine:
    if tuple(members) != _END_MEMBERS or members["reason"] not in {"rotate", "stop", "fsync-error"}:
        raise FormatError("the members of the end line are not those of version 1")
    return EndLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        reason=members["reason"],
        lines=_integer(members["lines"]),
        p=_hash(members["p"]),
    )


def _tree(members: dict[str, Any]) -> TreeLine:
    if tuple(members) != _TREE_MEMBERS or not isinstance(members["edge"], list):
        raise FormatError("the members of the tree line are not those of version 1")
    return TreeLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        edge=tuple(_hash(each) for each in members["edge"]),
        p=_hash(members["p"]),
    )


def _checkpoint(members: dict[str, Any]) -> CheckpointLine:
    if tuple(members) != _CHECKPOINT_MEMBERS or not isinstance(members["note"], str):
        raise FormatError("the members of the checkpoint are not those of version 1")
    return CheckpointLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        root=_hash(members["root"]),
        note=members["note"],
        p=_hash(members["p"]),
    )


def _key_roll(members: dict[str, Any]) -> KeyRollLine:
    if tuple(members) != _KEY_ROLL_MEMBERS or members["by"] not in {BY_EPOCH, BY_OWNER}:
        raise FormatError("the members of the key roll are not those of version 1")
    signature = strict_base64(members["sig"])
    if len(signature) != _SIGNATURE_BYTES:
        raise FormatError("the signature of the key roll has not 64 bytes")
    return KeyRollLine(
        n=_integer(members["n"]),
        t=_match(_TIME, members["t"])[0],
        epoch_public_key=_hash(members["epk"]),
        by=members["by"],
        signature=signature,
        p=_hash(members["p"]),
    )


_FEATURE_PARSERS: dict[str, Callable[[dict[str, Any]], Line]] = {
    "tr": _tree,
    "cp": _checkpoint,
    "kr": _key_roll,
}


def _integer(value: object) -> int:
    if type(value) is not int or value < 0:
        raise FormatError("a number is not a whole number")
    return value


def _match(pattern: re.Pattern[str], value: object) -> re.Match[str]:
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise FormatError("a value is malformed")
    return match


def _hash(value: object) -> bytes:
    if not isinstance(value, str):
        raise FormatError("a hash is not text")
    digest = strict_base64(value)
    if len(digest) != 32:  # noqa: PLR2004 - SHA-256, Ed25519 public key, key commitment
        raise FormatError("a hash or key has not 32 bytes")
    return digest
