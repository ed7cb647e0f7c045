"""One line of the log, and what shows a stranger that it stands there: no log, no secret and no word of ours is needed.

A proof is a JSON file in exactly one form (two blanks, members in the order below, a newline at the end; docs/audit-format.md):

    v           version of proofs, 1
    kind        "secure-llm-proxy audit proof"
    n           index of the line in the log
    line        the line, without its newline
    path        inclusion path from the line to the checkpoint's root (RFC 9162 section 2.1.3), base64, from the leaf upwards
    checkpoint  the signed note (C2SP) over the first lines of the log, `n` among them
    genesis     genesis.json: the owner's signature over the log's name and its first signing key
    rolls       every `kr` line before the checkpoint: each signing key names the next

The owner's public key, known from elsewhere, is all that is believed. Nothing in the file is free: it is written again from its
values and compared, and each value is either hashed into the root or signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_llm_proxy.audit.format import (
    BY_OWNER,
    FEATURES,
    CheckpointLine,
    FormatError,
    KeyRollLine,
    Line,
    NewerVersion,
    RecordLine,
    SegmentLine,
    TreeLine,
    base64_text,
    key_roll_statement,
    leaf,
    parse_line,
    strict_base64,
)
from secure_llm_proxy.audit.genesis import Genesis, GenesisBroken, genesis_in
from secure_llm_proxy.audit.merkle import SIZE_MAX, TreeEdge, inclusion_path_behind, root_from_path
from secure_llm_proxy.audit.notes import Checkpoint, NoteBroken, read_checkpoint, verify_checkpoint
from secure_llm_proxy.audit.reading import StoredLine, Watch, stored_lines, stored_lines_of
from secure_llm_proxy.audit.retirement import RetiredSegment, retired_before
from secure_llm_proxy.audit.segments import GENESIS_NAME, SegmentFile
from secure_llm_proxy.foundation.errors import NotFoundError, OperatorError
from secure_llm_proxy.foundation.regular_files import read_file

VERSION = 1
KIND = "secure-llm-proxy audit proof"
# A key roll each hour for a century, and the biggest line.
PROOF_BYTES_MAX = 512 << 20
_MEMBERS = ("v", "kind", "n", "line", "path", "checkpoint", "genesis", "rolls")
_PATH_MAX = 62
_TOLD_RECORDS = 10


class ProofBroken(Exception):
    """A file proves nothing. The text says why, never what stands in it."""


class ProofNewer(Exception):
    """The proof, or the line in it, was written by a later version of the product; this one cannot judge it."""


@dataclass(frozen=True, slots=True)
class Proven:
    """Line `n` of `log` is `raw`; that was so at `signed_at`, when a key of the owner's chain signed the first `size` lines.

    `restarts` are the lines at which the owner put a new key in force after the one before was lost.
    """

    log: str
    n: int
    raw: bytes
    line: Line
    size: int
    signed_at: str
    owner_public_key: str
    epoch_public_key: str
    key_rolls: int
    restarts: tuple[int, ...]


# --- checking ---------------------------------------------------------------------------------------------------------


def check_proof(document: bytes, owner_public_key: str) -> Proven:
    """What `document` proves to whoever knows that the log's owner has `owner_public_key` (base64 of 32 bytes).

    Raises `ProofBroken` when it proves nothing, `ProofNewer` when only a later version of this program can tell.
    """
    members = _members_of(document)
    n, raw = members.n, members.line
    line = _line_in(raw)
    if line.n != n:
        raise ProofBroken("the line says another index than the proof")
    try:
        genesis = genesis_in(members.genesis, Path())
    except GenesisBroken as error:
        raise ProofBroken(str(error)) from None
    if genesis.owner_public_key != owner_public_key:
        raise ProofBroken("the log is another owner's than the one given")
    try:
        said = read_checkpoint(members.checkpoint)
    except NoteBroken as error:
        raise ProofBroken(str(error)) from None
    if said.log != genesis.log:
        raise ProofBroken("the checkpoint is another log's")
    if not n < said.size < SIZE_MAX:
        raise ProofBroken("the checkpoint does not cover the line")
    key, restarts = _key_in_force(genesis, members.rolls, said.size)
    try:
        checkpoint = verify_checkpoint(members.checkpoint, key)
        root = root_from_path(leaf(raw), n, checkpoint.size, members.path)
    except (NoteBroken, ValueError) as error:
        raise ProofBroken(str(error)) from None
    if root != checkpoint.root:
        raise ProofBroken("the line is not the one that was signed, or stands at another place")
    return Proven(
        log=genesis.log,
        n=n,
        raw=raw,
        line=line,
        size=checkpoint.size,
        signed_at=checkpoint.t,
        owner_public_key=genesis.owner_public_key,
        epoch_public_key=base64_text(key),
        key_rolls=len(members.rolls),
        restarts=tuple(restarts),
    )


@dataclass(frozen=True, slots=True)
class _Proof:
    n: int
    line: bytes
    path: tuple[bytes, ...]
    checkpoint: str
    genesis: bytes
    rolls: tuple[bytes, ...]


def _members_of(document: bytes) -> _Proof:
    if len(document) > PROOF_BYTES_MAX:
        raise ProofBroken("the file is too long to be a proof")
    try:
        members = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise ProofBroken("the file is not JSON") from None
    if not isinstance(members, dict) or members.get("kind") != KIND:
        raise ProofBroken("the file is no proof")
    version = members.get("v")
    if type(version) is int and version > VERSION:
        raise ProofNewer(f"the proof is of version {version}, and this program knows {VERSION}")
    if type(version) is not int or version != VERSION or tuple(members) != _MEMBERS or _document(members) != document:
        raise ProofBroken("the proof is not in the one form of version 1")
    n, line, path = members["n"], members["line"], members["path"]
    checkpoint, genesis, rolls = members["checkpoint"], members["genesis"], members["rolls"]
    if type(n) is not int or not 0 <= n < SIZE_MAX:
        raise ProofBroken("the index is none")
    if not all(isinstance(text, str) for text in (line, checkpoint, genesis)):
        raise ProofBroken("a member has the wrong type")
    if not _are_texts(path) or not _are_texts(rolls) or len(path) > _PATH_MAX:
        raise ProofBroken("a member has the wrong type")
    try:
        hashes = tuple(strict_base64(each) for each in path)
    except FormatError:
        raise ProofBroken("the path is not in the one base64 form") from None
    if any(len(each) != len(leaf(b"")) for each in hashes):
        raise ProofBroken("a hash of the path has not 32 bytes")
    return _Proof(n, line.encode(), hashes, checkpoint, genesis.encode(), tuple(roll.encode() for roll in rolls))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _line_in(raw: bytes) -> Line:
    """The line, of whatever kind. One that a later version made is taken as it is: the tree covers its bytes."""
    try:
        kind = orjson.loads(raw).get("k")
        return parse_line(raw, (*FEATURES, kind) if isinstance(kind, str) else FEATURES)
    except NewerVersion as error:
        raise ProofNewer(str(error)) from None
    except (FormatError, orjson.JSONDecodeError, AttributeError):
        raise ProofBroken("the line is no line of a log") from None


def _key_in_force(genesis: Genesis, rolls: Sequence[bytes], size: int) -> tuple[bytes, list[int]]:
    """The key that signs a checkpoint over `size` lines, and where the owner had to put one in force."""
    owner, key = strict_base64(genesis.owner_public_key), strict_base64(genesis.epoch_public_key)
    before, restarts = 0, []
    for raw in rolls:
        try:
            roll = parse_line(raw, FEATURES)
        except (FormatError, NewerVersion):
            raise ProofBroken("a key roll is none") from None
        if not isinstance(roll, KeyRollLine):
            raise ProofBroken("a key roll is none")
        if not before < roll.n < size:
            raise ProofBroken("the key rolls are not in order, or beyond the checkpoint")
        before = roll.n
        try:
            signer = Ed25519PublicKey.from_public_bytes(owner if roll.by == BY_OWNER else key)
            signer.verify(roll.signature, key_roll_statement(genesis.log, roll))
        except (InvalidSignature, ValueError):
            raise ProofBroken("a key roll is not signed by the key before it, or the owner") from None
        key = roll.epoch_public_key
        if roll.by == BY_OWNER:
            restarts.append(roll.n)
    return key, restarts


def _document(members: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(members, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        raise ProofBroken("the proof is not in the one form of version 1") from None


# --- making -----------------------------------------------------------------------------------------------------------


def prove(
    host: Path, segments: Sequence[SegmentFile], identifier: str, *, lines_least: int = 0, watch: Watch = iter
) -> bytes:
    """A proof of the record `identifier`, to the first checkpoint that covers it and at least `lines_least` lines.

    `host` is where the log's genesis.json lies, `segments` are all that it has.
    One pass over the log without looking into its lines, and from the record's segment to the checkpoint once more; memory
    does not grow with the log but for its key rolls. `watch` is given the lines of the pass. Raises `NotFoundError` when there
    is no such record, `OperatorError` when no checkpoint covers it yet or the log is damaged.
    """
    try:
        content = read_file(host / GENESIS_NAME)
        genesis = genesis_in(content, host)
    except (OSError, GenesisBroken) as error:
        raise OperatorError(f"The log in {host} has no valid root of trust: {error}. Run `audit verify`.") from None
    retired = retired_before(host, segments)
    search = _Search(identifier, lines_least, [roll for entry in retired for roll in entry.rolls])
    search.read(watch(stored_lines(segments)))
    record, checkpoint = search.record, search.checkpoint
    if record is None:
        raise NotFoundError(search.what_is_missing())
    if checkpoint is None:
        raise OperatorError(
            f"No checkpoint covers line {record.n} yet; the running audit writer signs one within seconds. Try again then."
        )
    try:
        path = _path(segments, retired, record, checkpoint.n)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None
    document = _document(
        {
            "v": VERSION,
            "kind": KIND,
            "n": record.n,
            "line": record.raw.decode(),
            "path": [base64_text(each) for each in path],
            "checkpoint": checkpoint.note,
            "genesis": content.decode(),
            "rolls": [roll.decode() for roll in search.rolls],
        }
    )
    try:
        check_proof(document, genesis.owner_public_key)
    except (ProofBroken, ProofNewer) as error:
        raise _damaged(error) from None
    return document


def _damaged(error: Exception) -> OperatorError:
    return OperatorError(f"The log does not bear a proof of that record: {error}. Run `audit verify`.")


class _Search:
    """Finds a record, the checkpoint that covers it, and the key rolls up to that."""

    def __init__(self, identifier: str, lines_least: int, rolls: Sequence[bytes] = ()) -> None:
        """`rolls` are those of segments that are retired."""
        self.record: StoredLine | None = None
        self.checkpoint: CheckpointLine | None = None
        self.rolls = list(rolls)
        self._identifier = identifier
        self._needle = orjson.dumps(identifier)
        self._lines_least = lines_least
        self._of_exchange: list[str] = []

    def read(self, lines: Iterable[StoredLine]) -> None:
        for line in lines:
            raw = line.raw
            if raw.startswith(b'{"k":"kr",'):
                self.rolls.append(raw)
            elif self.record is None:
                if self._needle in raw:
                    self._look_at(line)
            elif raw.startswith(b'{"k":"cp",') and line.n >= self._lines_least:
                self.checkpoint = _checkpoint_in(raw)
                if self.checkpoint is not None:
                    return

    def _look_at(self, line: StoredLine) -> None:
        try:
            record = parse_line(line.raw)
        except (FormatError, NewerVersion):
            return
        if not isinstance(record, RecordLine):
            return
        if record.id == self._identifier:
            self.record = line
        elif record.exchange_id == self._identifier and len(self._of_exchange) < _TOLD_RECORDS:
            self._of_exchange.append(f"{record.id} ({record.type})")

    def what_is_missing(self) -> str:
        if self._of_exchange:
            return f"That is an exchange, and a proof is of one record: {', '.join(self._of_exchange)}."
        return "No record has that id."


def _checkpoint_in(raw: bytes) -> CheckpointLine | None:
    try:
        line = parse_line(raw, FEATURES)
    except (FormatError, NewerVersion):
        return None
    return line if isinstance(line, CheckpointLine) else None


def _path(
    segments: Sequence[SegmentFile], retired: Sequence[RetiredSegment], record: StoredLine, size: int
) -> list[bytes]:
    place = next((at for at, segment in enumerate(segments) if segment.number == record.file.number), len(segments))
    edge = _edge_before(segments, place)
    if edge is None:
        # A segment of the first release, which does not say where the tree stood: from the first that is there.
        place, edge = 0, retired[-1].tree() if retired else TreeEdge()
    leaves = (leaf(line.raw) for line in _from_segment(segments, place, edge.size))
    return inclusion_path_behind(edge, leaves, record.n, size)


def _edge_before(segments: Sequence[SegmentFile], place: int) -> TreeEdge | None:
    following = segments[place + 1] if place + 1 < len(segments) else None
    lines = stored_lines_of(segments[place], following)
    first, second = next(lines, None), next(lines, None)
    if first is None or second is None:
        return None
    opening, tree = parse_line(first.raw), parse_line(second.raw, FEATURES)
    if not isinstance(opening, SegmentLine) or not isinstance(tree, TreeLine):
        return None
    return TreeEdge(opening.n, tree.edge)


def _from_segment(segments: Sequence[SegmentFile], place: int, n: int) -> Iterator[StoredLine]:
    for at in range(place, len(segments)):
        following = segments[at + 1] if at + 1 < len(segments) else None
        for line in stored_lines_of(segments[at], following, n):
            n = line.n + 1
            yield line


# --- anchors ----------------------------------------------------------------------------------------------------------


def checkpoints(
    host: Path, segments: Sequence[SegmentFile], *, watch: Watch = iter
) -> Iterator[tuple[Checkpoint, str]]:
    """The checkpoints of the log with their notes, oldest first, as they stand there: of each retired segment the last, of
    `segments`, which are those that are there, all.
    """
    for entry in retired_before(host, segments):
        closing = entry.checkpoint_line()
        if closing is not None:
            yield from _said_in(closing)
    for line in watch(stored_lines(segments)):
        if line.raw.startswith(b'{"k":"cp",'):
            found = _checkpoint_in(line.raw)
            if found is not None:
                yield from _said_in(found)


def _said_in(line: CheckpointLine) -> Iterator[tuple[Checkpoint, str]]:
    # A note that is none is for the verifier to tell.
    with contextlib.suppress(NoteBroken):
        yield read_checkpoint(line.note), line.note
