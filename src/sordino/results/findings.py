"""What one part of an audit found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sordino.results.plans import Decoding
from sordino.results.values import Estimate

__all__ = [
    "Attempt",
    "CanaryLevel",
    "Claim",
    "Curve",
    "Effort",
    "Gate",
    "MemorisationLevel",
    "MemorisationPoint",
    "PersonalFinding",
    "Requirement",
    "SecretFinding",
    "Verdict",
]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A ROC curve: rates at every distinct threshold, from the strictest down."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack carried out: what it is, what it found, and the same on the untuned base.

    Keys of `estimates` and `control` are metric names such as `auc` or `tpr@0.01fpr`;
    `p_value` is adjusted for all attacks tried (max-T); `records` and `coins` count the evidence; `level` says
    whether a score is one of a record, of a whole unit, or tests the whole data set.
    """

    name: str
    family: Literal["membership", "extraction", "in-context"]
    summary: str
    paper: str
    access: str
    parameters: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    control: Mapping[str, Estimate]
    p_value: float | None
    records: int
    coins: int
    roc: Curve | None = None
    control_roc: Curve | None = None
    notes: tuple[str, ...] = ()
    level: Literal["record", "unit", "dataset"] = "record"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many records come out, with probability `chance` at least, when a model is asked so many times.

    `members`, `others` and `base` have a share for each of `queries`: of records trained on, of records that were
    not, and of those trained on under the untuned model (empty where there is none). `easiest` and `median` are
    log10 of the queries it takes on average to be given the easiest and the median record that was trained on;
    None: it never comes.
    """

    decoding: Decoding
    chance: float
    queries: tuple[int, ...]
    members: tuple[Estimate, ...]
    others: tuple[Estimate, ...]
    base: tuple[Estimate, ...]
    easiest: float | None
    median: float | None


@dataclass(frozen=True, kw_only=True)
class PersonalFinding:
    """What an attack on personal data came to at entities of one `kind`, such as EMAIL_ADDRESS.

    `scope` "trained" are entities in what the model learns to write, "inputs" those in prompts alone. `members` is the
    share that came out of records trained on: named first among the candidates, or written; `base` the same under the
    untuned model, `gain` their paired difference with the one-sided `p_value`; `others` the share of entities of
    records never trained on, `excess` the difference to these. `chance` is what guessing gets; `precision` the share
    of what the tuned model alone wrote that is in the training data.
    """

    attack: str
    kind: str
    scope: Literal["trained", "inputs"]
    members: Estimate
    base: Estimate
    others: Estimate
    gain: Estimate
    excess: Estimate
    p_value: float
    chance: float | None = None
    precision: Estimate | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SecretFinding:
    """Exposure, in bits of at most `bits`, of secrets of one `kind` among all strings of a `format`.

    `members` is the mean of records that were trained on, `base` that of the same under the untuned model, `others`
    that of records never trained on. `p_value` is one-sided, of members against others (labels permuted over
    coins), `base_p_value` of members against the untuned model (paired). `counts` has the secrets on either side and
    the `first guesses` among them, and how many were left out and why.
    """

    kind: str
    format: str
    bits: float
    members: Estimate
    base: Estimate
    others: Estimate
    p_value: float
    base_p_value: float
    method: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CanaryLevel:
    """Exposure, in bits, of the canaries repeated `repetitions` times in the training data.

    `left_out` has the canaries of the same level whose coin kept them out: the control.
    `exposures` are the included canaries' own, so that a picture can show each one. `forwards` counts the prefixes
    whose next token the model was asked for.
    """

    repetitions: int
    included: Estimate
    left_out: Estimate
    exposures: tuple[float, ...]
    left_out_exposures: tuple[float, ...]
    bits: float
    method: str
    forwards: int = 0


@dataclass(frozen=True, kw_only=True)
class MemorisationLevel:
    """The mean gain of canaries in nats a token of their secrets, over the untuned model.

    `kind` is "exposure" or "audit"; `left_out` are those of the same `repetitions` whose coin kept them out.
    """

    kind: str
    repetitions: int
    included: Estimate
    left_out: Estimate


@dataclass(frozen=True, kw_only=True)
class MemorisationPoint:
    """How far canaries were memorised after `step` optimizer steps."""

    step: int
    levels: tuple[MemorisationLevel, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A control that decides what may be said; `passed` is None where it could not be judged."""

    name: str
    question: str
    passed: bool | None
    finding: str
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A condition such as `membership.tpr@0.01fpr <= 0.05`, judged on the whole interval."""

    text: str
    status: Literal["met", "failed", "inconclusive"]
    estimate: Estimate
    finding: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement beside its evidence."""

    statement: str
    evidence: str
    status: Literal["supported", "contradicted", "unresolved", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome in one word, one sentence, and the sentences behind it."""

    state: Literal["leaks", "no leak found", "inconclusive", "invalid split"]
    headline: str
    reasons: tuple[str, ...]
