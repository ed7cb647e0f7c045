"""The tree over all lines of a log: RFC 9162 (section 2.1), kept as the O(log n) roots of its perfect subtrees.

Leaves are `format.leaf` of each line, in order of `n`. Nothing here reads files or keeps more than about 40 hashes, so a tree
over any number of lines costs one pass and no memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256(b"").digest()
# A tree of 2^62 lines is no log; whoever says so in a file is not believed.
SIZE_MAX = 1 << 62


def node(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node (RFC 9162 §2.1.1)."""
    return _sha256(b"\x01" + left + right).digest()


class TreeEdge:
    """The right edge of a tree: roots of its perfect subtrees, the biggest (leftmost) first; `size` leaves are below them."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Raises `ValueError` when a tree of `size` leaves has not that many perfect subtrees."""
        if not 0 <= size < SIZE_MAX or len(hashes) != size.bit_count():
            raise ValueError("the edge has not as many hashes as its size asks for")
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf: as many merges as `size` has trailing one bits, one on average."""
        hashes, size = self._hashes, self.size
        self.size = size + 1
        while size & 1:
            leaf = _sha256(b"\x01" + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)

    def root(self) -> bytes:
        """Root of the tree as it is now; of none, the hash of nothing."""
        hashes = self._hashes
        if not hashes:
            return EMPTY_ROOT
        root = hashes[-1]
        for left in reversed(hashes[:-1]):
            root = node(left, root)
        return root

    def copy(self) -> TreeEdge:
        return TreeEdge(self.size, self._hashes)


def root_of(leaves: Iterable[bytes]) -> bytes:
    edge = TreeEdge()
    for leaf in leaves:
        edge.append(leaf)
    return edge.root()


def _split(size: int) -> int:
    """The largest power of two below `size` (RFC 9162 §2.1.1)."""
    return 1 << (size - 1).bit_length() - 1


def sibling_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """The subtrees [first, end) whose roots are the inclusion path of leaf `index` in a tree of `size`, from the leaf upwards.

    Raises `ValueError` when there is no such leaf. Whoever holds the leaves computes each root in one pass over its range.
    """
    if not 0 <= index < size < SIZE_MAX:
        raise ValueError("there is no such leaf in the tree")
    ranges, first, end = [], 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def inclusion_path(leaves: Iterable[bytes], index: int, size: int) -> list[bytes]:
    """Inclusion path of leaf `index` in the tree over the first `size` of `leaves` (RFC 9162 §2.1.3). One pass, O(log n) memory.

    Raises `ValueError` when there is no such leaf, or `leaves` end before `size`.
    """
    ranges = sibling_ranges(index, size)
    in_order = sorted(range(len(ranges)), key=lambda place: ranges[place])
    roots: list[bytes] = [b""] * len(ranges)
    rest: Iterator[int] = iter(in_order)
    current = next(rest, None)
    edge = TreeEdge()
    seen = 0
    for n, leaf in enumerate(leaves):
        if n == size:
            break
        seen += 1
        while current is not None and n >= ranges[current][1]:
            current = next(rest, None)
        if current is not None and ranges[current][0] <= n:
            edge.append(leaf)
            if n + 1 == ranges[current][1]:
                roots[current] = edge.root()
                edge = TreeEdge()
    if seen < size:
        raise ValueError("there are fewer leaves than the tree has")
    return roots


def inclusion_path_behind(before: TreeEdge, leaves: Iterable[bytes], index: int, size: int) -> list[bytes]:
    """The same, for whoever has the edge `before` of the tree and only the leaves behind it, from `before.size` on.

    Raises `ValueError` when `before` is beyond the leaf. `before` is changed.
    """
    ranges = sibling_ranges(index, size)
    if before.size > index:
        raise ValueError("the edge is beyond the leaf")
    right = [(first, end) for first, end in ranges if first > index]
    roots: list[bytes] = []
    left: tuple[bytes, ...] = before.hashes if before.size == index else ()
    edge = TreeEdge()
    seen = before.size
    for n, leaf in enumerate(leaves, before.size):
        if n == size:
            break
        seen += 1
        if n < index:
            before.append(leaf)
            if n + 1 == index:
                left = before.hashes
        elif n > index:
            edge.append(leaf)
            if n + 1 == right[len(roots)][1]:
                roots.append(edge.root())
                edge = TreeEdge()
    if seen < size:
        raise ValueError("there are fewer leaves than the tree has")
    # Left siblings are the perfect subtrees before the leaf, the smallest next to it.
    lefts, rights = iter(reversed(left)), iter(roots)
    return [next(lefts) if first < index else next(rights) for first, _ in ranges]


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Root that `leaf` at `index` and `path` make in a tree of `size`. Raises `ValueError` when the path has the wrong length."""
    ranges = sibling_ranges(index, size)
    if len(path) != len(ranges):
        raise ValueError("the path has not the length that its tree asks for")
    root = leaf
    for (first, _), sibling in zip(ranges, path, strict=True):
        root = node(sibling, root) if first < index else node(root, sibling)
    return root
