"""The certificate of a deletion: what was asked, what was done, what was measured, and what of it can be checked.

It holds no text and no name of a record or a subject: only salted hashes, numbers of subjects, and scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sordino.results.proofs import Absence, Inclusion
from sordino.results.unlearning import Cost, Outcome, Row, Scores, Tier, Verification
from sordino.results.values import Estimate

__all__ = [
    "CERTIFICATE_SCHEMA",
    "Certificate",
    "CertifiedRequest",
    "Digests",
    "Manifests",
    "Purged",
    "Qualified",
    "RecordProof",
]

CERTIFICATE_SCHEMA = 1
"""The version of certificates; it counts by itself, as these are kept for years and read by others."""


@dataclass(frozen=True, kw_only=True)
class CertifiedRequest:
    """A request without its names: how many were named, salted hashes of the subjects and of the records (hex).

    `records` are the leaves, in the manifest of the run before, of what was trained on; `acknowledged` says that
    near-duplicates which stay with others were known of.
    """

    id: str
    received: str
    kind: Literal["subject", "record"]
    count: int
    subjects: tuple[str, ...]
    records: tuple[str, ...]
    acknowledged: bool = False


@dataclass(frozen=True, kw_only=True)
class RecordProof:
    """That one record, by its `leaf` in hex, was trained on before and is not among what was trained on after."""

    leaf: str
    before: Inclusion
    after: Absence


@dataclass(frozen=True, kw_only=True)
class Manifests:
    """The runs `before` and `after`, the Merkle roots (hex) of what they were trained on, and a proof a record."""

    before: str
    after: str
    root_before: str
    root_after: str
    proofs: tuple[RecordProof, ...]


@dataclass(frozen=True, kw_only=True)
class Digests:
    """BLAKE2b-128, in hex, of what the runs were made of: models, tokenizer, data as it was read, Sordino's source."""

    base: str
    weights_before: str
    weights_after: str
    tokenizer: str
    data: str
    code: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Qualified:
    """The qualification of the method that is relied on: its id, the digest of its file, its outcome and rows."""

    id: str
    digest: str
    outcome: Outcome
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Purged:
    """Something that held the deleted: its `path` relative to the folder of the runs, and whether it was `removed`."""

    path: str
    kind: str
    removed: bool


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is signed, and written as certificate.json.

    `facts` are what the tier rests on (shards and threads; ε, δ and capacity), `promise` the same in a sentence.
    `search` has the budget of the search that chose `settings`, if there was one. `utility` is the metric after less
    that before, by name. `missing` names the evidence that is not there; `outcome` is never "pass" where the tier
    needs it. `id` is BLAKE2b-128 of the canonical bytes of all but itself and the signature; `signature` is Ed25519
    under `public_key`, of those of all but itself, both in hex (`evidence.signing`).
    """

    id: str
    issued: str
    issuer: str
    outcome: Outcome
    reasons: tuple[str, ...]
    request: CertifiedRequest
    manifests: Manifests
    digests: Digests
    tier: Tier
    method: str
    promise: str
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    cost: Cost
    verification: Verification
    before: Scores | None
    after: Scores | None
    utility: Mapping[str, Estimate]
    qualification: Qualified | None
    missing: tuple[str, ...]
    purge: tuple[Purged, ...]
    does_not_prove: tuple[str, ...]
    public_key: str
    signature: str
    search: Mapping[str, Any] = field(default_factory=dict)
    schema: int = CERTIFICATE_SCHEMA
