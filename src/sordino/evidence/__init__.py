"""What binds results to what they came from: digests, Merkle roots, signatures, and the gate for weight files."""

from sordino.evidence.digests import digest, digest_file, digest_files, require_safetensors
from sordino.evidence.merkle import Tree, verify_absence, verify_inclusion
from sordino.evidence.signing import canonical, load_key, new_key, public_hex, read_public, sign, verify
from sordino.evidence.sources import code_digest

__all__ = [
    "Tree",
    "canonical",
    "code_digest",
    "digest",
    "digest_file",
    "digest_files",
    "load_key",
    "new_key",
    "public_hex",
    "read_public",
    "require_safetensors",
    "sign",
    "verify",
    "verify_absence",
    "verify_inclusion",
]
