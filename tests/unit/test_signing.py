"""Signatures and keys: against another reading of Ed25519 and of JSON, and every refusal."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sordino.errors import ConfigError, UnlearningError
from sordino.evidence import canonical, code_digest, load_key, new_key, public_hex, read_public, sign, verify
from sordino.evidence.sources import digest_of_sources

# RFC 8032, section 7.1, test 2.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_example_of_the_rfc():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
    assert public_hex(key) == PUBLIC
    assert sign(key, b"\x72") == SIGNATURE
    assert verify(PUBLIC, b"\x72", SIGNATURE)


def test_every_change_is_refused():
    assert not verify(PUBLIC, b"\x73", SIGNATURE)
    assert not verify(PUBLIC, b"", SIGNATURE)
    for at in range(0, 128, 7):
        other = SIGNATURE[:at] + ("0" if SIGNATURE[at] != "0" else "1") + SIGNATURE[at + 1 :]
        assert not verify(PUBLIC, b"\x72", other)
    for at in range(64):
        other = PUBLIC[:at] + ("0" if PUBLIC[at] != "0" else "1") + PUBLIC[at + 1 :]
        assert not verify(other, b"\x72", SIGNATURE)
    for public, signature in (
        (PUBLIC.upper(), SIGNATURE),
        (PUBLIC, SIGNATURE.upper()),
        (PUBLIC, SIGNATURE + "00"),
        (PUBLIC, ""),
        ("", SIGNATURE),
        (PUBLIC[:-1], SIGNATURE),
        ("é" * 64, SIGNATURE),
    ):
        assert not verify(public, b"\x72", signature)


def test_keys_are_written_once_and_for_their_owner_only(tmp_path):
    path = tmp_path / "key.pem"
    key = new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public_hex(load_key(path)) == public_hex(key)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never written over"):
        new_key(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]
    with pytest.raises(ConfigError, match="no folder"):
        new_key(tmp_path / "missing" / "key.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_another_program_verifies_our_signature(tmp_path):
    key = new_key(tmp_path / "key.pem")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "data").write_bytes(b"what was signed")
    (tmp_path / "signature").write_bytes(bytes.fromhex(sign(key, b"what was signed")))
    files = ["-inkey", "public.pem", "-in", "data", "-sigfile", "signature"]
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", *files]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "key.pem"
    new_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}"):
        load_key(path)


def test_what_is_no_key_is_refused(tmp_path):
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="no key at"):
        load_key(path)
    with pytest.raises(ConfigError, match="no key at"):
        load_key(tmp_path)
    for data in (b"", b"text", new_text(tmp_path)[:60]):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="no private key that can be opened"):
            load_key(path)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="another kind than Ed25519"):
        load_key(path)
    with pytest.raises(ConfigError, match="holds no Ed25519 key"):
        read_public(str(path))


def new_text(folder):
    new_key(folder / "other.pem")
    return (folder / "other.pem").read_bytes()


def test_a_public_key_is_read_from_all_it_is_told_in(tmp_path):
    key = new_key(tmp_path / "key.pem")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "public.hex").write_text(public_hex(key).upper() + "\n")
    told = [
        public_hex(key),
        public_hex(key).upper(),
        *(str(tmp_path / n) for n in ("key.pem", "public.pem", "public.hex")),
    ]
    assert {read_public(one) for one in told} == {public_hex(key)}
    for bad in ("abc", str(tmp_path), "\0"):
        with pytest.raises(ConfigError, match="neither a public key"):
            read_public(bad)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="holds no Ed25519 key"):
        read_public(str(tmp_path / "empty"))


@dataclasses.dataclass
class Made:
    b: float
    a: dict[str, object]


def test_canonical_json_has_one_order_and_no_blanks():
    first = canonical(Made(b=0.1, a={"y": [1, True, None], "x": "é\n"}))
    assert first == '{"a":{"x":"é\\n","y":[1,true,null]},"b":0.1}'.encode()
    assert canonical({"b": 0.1, "a": {"x": "é\n", "y": (1, True, None)}}) == first
    assert canonical(json.loads(first)) == canonical(msgspec.json.decode(first)) == first


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_never_signed(bad):
    with pytest.raises(UnlearningError, match=r"1 values are not numbers .* such as a\.rows\[1\]\.x"):
        canonical({"a": {"rows": [{"x": 1.0}, {"x": bad}]}})


@pytest.mark.parametrize("bad", [{"a": object()}, {"a": "\udcff"}])
def test_what_json_cannot_hold_is_an_error_of_ours(bad):
    with pytest.raises(UnlearningError, match="is no JSON"):
        canonical(bad)


def test_the_digest_of_sources_sees_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    (tmp_path / "y.py").write_text("2")
    first = digest_of_sources(tmp_path)
    (tmp_path / "a" / "x.pyc").write_text("not source")
    assert digest_of_sources(tmp_path) == first
    (tmp_path / "a" / "x.py").rename(tmp_path / "x.py")
    moved = digest_of_sources(tmp_path)
    (tmp_path / "x.py").write_text("3")
    assert len({first, moved, digest_of_sources(tmp_path)}) == 3
    assert len(code_digest()) == 32 and code_digest() == code_digest()


def test_torch_is_not_loaded():
    code = "import sordino.evidence, sys; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
