"""The tree over the log's lines is RFC 9162's, in one pass and with a handful of hashes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit.format import leaf
from secure_llm_proxy.audit.merkle import (
    TreeEdge,
    inclusion_path,
    inclusion_path_behind,
    node,
    root_from_path,
    root_of,
    sibling_ranges,
)

# The eight leaves and the roots of the first 0 … 8 of them that implementations of RFC 6962 and 9162 are tested with.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(b"leaf %d" % number).digest() for number in range(count)]


def _by_the_definition(leaves: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return node(_by_the_definition(leaves[:half]), _by_the_definition(leaves[half:]))


@pytest.mark.parametrize("count", range(9))
def test_known_trees_have_their_known_roots(count: int) -> None:
    assert root_of(leaf(content) for content in LEAVES[:count]).hex() == ROOTS[count]


@pytest.mark.parametrize("count", [9, 15, 16, 17, 63, 64, 65, 100])
def test_the_root_is_the_definitions(count: int) -> None:
    leaves = _leaves(count)

    assert root_of(leaves) == _by_the_definition(leaves)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 33])
def test_every_leaf_of_a_tree_has_a_path_to_its_root(size: int) -> None:
    leaves = _leaves(size + 3)
    root = root_of(leaves[:size])

    for index in range(size):
        path = inclusion_path(iter(leaves), index, size)

        assert root_from_path(leaves[index], index, size, path) == root


@given(size=st.integers(1, 70), data=st.data())
def test_a_path_is_made_from_any_edge_before_the_leaf(size: int, data: st.DataObject) -> None:
    leaves = _leaves(size + 1)
    index = data.draw(st.integers(0, size - 1))
    known = data.draw(st.integers(0, index))
    before = TreeEdge()
    for each in leaves[:known]:
        before.append(each)

    path = inclusion_path_behind(before, iter(leaves[known:]), index, size)

    assert path == inclusion_path(leaves, index, size)


def test_a_path_wants_an_edge_before_the_leaf_and_all_leaves_behind_it() -> None:
    leaves = _leaves(8)
    beyond = TreeEdge(1, leaves[:1])

    with pytest.raises(ValueError, match="beyond"):
        inclusion_path_behind(beyond, leaves[1:], 0, 8)
    with pytest.raises(ValueError, match="fewer leaves"):
        inclusion_path_behind(TreeEdge(), leaves[:7], 3, 8)


@given(size=st.integers(1, 70), data=st.data())
def test_a_path_proves_nothing_else(size: int, data: st.DataObject) -> None:
    leaves = _leaves(size)
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda each: each != index)) if size > 1 else None
    path = inclusion_path(leaves, index, size)
    root = root_of(leaves)

    assert root_from_path(_leaves(size + 1)[size], index, size, path) != root
    if other is not None:
        try:
            assert root_from_path(leaves[index], other, size, path) != root
        except ValueError:
            assert len(sibling_ranges(other, size)) != len(path)
        for place in range(len(path)):
            altered = [*path]
            altered[place] = bytes(byte ^ 1 for byte in altered[place])
            assert root_from_path(leaves[index], index, size, altered) != root
        with pytest.raises(ValueError, match="length"):
            root_from_path(leaves[index], index, size, path[1:])


def test_an_edge_goes_on_where_it_was_left() -> None:
    leaves = _leaves(77)
    edge = TreeEdge()
    for each in leaves[:50]:
        edge.append(each)

    later = TreeEdge(edge.size, edge.hashes)
    for each in leaves[50:]:
        later.append(each)

    assert later.root() == root_of(leaves)
    assert edge.root() == root_of(leaves[:50])


@pytest.mark.parametrize(("size", "count"), [(1, 0), (3, 1), (4, 2), (-1, 0), (1 << 62, 1)])
def test_an_edge_that_fits_no_tree_is_refused(size: int, count: int) -> None:
    with pytest.raises(ValueError, match="edge"):
        TreeEdge(size, [bytes(32)] * count)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 4), (0, 1 << 62)])
def test_a_leaf_that_is_not_there_has_no_path(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="leaf"):
        sibling_ranges(index, size)


def test_a_path_wants_all_leaves_of_its_tree() -> None:
    with pytest.raises(ValueError, match="fewer"):
        inclusion_path(_leaves(4), 1, 5)
