"""What binds results to what they came from: digests, Merkle roots, signatures, and the gate for weight files."""

from sordino.evidence.digests import digest, digest_file, digest_files, require_safetensors

__all__ = ["digest", "digest_file", "digest_files", "require_safetensors"]
