"""The schemas on disk: what a run is (`RunCard`) and what an audit found (`AuditReport`).

Frozen dataclasses of plain values, written and read by msgspec as JSON. They hold aggregates only:
no private text and no per-record score is ever part of them.
"""

from sordino.results.cards import RunCard
from sordino.results.findings import (
    Attempt,
    CanaryLevel,
    Claim,
    Curve,
    Effort,
    Gate,
    MemorisationLevel,
    MemorisationPoint,
    PersonalFinding,
    Requirement,
    SecretFinding,
    Verdict,
)
from sordino.results.plans import (
    AuditPlan,
    Decoding,
    GeneratedPlan,
    InputPlan,
    NearBoundPlan,
    PersonalPlan,
    SamplingPlan,
    SecretPlan,
    SoftPromptPlan,
)
from sordino.results.reports import AuditReport, EntityRow, PersonReport, PersonRow, PromptReport
from sordino.results.values import SCHEMA, UNBOUNDED, Estimate, Notice, decode, encode

__all__ = [
    "SCHEMA",
    "UNBOUNDED",
    "Attempt",
    "AuditPlan",
    "AuditReport",
    "CanaryLevel",
    "Claim",
    "Curve",
    "Decoding",
    "Effort",
    "EntityRow",
    "Estimate",
    "Gate",
    "GeneratedPlan",
    "InputPlan",
    "MemorisationLevel",
    "MemorisationPoint",
    "NearBoundPlan",
    "Notice",
    "PersonReport",
    "PersonRow",
    "PersonalFinding",
    "PersonalPlan",
    "PromptReport",
    "Requirement",
    "RunCard",
    "SamplingPlan",
    "SecretFinding",
    "SecretPlan",
    "SoftPromptPlan",
    "Verdict",
    "decode",
    "encode",
]
