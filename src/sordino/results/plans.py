"""What is fixed before training: the plan of an audit and its budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sordino.errors import ConfigError

__all__ = [
    "AuditPlan",
    "Decoding",
    "GeneratedPlan",
    "InputPlan",
    "NearBoundPlan",
    "PersonalPlan",
    "SamplingPlan",
    "SecretPlan",
    "SoftPromptPlan",
]


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
    A soft prompt has `soft_tokens` and is trained in `soft_steps`; recovery fine-tunes on `recovery_people` known
    people in `recovery_steps`.
    """

    mentions: int = 100
    candidates: int = 100
    samples: int = 64
    texts: int = 256
    text_tokens: int = 128
    regions: tuple[str, ...] = ("US",)
    soft_tokens: int = 20
    soft_steps: int = 80
    recovery_people: int = 10
    recovery_steps: int = 40


@dataclass(frozen=True, kw_only=True)
class NearBoundPlan:
    """The budget of `near_bound`: around one passage of at most `records` on either side it searches with a `beam`.

    `distance` is how far a text may be from the passage: a share of its tokens, at least one.
    """

    records: int = 50
    beam: int = 16
    distance: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SecretPlan:
    """Secrets of one `kind` whose `format` the user knows, so that their exposure can be told.

    They are what `pattern`, a regular expression, finds (its group, where it has one), else what is labelled as
    `kind` (data.spans), else what detectors find of it. `lists` names the files of word lists in the format. At most
    `records` secrets are ranked of records that were trained on, and as many of others.
    """

    kind: str
    format: str
    lists: Mapping[str, str] = field(default_factory=dict)
    pattern: str | None = None
    records: int = 50


@dataclass(frozen=True, kw_only=True)
class GeneratedPlan:
    """The budget of `generate_and_rank`: it draws so many `texts` by each way of asking, of at most `tokens` each."""

    texts: int = 64
    tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class SoftPromptPlan:
    """The budget of `soft_prompt`: at most `records` on either side are asked about after a prompt of `tokens` vectors.

    It is trained in `steps` at `learning_rate`; `smoothing` (α) is the weight of the loss of each passage's 5 tokens
    of highest loss, 0 for none.
    """

    tokens: int = 20
    steps: int = 80
    learning_rate: float = 1e-2
    smoothing: float = 0.7
    records: int = 100


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
    what one canary's exact rank may cost; `sampling` the grid of extraction by sampling, `personal`,
    `near_bound` and `generated` budgets of attacks; `require` what the audit is judged by; `suite` which attacks are
    made ("quick", "full" or "all"), `inputs` what they may use, and `secrets` of which formats secrets are ranked:
    these three alone may be chosen anew when an audit is made, for all that is made is paid for.
    `near_bound` and `soft_prompt` budgets of attacks; `require` the requirements the audit is judged by; `suite` which
    attacks are made ("quick", "full" or "all") and `inputs` what they may use: these two alone may be chosen anew when
    an audit is made, for all attacks that are made are paid for.
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
    near_bound: NearBoundPlan = NearBoundPlan()
    secrets: tuple[SecretPlan, ...] = ()
    generated: GeneratedPlan = GeneratedPlan()
    soft_prompt: SoftPromptPlan = SoftPromptPlan()
