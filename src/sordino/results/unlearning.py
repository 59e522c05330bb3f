"""What unlearning writes: requests, plans, scores of records, what they were found to say, and certificates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sordino.errors import ConfigError
from sordino.results.values import Estimate

__all__ = [
    "Columns",
    "Comparison",
    "Cost",
    "DeletionRequest",
    "Margins",
    "Outcome",
    "Qualification",
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
class Margins:
    """The largest differences that are of no account, each on its metric's scale, and the level `alpha` of each test.

    `auc` is of AUC − ½: within 0.1, guessing a record's side by it is right six times in ten at most. `loss` is in nats
    a token: 0.1 is a perplexity higher or lower by a tenth. `extraction_strength`, `exact_memorisation` and `rouge_l`
    are shares: 0.05 is one token of twenty. `utility` is a share of the loss on validation records, by which it may
    rise: 2 %. Raises `ConfigError` for values that cannot be meant.
    """

    auc: float = 0.1
    loss: float = 0.1
    extraction_strength: float = 0.05
    exact_memorisation: float = 0.05
    rouge_l: float = 0.05
    utility: float = 0.02
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Check the values."""
        bounds = {"auc": 0.5, "extraction_strength": 1.0, "exact_memorisation": 1.0, "rouge_l": 1.0, "alpha": 0.5}
        for name in ("auc", "loss", "extraction_strength", "exact_memorisation", "rouge_l", "utility", "alpha"):
            value, most = getattr(self, name), bounds.get(name, float("inf"))
            if not 0 < value < most:
                raise ConfigError(f"The margin `{name}` is {value}.", f"It must be above 0 and below {most:g}.")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric against what it should be: `difference` within ± `margin`, in the unit of `metric`, is a pass.

    `p_value` is that of two one-sided tests, the larger one; `power` the probability to pass where there is no
    difference at all; `detectable` the smallest margin within which no difference would be shown with a power of 80 %.
    Where `side` is "above" only a difference above the margin counts.
    """

    metric: str
    definition: str
    margin: float
    difference: Estimate
    p_value: float
    power: float
    detectable: float | None
    outcome: Outcome
    side: Literal["both", "above"] = "both"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The metrics of one model: "before" (which is doing nothing), "after", "retrain" of a qualification."""

    name: str
    metrics: Mapping[str, Estimate]
    source: str = "measured"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """One way to bring back what was forgotten, or to see it in another form of the model.

    `curve` has, for ways of many steps, pairs of a step and an AUC of forgotten against never-trained records;
    `control` the same of never-trained records in place of the forgotten.
    """

    name: str
    what: str
    estimate: Estimate
    curve: tuple[tuple[int, float], ...] = ()
    control: tuple[tuple[int, float], ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found of one request: comparisons, rows with both controls, robustness, and the outcome of all.

    `shown` are the things that the `tier` has to show beside scores, and whether each was; `qualified` is the outcome
    of the `qualification`, whose id is given; `untried` says why some ways to bring back what was forgotten were not
    tried.
    """

    request: str
    outcome: Outcome
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    rows: tuple[Row, ...]
    robustness: tuple[Robustness, ...] = ()
    untried: Mapping[str, str] = field(default_factory=dict)
    qualification: str | None = None
    qualified: Outcome | None = None
    tier: Tier = "approximate"
    shown: Mapping[str, bool] = field(default_factory=dict)
    margins: Margins = Margins()


@dataclass(frozen=True, kw_only=True)
class Qualification:
    """A method, on a run, against training anew: each on simulated requests, several seeds of both.

    `unlearned`, `retrained` and `untouched` (nothing done) have the metrics of each seed, from which all else can be
    computed again. Each seed has a request of its own, the same for all three, that names `subjects` drawn by
    `generator`; `seeds` are those of the models.
    `weights` and `root` are the digests of the run's weights and of its manifest; `tokens` what all of it took.
    """

    id: str
    created: str
    run: str
    weights: str
    root: str | None
    method: str
    tier: Tier
    settings: Mapping[str, Any]
    margins: Margins
    subjects: int
    generator: int
    seeds: tuple[int, ...]
    unlearned: tuple[Mapping[str, float], ...]
    retrained: tuple[Mapping[str, float], ...]
    untouched: tuple[Mapping[str, float], ...]
    tokens: int = 0
    comparisons: tuple[Comparison, ...] = ()
    rows: tuple[Row, ...] = ()
    outcome: Outcome = "inconclusive"
    reasons: tuple[str, ...] = ()
