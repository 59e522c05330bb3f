"""What unlearning writes: requests, plans, scores of records, what they were found to say, and certificates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sordino.results.values import Estimate

__all__ = [
    "Columns",
    "Comparison",
    "Cost",
    "DeletionRequest",
    "Outcome",
    "Robustness",
    "Row",
    "Scores",
    "State",
    "Tier",
    "UnlearnPlan",
    "Verification",
]

State = Literal["received", "planned", "executed", "verified", "certified", "failed"]
"""Where a request stands; each follows the one before it, and any but the last may end in "failed"."""

Tier = Literal["exact", "dp", "approximate"]
"""What is promised: the weights of a training without the records; (ε, δ)-closeness to one; only measurements."""

Outcome = Literal["pass", "fail", "inconclusive"]

Columns = Mapping[str, tuple[float, ...]]
"""Scores of records by name, all of one length; "subject" numbers whose each record is."""


@dataclass(frozen=True, kw_only=True)
class DeletionRequest:
    """Who or what is to go: `names` of subjects or records, private; `run` the folder name of the run they are in.

    `acknowledged` says that near-duplicates which stay with others are known of.
    """

    id: str
    created: str
    run: str
    kind: Literal["subject", "record"]
    names: tuple[str, ...]
    acknowledged: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took: `seconds`, and `tokens` that went forwards and backwards; `forwards` went forwards only.

    `share` is of training anew, in equivalents of a token forwards and backwards (a forward pass is a third of one);
    `formula` what the tier's formula says it should be, where there is one.
    """

    seconds: float
    tokens: int
    forwards: int = 0
    share: float | None = None
    formula: float | None = None


@dataclass(frozen=True, kw_only=True)
class UnlearnPlan:
    """The cheapest sufficient tier: its `method`, `settings`, what it should cost, and why no cheaper one was taken."""

    request: str
    tier: Tier
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    share: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model says of records: those to `forget`, `never` trained on, that stay (`retain`), and `validation`.

    Columns: "subject" (a number), "loss" (mean nats a token), "base_loss" (of the untuned model), "tokens",
    "extraction_strength", "exact_memorisation", and where text was generated "rouge_l". `model` is the digest of the
    weights.
    """

    model: str
    forget: Columns
    never: Columns
    retain: Columns
    validation: Columns


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric against what it should be: `difference` within ± `margin`, in the unit of `metric`, is a pass.

    `p_value` is that of two one-sided tests, the larger one; `power` the probability to pass where there is no
    difference at all; `detectable` the smallest true difference that would be found with a power of 80 %.
    """

    metric: str
    definition: str
    margin: float
    difference: Estimate
    p_value: float
    power: float
    detectable: float | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Row:
    """The metrics of one model: "before" (which is doing nothing), "after", "retrain" of a qualification."""

    name: str
    metrics: Mapping[str, Estimate]
    source: str = "measured"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """One way to bring back what was forgotten, or to see it in another form of the model.

    `curve` has, for ways of many steps, pairs of a step and an AUC of forgotten against never-trained records.
    """

    name: str
    what: str
    estimate: Estimate
    curve: tuple[tuple[int, float], ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found of one request: comparisons, rows with both controls, robustness, and the outcome of all."""

    request: str
    outcome: Outcome
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    rows: tuple[Row, ...]
    robustness: tuple[Robustness, ...] = ()
    qualification: str | None = None
