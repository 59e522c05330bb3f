"""Digests, and the gate for weight files."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import ModelError
from sordino.evidence import digest, digest_file, digest_files, require_safetensors

PARTS = st.lists(st.one_of(st.text(), st.binary()), max_size=4)


@given(PARTS, PARTS)
def test_digests_are_equal_exactly_when_the_parts_are(first, second):
    def plain(parts):
        return [p.encode() if isinstance(p, str) else p for p in parts]

    assert (digest(*first) == digest(*second)) == (plain(first) == plain(second))


def test_a_digest_by_hand():
    framed = b"".join(len(p).to_bytes(8, "big") + p for p in (b"ab", "é".encode()))
    assert digest("ab", "é") == hashlib.blake2b(framed, digest_size=16).hexdigest()
    assert digest("ab", "c") != digest("a", "bc")


def test_files_of_any_size(tmp_path):
    data = bytes(range(256)) * 5000  # more than a chunk
    (tmp_path / "a").write_bytes(data)
    assert digest_file(tmp_path / "a") == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_several_files_names_count_and_order_does_not(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    first = digest_files([a, b])
    assert digest_files([b, a]) == first
    a.write_text("2")
    b.write_text("1")
    assert digest_files([a, b]) != first
    assert digest_files([a]) != digest_files([b, a])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "m.ckpt", "m.pkl"])
def test_pickles_alone_are_refused(tmp_path, name):
    with pytest.raises(ModelError, match="has no weights"):
        require_safetensors(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=f"only as pickle .{name}."):
        require_safetensors(tmp_path)
    (tmp_path / "model.safetensors").touch()
    require_safetensors(tmp_path)
