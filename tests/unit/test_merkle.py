"""Merkle trees: the root against a recursive oracle, proofs against sets, and every change of a proof refused."""

import dataclasses
import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import DataError
from sordino.evidence.merkle import Absence, Inclusion, Neighbour, Tree, verify_absence, verify_inclusion

LEAF = st.binary(min_size=32, max_size=32)
LEAVES = st.lists(LEAF, max_size=20)


def hashed(*parts):
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


def split_tree(leaves):
    """RFC 9162's recursion: the left side holds the largest power of two that is smaller than the number of leaves."""
    if len(leaves) == 1:
        return hashed(b"\x00", leaves[0])
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashed(b"\x01", split_tree(leaves[:half]), split_tree(leaves[half:]))


def brute_root(leaves):
    found = sorted(set(leaves))
    top = split_tree(found) if found else hashed(b"\x03")
    return hashed(b"\x02", len(found).to_bytes(8, "big"), top).hex()


def numbered(count, start=0):
    return [hashed(b"record", (start + i).to_bytes(4, "big")) for i in range(count)]


@given(LEAVES)
@settings(max_examples=60, deadline=None)
def test_the_root_is_that_of_the_recursive_definition(leaves):
    tree = Tree(leaves)
    assert tree.root == brute_root(leaves) == Tree([leaf.hex() for leaf in reversed(leaves)]).root
    assert len(tree) == len(set(leaves))


@given(LEAVES, LEAF)
@settings(max_examples=60, deadline=None)
def test_each_leaf_is_proved_in_or_out_and_never_both(leaves, other):
    tree = Tree(leaves)
    for leaf in {*leaves, other}:
        if leaf in set(leaves):
            assert leaf in tree
            proof = msgspec.json.decode(msgspec.json.encode(tree.inclusion(leaf)), type=Inclusion)
            assert proof.index == sorted(set(leaves)).index(leaf)
            assert verify_inclusion(tree.root, leaf.hex(), proof)
            with pytest.raises(DataError, match="no proof that it is absent"):
                tree.absence(leaf)
        else:
            assert leaf not in tree
            proof = msgspec.json.decode(msgspec.json.encode(tree.absence(leaf)), type=Absence)
            assert verify_absence(tree.root, leaf, proof)
            with pytest.raises(DataError, match="is not among the"):
                tree.inclusion(leaf)


@given(st.sets(LEAF, min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_no_enclosing_pair_shows_that_a_leaf_is_absent_which_is_there(leaves, data):
    tree, ordered = Tree(leaves), sorted(leaves)
    hidden = data.draw(st.sampled_from(ordered))
    sides = [None, *(Neighbour(leaf=leaf.hex(), proof=tree.inclusion(leaf)) for leaf in ordered)]
    for left in sides:
        for right in sides:
            assert not verify_absence(tree.root, hidden, Absence(size=len(tree), left=left, right=right))


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33])
def test_another_place_size_leaf_or_sibling_is_refused(count):
    leaves = sorted(numbered(count))
    tree = Tree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion(leaf)
        assert verify_inclusion(tree.root, leaf, proof)
        for place in range(-1, count + 2):
            for size in range(count + 3):
                moved = dataclasses.replace(proof, index=place, size=size)
                assert verify_inclusion(tree.root, leaf, moved) == (place == index and size == count)
        assert not verify_inclusion(tree.root, leaves[index - 1], proof) or count == 1
        assert not verify_inclusion(Tree(leaves[1:]).root, leaf, proof)
        assert not verify_inclusion(tree.root, leaf, dataclasses.replace(proof, path=(*proof.path, "0" * 64)))
        assert not proof.path or not verify_inclusion(tree.root, leaf, dataclasses.replace(proof, path=proof.path[1:]))


def bits(text):
    """`text` with a bit of each of its characters changed: another digit, a letter, a capital."""
    for at, char in enumerate(text):
        for bit in (0, 2, 5):
            yield text[:at] + chr(ord(char) ^ 1 << bit) + text[at + 1 :]


