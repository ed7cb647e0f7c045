"""What the lines of a log, read in order, make of its tree, its signing keys, and the checkpoints that others keep.

For the verifier. Fed with every line, it answers with sentences about what does not agree; it never stops, and after a
first disagreement about the tree it is silent until a segment says anew where the tree stood, since one altered line would
else be told at every checkpoint behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_llm_proxy.audit.format import (
    BY_OWNER,
    CheckpointLine,
    KeyRollLine,
    SegmentLine,
    TreeLine,
    key_roll_statement,
    strict_base64,
)
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.notes import Checkpoint, NoteBroken, read_checkpoint, verify_checkpoint
from secure_llm_proxy.foundation.errors import OperatorError

_STANDARD_INPUT = Path("-")
_ANCHORS_BYTES_MAX = 1 << 30


class SignedTree:
    """`genesis` None: nothing says whose keys these are, so signatures are not looked at. `anchors` are notes kept elsewhere."""

    def __init__(self, genesis: Genesis | None, anchors: Iterable[str]) -> None:
        self.tree = TreeEdge()
        self.epoch_public_key: bytes | None = strict_base64(genesis.epoch_public_key) if genesis else None
        self.checkpoints = self.rolls = self.anchors_met = self.anchors_passed = 0
        self._genesis = genesis
        self._before = TreeEdge()
        self._doubtful = False
        read = [(read_checkpoint(note), note) for note in anchors]
        self.foreign_anchors = sum(1 for checkpoint, _ in read if genesis and checkpoint.log != genesis.log)
        self._anchors = sorted(
            ((each, note) for each, note in read if not genesis or each.log == genesis.log),
            key=lambda pair: pair[0].size,
            reverse=True,
        )
        self._next_anchor = self._anchors[-1][0].size if self._anchors else -1

    # --- lines, before they are taken into the tree -------------------------------------------------------------------

    def at_segment(self, line: SegmentLine) -> Iterator[str]:
        self._before = self.tree.copy()
        if self.epoch_public_key is not None and line.epoch_public_key != self.epoch_public_key:
            yield "its epoch key is not the one that the lines before it leave in force"

    def at_tree(self, line: TreeLine, segment: SegmentLine | None, number: int) -> Iterator[str]:
        """`number` is the line's within its segment."""
        if segment is None or number != 2:  # noqa: PLR2004  behind the segment's first line
            yield "a tree line stands elsewhere than behind the first line of a segment"
            return
        agrees = (self._before.size, self._before.hashes) == (segment.n, line.edge)
        if not agrees and not self._doubtful:
            yield "the tree that it carries is not that of the lines before it"
        try:
            told = TreeEdge(segment.n, line.edge)
        except ValueError:
            yield "the tree that it carries fits no number of lines"
            return
        if not agrees:
            # What was wrong is told; what follows is judged from here.
            self.tree = told
            self.tree.append(line.p)
        self._doubtful = False

    def at_checkpoint(self, line: CheckpointLine) -> Iterator[str]:
        self.checkpoints += 1
        if self._genesis is None or self.epoch_public_key is None:
            return
        try:
            checkpoint = verify_checkpoint(line.note, self.epoch_public_key)
        except NoteBroken as error:
            yield f"{error}"
            return
        if checkpoint != Checkpoint(self._genesis.log, line.n, line.root, line.t):
            yield "the checkpoint's note says something else than its line"
        elif not self._doubtful and (line.n, line.root) != (self.tree.size, self.tree.root()):
            self._doubtful = True
            yield "the lines before it are not those that were signed: their tree has another root"

    def at_roll(self, line: KeyRollLine) -> Iterator[str]:
        self.rolls += 1
        if self._genesis is None or self.epoch_public_key is None:
            return
        owner = strict_base64(self._genesis.owner_public_key)
        signer = owner if line.by == BY_OWNER else self.epoch_public_key
        try:
            statement = key_roll_statement(self._genesis.log, line)
            Ed25519PublicKey.from_public_bytes(signer).verify(line.signature, statement)
        except (InvalidSignature, ValueError):
            yield "the new epoch key is not signed by the " + ("owner" if line.by == BY_OWNER else "one before it")
            return
        self.epoch_public_key = line.epoch_public_key

    # --- every line, and the end --------------------------------------------------------------------------------------

    def take(self, leaf: bytes) -> Iterable[str]:
        """Take a line into the tree, by its hash, and hold the tree to the anchors of its new size."""
        self.tree.append(leaf)
        if self.tree.size != self._next_anchor:
            return ()
        return self._meet_anchors()

    def _meet_anchors(self) -> Iterator[str]:
        root = self.tree.root()
        while self._anchors and self._anchors[-1][0].size == self.tree.size:
            checkpoint, note = self._anchors.pop()
            self._next_anchor = self._anchors[-1][0].size if self._anchors else -1
            if self.epoch_public_key is None:
                continue
            try:
                verify_checkpoint(note, self.epoch_public_key)
            except NoteBroken as error:
                yield f"an anchor of {checkpoint.size} lines, of {checkpoint.t}, is not of this log: {error}"
                continue
            self.anchors_met += 1
            if checkpoint.root != root and not self._doubtful:
                yield f"the log's first {checkpoint.size} lines are not those of the anchor of {checkpoint.t}"

    def pass_over(self, size: int) -> Iterator[str]:
        """Lines up to `size` are not there to be taken one by one; the tree stands where a checkpoint of theirs, or their end,
        has it. Anchors of exactly this size are held to it; those before it can be held to nothing but their signature.
        """
        while self._anchors and self._anchors[-1][0].size <= size:
            if self._anchors[-1][0].size == self.tree.size:
                yield from self._meet_anchors()
            else:
                self.anchors_passed += 1
                self._anchors.pop()
        self._next_anchor = self._anchors[-1][0].size if self._anchors else -1

    def missing(self) -> Checkpoint | None:
        """The furthest anchor that this log does not reach: its tail is missing."""
        ahead = [checkpoint for checkpoint, _ in self._anchors if checkpoint.size > self.tree.size]
        return max(ahead, key=lambda each: each.size, default=None)


