"""What an audit comes to: the report of a run, of a prompt, and of a person."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sordino.results.findings import (
    Attempt,
    CanaryLevel,
    Claim,
    Effort,
    Gate,
    MemorisationPoint,
    PersonalFinding,
    Requirement,
    SecretFinding,
    Verdict,
)
from sordino.results.plans import Decoding
from sordino.results.values import SCHEMA, Estimate, Notice

__all__ = ["AuditReport", "EntityRow", "PersonReport", "PersonRow", "PromptReport"]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """`audit.json`: everything an audit may say to somebody who does not hold the data.

    `metrics` is every figure under its full name (`membership.auc`, `membership.loss.auc`,
    `membership.identified@0.05fdr`, `extraction.prefix.rate`, `canaries.exposure@16`, `utility.perplexity`,
    `epsilon.lower`, from audit canaries `epsilon.canaries`), the names that requirements use. `utility` has
    `perplexity` and `base_perplexity` on validation records, or of a classifier `accuracy`, `loss`
    and theirs. `counts` tells the evidence (members, non-members, coins, records by role).
    `untested` names what a reader might assume and nobody measured. `provenance` has digests and versions.
    `trained_here` is False for a model that Sordino did not train: there are no coins and no ε̂.
    `memorisation` is the curve of `train.monitor`, empty where there was none; `effort` what it takes to get
    records out, one row a decoding; `personal` what attacks on personal data found; `secrets` how exposed secrets of
    formats are that the user named, one row a format.
    """

    run: str
    created: str
    verdict: Verdict
    threat_model: Mapping[str, str]
    claims: tuple[Claim, ...]
    attempts: tuple[Attempt, ...]
    canaries: tuple[CanaryLevel, ...]
    gates: tuple[Gate, ...]
    utility: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]
    requirements: tuple[Requirement, ...]
    untested: tuple[str, ...]
    counts: Mapping[str, int]
    notices: tuple[Notice, ...]
    provenance: Mapping[str, str]
    seconds: Mapping[str, float]
    strongest: str | None = None
    trained_here: bool = True
    task: Literal["causal-lm", "classification"] = "causal-lm"
    schema: int = SCHEMA
    memorisation: tuple[MemorisationPoint, ...] = ()
    effort: tuple[Effort, ...] = ()
    personal: tuple[PersonalFinding, ...] = ()
    secrets: tuple[SecretFinding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """`in-context.json`: whether it can be told which records stood in a prompt; says nothing about training.

    In each of `trials` prompts `shots` records stood, drawn by coins from records that were not trained on;
    `control` of the `attempts` is the same after another prompt. `counts` and `notices` tell what was drawn
    and left out.
    """

    run: str
    created: str
    verdict: Verdict
    shots: int
    trials: int
    attempts: tuple[Attempt, ...]
    gate: Gate
    counts: Mapping[str, int]
    notices: tuple[Notice, ...]
    provenance: Mapping[str, str]
    seconds: Mapping[str, float]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class EntityRow:
    """One entity in a record, `masked`: log10 of the queries that it takes on average to be given its value.

    Asked is with all that stands before it in the record. None: it never comes. `out` says that it comes within the
    plan's queries; `trained` is False of what stands in inputs alone or beyond the end of what the model reads,
    which nobody can be asked to go on with.
    """

    kind: str
    masked: str
    trained: bool
    queries: float | None
    base_queries: float | None
    out: bool


@dataclass(frozen=True, kw_only=True)
class PersonRow:
    """One record: `included` in training; `p_value` of its being recognised as such, where an audit judged it.

    `verbatim` says that greedy decoding repeats a passage of it; `queries` is log10 of the queries that its likeliest
    passage takes on average, None where it never comes or the record is too short; `out` that these come within the
    plan's queries.
    """

    record_id: str
    role: str
    included: bool
    p_value: float | None
    verbatim: bool
    base_verbatim: bool
    queries: float | None
    base_queries: float | None
    out: bool
    entities: tuple[EntityRow, ...]


@dataclass(frozen=True, kw_only=True)
class PersonReport:
    """The answer about one unit; a record or an entity is out if `limit` queries give it with probability `chance`."""

    run: str
    unit: str
    unit_kind: str
    decoding: Decoding
    limit: int
    chance: float
    has_base: bool
    records: tuple[PersonRow, ...]