def test_every_bit_of_root_leaf_and_siblings_counts():
    leaves = sorted(numbered(5))
    tree, leaf = Tree(leaves), leaves[2]
    proof = tree.inclusion(leaf)
    assert all(not verify_inclusion(root, leaf, proof) for root in bits(tree.root))
    assert all(not verify_inclusion(tree.root, other, proof) for other in bits(leaf.hex()))
    for at, sibling in enumerate(proof.path):
        for other in bits(sibling):
            path = (*proof.path[:at], other, *proof.path[at + 1 :])
            assert not verify_inclusion(tree.root, leaf, dataclasses.replace(proof, path=path))
    # Two spellings of one digest would be two proofs.
    assert not verify_inclusion(
        tree.root, leaf, dataclasses.replace(proof, path=(proof.path[0].upper(), *proof.path[1:]))
    )
    assert not verify_inclusion(tree.root, leaf.hex().upper(), proof)


def changed(value, path=()):
    """`value` (of JSON) with each of its leaves changed in turn."""
    if isinstance(value, dict):
        for name, inner in value.items():
            for made in changed(inner):
                yield {**value, name: made}
    elif isinstance(value, (list, tuple)):
        for at, inner in enumerate(value):
            for made in changed(inner):
                yield [*value[:at], made, *value[at + 1 :]]
        yield [*value, "0" * 64]
    elif isinstance(value, int):
        yield from (value + 1, value - 1, -value - 1)
    elif value is None:
        yield {"leaf": "0" * 64, "proof": {"index": 0, "size": 1, "path": []}}
        yield {"leaf": "f" * 64, "proof": {"index": 0, "size": 1, "path": []}}
    else:
        yield from bits(value)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
def test_every_change_of_a_proof_of_absence_is_refused(count):
    leaves = sorted(numbered(count))
    tree = Tree(leaves)
    for leaf in (b"\x00" * 32, b"\xff" * 32, *numbered(2, start=count)):
        proof = tree.absence(leaf)
        assert verify_absence(tree.root, leaf, proof)
        plain = msgspec.to_builtins(proof)
        for made in changed(plain):
            assert not verify_absence(tree.root, leaf, msgspec.convert(made, Absence)), made
        for side in ("left", "right"):
            if plain[side] is not None:
                assert not verify_absence(tree.root, leaf, dataclasses.replace(proof, **{side: None}))


def test_an_inner_node_is_no_leaf():
    """A second preimage: the two hashes of the left half, offered as a leaf of the tree of what is above them."""
    first, second, third, fourth = (hashed(b"\x00", leaf) for leaf in sorted(numbered(4)))
    tree = Tree(numbered(4))
    right = hashed(b"\x01", third, fourth)
    inner = hashed(b"\x01", first, second)
    for size in range(1, 5):
        for index in range(size):
            for leaf in (inner, first, second, hashed(b"\x00", first + second)):
                assert not verify_inclusion(tree.root, leaf, Inclusion(index=index, size=size, path=(right.hex(),)))
    assert not verify_inclusion(tree.root, first + second, Inclusion(index=0, size=2, path=(right.hex(),)))
    assert Tree([inner, right]).root != tree.root


def test_the_end_of_an_odd_level_cannot_be_doubled():
    """Where the last node of an odd level is paired with itself, two sets have one root."""
    leaves = sorted(numbered(3))
    assert Tree(leaves).root == brute_root(leaves)
    doubled = hashed(b"\x01", hashed(b"\x00", leaves[2]), hashed(b"\x00", leaves[2]))
    top = hashed(b"\x01", hashed(b"\x01", hashed(b"\x00", leaves[0]), hashed(b"\x00", leaves[1])), doubled)
    assert Tree(leaves).root != hashed(b"\x02", (3).to_bytes(8, "big"), top).hex()


@pytest.mark.parametrize("leaf", [b"short", "ab", "g" * 64, "A" * 64, b"\x00" * 33])
def test_what_is_no_digest_is_refused(leaf):
    with pytest.raises(DataError, match="is no digest"):
        Tree([leaf])
    with pytest.raises(DataError, match="is no digest"):
        Tree([]).absence(leaf)
    tree = Tree([b"\x01" * 32])
    assert not verify_inclusion(tree.root, leaf, tree.inclusion(b"\x01" * 32))
    assert not verify_absence(tree.root, leaf, tree.absence(b"\x00" * 32))
