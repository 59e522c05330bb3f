"""Certificates as files: read, and taken apart into what is signed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sordino.errors import RunError, first_line
from sordino.evidence import canonical, digest
from sordino.results import Certificate, decode
from sordino.results.certificates import CERTIFICATE_SCHEMA

__all__ = ["identity", "parsed", "plain_of", "signed_bytes"]


def parsed(path: Path) -> tuple[dict[str, Any], Certificate]:
    """The certificate at `path` (or certificate.json in that folder) as plain values, and as what they mean.

    Raises `RunError` where there is none that can be read, or one of another schema.
    """
    path = path / "certificate.json" if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"There is no certificate at {path} that can be read."
        raise RunError(message, "Give the certificate.json that `sordino unlearn certify` wrote.") from error
    try:
        # Of a name that stands twice, some readers see the first and some the last: one signature, two certificates.
        plain = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {first_line(error)}.", "Was it cut off, or edited?") from error
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != CERTIFICATE_SCHEMA or isinstance(schema, bool):
        message = f"{path} is no certificate of schema {CERTIFICATE_SCHEMA}, which this Sordino reads."
        raise RunError(message, "Give a certificate.json, or use the version of Sordino that wrote it.")
    return plain, decode(data, Certificate, str(path))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def plain_of(certificate: Certificate) -> dict[str, Any]:
    """`certificate` as the plain values that its file holds."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(certificate))
    return found


def signed_bytes(plain: Mapping[str, Any]) -> bytes:
    """What the signature is of: the canonical bytes of all of a certificate but the signature."""
    return canonical({name: value for name, value in plain.items() if name != "signature"})


def identity(plain: Mapping[str, Any]) -> str:
    """The id of a certificate: BLAKE2b-128, in hex, of the canonical bytes of all but the id and the signature."""
    return digest(canonical({name: value for name, value in plain.items() if name not in ("id", "signature")}))
