"""The schemas on disk: what a run is (`RunCard`) and what an audit found (`AuditReport`).

Frozen dataclasses of plain values, written and read by msgspec as JSON. They hold aggregates only:
no private text and no per-record score is ever part of them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from sordino.errors import ConfigError, RunError

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
    "InputPlan",
    "MemorisationLevel",
    "MemorisationPoint",
    "Notice",
    "PersonReport",
    "PersonRow",
    "PersonalFinding",
    "PersonalPlan",
    "PromptReport",
    "Requirement",
    "RunCard",
    "SamplingPlan",
    "Verdict",
    "decode",
    "encode",
]

SCHEMA = 1

# What `stats.UNBOUNDED` is: JSON has no infinity. Not imported, so that schemas do not load SciPy.
UNBOUNDED = sys.float_info.max

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval; no bare float leaves the library.

    `value` is None when the sample cannot resolve the figure: `needs` then says how many
    non-members (or whatever `method` counts) it would take. `n` is the number of independent
    observations behind the figure, `confidence` the level of the two-sided interval.
    """

    value: float | None
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    needs: int | None = None

    def __str__(self) -> str:
        """The figure as a person reads it: `0.874 [0.83, 0.91]`."""
        if self.value is None:
            need = f": needs {self.needs:,}" if self.needs else ""
            return f"not resolvable{need} (n={self.n:,})"
        low, high = (f"{bound:.3g}" if abs(bound) < UNBOUNDED else "∞" for bound in (self.low, self.high))
        return f"{self.value:.3g} [{low.replace('∞', '-∞')}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that happened to the data and is counted, never silent."""

    kind: str
    count: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are drawn. A `temperature` of 0 is greedy decoding; `top_k` None and `top_p` 1 leave all tokens."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Raise `ConfigError` where no sampler works so."""
        rules = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1 token, or none given"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a probability above 0, at most 1"),
        )
        for name, value, good, allowed in rules:
            if not good:
                raise ConfigError(f"The {name} of a decoding is {value!r}.", f"Allowed: {allowed}.")

    def __str__(self) -> str:
        """The decoding as a person reads it: `temperature 0.7, top-k 40`."""
        if self.temperature == 0:
            return "greedy"
        words = [f"temperature {self.temperature:g}"]
        words += [f"top-k {self.top_k}"] if self.top_k is not None else []
        return ", ".join([*words, *([f"top-p {self.top_p:g}"] if self.top_p < 1 else [])])


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """The grid of (n, p)-discoverable extraction: a record is out if `queries` give it with probability `chance`.

    `decodings` are how tokens are drawn, the first one that of the headline figure, for which the model is asked
    `limit` times.
    """

    decodings: tuple[Decoding, ...] = (
        Decoding(),
        Decoding(top_k=40),
        Decoding(top_p=0.95),
        Decoding(temperature=0.7),
        Decoding(temperature=0.3),
    )
    queries: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    limit: int = 1_000
    chance: float = 0.5


@dataclass(frozen=True, kw_only=True)
class PersonalPlan:
    """The budget of attacks on personal data.

    `mentions`: of how many entities, at most, trained on and as many not, it is asked which value stands there, among
    `candidates` in all, or what the model writes there in `samples` continuations. `texts` of `text_tokens` tokens are
    written from nothing and searched. `regions` are the countries whose telephone numbers need no country code.
    """

    mentions: int = 100
    candidates: int = 100
    samples: int = 64
    texts: int = 256
    text_tokens: int = 128
    regions: tuple[str, ...] = ("US",)


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """What attacks may use beyond the model's and its base's statistics of each record.

    `known`: of how many records, at most, the adversary knows that they were trained on, and of as many that they
    were not; none of them is ever judged. `shadows`: how many shadow models are trained; `shadow_kind` "same"
    trains them as the target was, "lora" trains adapters in place of full weights, an approximation, and "auto"
    is "same". `masked_lm`: a masked language model (folder or hub id) that writes neighbours of a record, else its
    base does: `neighbours` of them, each with a share `replaced` of its tokens in spans of `span`.
    `shots`: known records in the prefix of recall. `samples`: continuations drawn for label-only attacks.
    """

    known: int = 500
    shadows: int = 16
    shadow_kind: Literal["auto", "same", "lora"] = "auto"
    masked_lm: str | None = None
    neighbours: int = 10
    replaced: float = 0.3
    span: int = 2
    shots: int = 8
    samples: int = 10


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What is fixed before training, so that no choice can depend on what the audit sees.

    `headline` is the attack of the pre-declared ε̂, or "canaries" where audit canaries give it; `fpr` the
    false-positive rates of TPR figures; `bound` says which ε̂ of one run is computed: "one-run" (of any
    mechanism) or "f-dp" (tighter, and of Gaussian mechanisms only); `guess_share` the share of coins that it
    guesses (half as members, half as not);
    `confidence` of every interval; `delta` of ε̂; `shuffles` of every permutation test;
    `prefix_tokens` and `suffix_tokens` the window of discoverable extraction; `token_forwards`
    what one canary's exact rank may cost; `sampling` the grid of extraction by sampling, `personal` the
    budget of attacks on personal data; `require` the
    requirements the audit is judged by; `suite` which attacks are made ("quick", "full" or "all") and `inputs`
    what they may use: these two alone may be chosen anew when an audit is made, for all attacks that are made
    are paid for.
    """

    headline: str = "reference"
    fpr: tuple[float, ...] = (0.1, 0.01, 0.001)
    bound: Literal["one-run", "f-dp"] = "one-run"
    guess_share: float = 0.2
    confidence: float = 0.95
    delta: float = 1e-5
    shuffles: int = 999
    prefix_tokens: int = 50
    suffix_tokens: int = 50
    token_forwards: int = 150_000
    require: tuple[str, ...] = ()
    suite: Literal["quick", "full", "all"] = "quick"
    inputs: InputPlan = InputPlan()
    sampling: SamplingPlan = SamplingPlan()
    personal: PersonalPlan = PersonalPlan()


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """`run.json`: what was trained, on what, from what, and how it can be repeated.

    `status` "external" is the folder of an audit of a model that Sordino did not train.

    `data` holds the source, the fingerprint and the counts of records and units by role; `model`
    the digests of base weights, adapter and tokenizer; `training` what happened (steps, tokens,
    seconds, losses of the end points); `privacy` what differential privacy is claimed, if any; `notices`
    everything that was merged, cut or left out.
    """

    name: str
    created: str
    status: Literal["prepared", "training", "trained", "external"]
    config: Mapping[str, Any]
    seed: int
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    environment: Mapping[str, str]
    training: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    plan: AuditPlan = AuditPlan()
    parent: str | None = None
    schema: int = SCHEMA


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
class CanaryLevel:
    """Exposure, in bits, of the canaries repeated `repetitions` times in the training data.

    `left_out` has the canaries of the same level whose coin kept them out: the control.
    `exposures` are the included canaries' own, so that a picture can show each one.
    """

    repetitions: int
    included: Estimate
    left_out: Estimate
    exposures: tuple[float, ...]
    left_out_exposures: tuple[float, ...]
    bits: float
    method: str


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
    records out, one row a decoding; `personal` what attacks on personal data found.
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


def encode(value: object) -> bytes:
    """`value` as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes, kind: type[T], source: str) -> T:
    """The JSON `data` as `kind`; raises `RunError`, naming `source`, when it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        message = f"{source} is not a valid {kind.__name__}: {error}."
        raise RunError(message, "Was it written by another version, or edited?") from error