def read_anchors(path: Path) -> list[str]:
    """The checkpoint notes in a file (- is standard input): JSON lines with a `note` (as `audit anchors` prints them, or lines of
    the log), or notes as they are. Raises `OperatorError` when something else stands in it.
    """
    try:
        with nullcontext(sys.stdin.buffer) if path == _STANDARD_INPUT else path.open("rb") as stream:
            content = stream.read(_ANCHORS_BYTES_MAX + 1)
        if len(content) > _ANCHORS_BYTES_MAX:
            raise OperatorError(f"{path} is too long to be a list of anchors.")
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"The anchors in {path} cannot be read: {error}.") from None
    notes: list[str] = []
    lines = text.split("\n")
    lines.reverse()
    number = 0
    while lines:
        number += 1
        first = lines.pop()
        if not first.strip():
            continue
        note = _note_in(first, path, number) if first.startswith("{") else _bare_note(first, lines)
        try:
            read_checkpoint(note)
        except NoteBroken as error:
            raise OperatorError(f"Anchor {number} in {path} is none: {error}.") from None
        notes.append(note)
    return notes


def _bare_note(first: str, following: list[str]) -> str:
    """A note from its first line on; takes its other lines, up to the signature behind the empty one, off the end of `following`."""
    note = [first]
    while following and note[-1]:
        note.append(following.pop())
    return "\n".join([*note, following.pop() if following else "", ""])


def _note_in(line: str, path: Path, number: int) -> str:
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError:
        members = None
    note = members.get("note") if isinstance(members, dict) else None
    if not isinstance(note, str):
        raise OperatorError(f"Anchor {number} in {path} is none: it is no JSON object with a `note`.")
    return note
