"""Issuing the certificate of a deletion, writing it with its page, and reading it again; no torch is loaded."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sordino.errors import DataError, RunError, UnlearningError
from sordino.evidence import Tree, canonical, public_hex, sign
from sordino.results import (
    Certificate,
    CertifiedRequest,
    Cost,
    Digests,
    Manifests,
    Purged,
    Qualified,
    RecordProof,
    Scores,
    State,
    Tier,
    Verification,
    decode,
    encode,
)
from sordino.run import write_atomic
from sordino.unlearn.certificates.checking import examined
from sordino.unlearn.certificates.reading import identity, parsed, plain_of, signed_bytes
from sordino.unlearn.certificates.statements import gaps, judged, limits, promise, utility

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Parts", "issue", "prove", "read", "write"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that a certificate is made of; `state` is where the ledger says that the request stands.

    `facts` are what the tier's promise rests on (`statements.promise`); paths in `purge` are relative to the folder
    of the runs.
    """

    state: State
    request: CertifiedRequest
    manifests: Manifests
    digests: Digests
    tier: Tier
    method: str
    cost: Cost
    verification: Verification
    before: Scores | None = None
    after: Scores | None = None
    qualification: Qualified | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    purge: tuple[Purged, ...] = ()
    issuer: str = ""


def prove(before: Tree, after: Tree, leaves: Sequence[str | bytes]) -> tuple[RecordProof, ...]:
    """A proof for each of `leaves` that it is in the manifest `before` and not in that `after`.

    Raises `UnlearningError` where one was never trained on, or still is.
    """
    made = []
    for leaf in leaves:
        try:
            shown = RecordProof(
                leaf=leaf if isinstance(leaf, str) else leaf.hex(),
                before=before.inclusion(leaf),
                after=after.absence(leaf),
            )
        except DataError as error:
            count = sum(one not in before or one in after for one in leaves)
            message = f"{count} of {len(leaves)} records cannot be shown to have gone: {error.message}"
            raise UnlearningError(message, "Certify the request that these two runs belong to.") from error
        made.append(shown)
    return tuple(made)


def issue(parts: Parts, key: "Ed25519PrivateKey") -> Certificate:
    """The signed certificate of a verified request.

    What is missing is named in it, and where the tier needs it the outcome is "inconclusive". Raises `UnlearningError`
    for a request that was not verified, for values that are not numbers, for parts that do not belong together, and
    for whatever `sordino unlearn check` would find wrong.
    """
    if parts.state not in ("verified", "certified"):
        message = f"Request {parts.request.id} is {parts.state}, not verified: it cannot be certified."
        raise UnlearningError(message, "Verify it first: `sordino unlearn verify`.")
    outside = [p.path for p in parts.purge if PurePosixPath(p.path).is_absolute() or ".." in Path(p.path).parts]
    if outside:
        message = f"{len(outside)} paths of the purge list lie outside of the folder of the runs."
        raise UnlearningError(message, "Give paths relative to that folder.")
    made = _signed(_written(parts, public_hex(key)), key)
    checked = examined(plain_of(made), made)
    if not checked.sound:
        wrong = " ".join(f"{one.name}: {one.what}" for one in checked.checks if one.state == "failed")
        raise UnlearningError(f"The certificate would not hold. {wrong}", "Verify the request again.")
    return made


def _written(parts: Parts, public: str) -> Certificate:
    """The certificate as far as it goes without identity and signature."""
    held = {f.name: getattr(parts, f.name) for f in dataclasses.fields(parts) if f.name != "state"}
    draft = Certificate(
        **held,
        id="",
        issued=datetime.now(UTC).isoformat(timespec="seconds"),
        outcome="inconclusive",
        reasons=(),
        promise=promise(parts.tier, parts.facts),
        utility=utility(parts.before, parts.after),
        missing=(),
        does_not_prove=(),
        public_key=public,
        signature="",
    )
    outcome, reasons = judged(draft)
    return dataclasses.replace(
        draft,
        outcome=outcome,
        reasons=reasons,
        missing=tuple(gap.what for gap in gaps(draft)),
        does_not_prove=limits(draft),
    )


def _signed(draft: Certificate, key: "Ed25519PrivateKey") -> Certificate:
    canonical(draft)  # names what is not a number, which as JSON would be null
    # What is signed is what will be read: a whole number where a fraction may stand becomes one.
    read_again = decode(encode(draft), Certificate, "the certificate")
    named = dataclasses.replace(read_again, id=identity(plain_of(read_again)))
    return dataclasses.replace(named, signature=sign(key, signed_bytes(plain_of(named))))


def write(certificate: Certificate, folder: Path) -> Path:
    """Write certificate.json and its page, certificate.html, into `folder`; returns the path of the former.

    The page comes first, so that where there is a certificate there is a page.
    """
    from sordino.unlearn.certificates.page import render_certificate

    if not folder.is_dir():
        raise RunError(f"There is no folder {folder} for the certificate.", "Make it first.")
    page, data = render_certificate(certificate), encode(certificate)
    write_atomic(folder / "certificate.html", page.encode())
    write_atomic(folder / "certificate.json", data)
    return folder / "certificate.json"


def read(path: Path) -> Certificate:
    """The certificate at `path` (or certificate.json in that folder), unchecked; `RunError` where there is none."""
    return parsed(path)[1]
