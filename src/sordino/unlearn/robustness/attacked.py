"""What every attack on a forgetting starts from: the run that has forgotten, samples of records, and their losses."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from sordino import stats
from sordino.collect import collect
from sordino.config import RunConfig
from sordino.errors import UnlearningError
from sordino.model import Model, load_tokenizer, restore, weights_digest
from sordino.records import Example, Record
from sordino.results import Estimate
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.signals import Ragged, Statistics
from sordino.train.reading import serializer_for
from sordino.unlearn.base import Deletion, Say, Ticker

__all__ = ["MOST", "Attacked", "Sample", "Streams", "area", "auc_of", "difference", "estimated", "loss_of"]


MOST = 100
"""Records of a set at most: AUCs of more are sharper by less than what reading them costs."""


class Streams:
    """Which random numbers are for what: with the seed of an attack, the seed of numpy's generator (PCG64)."""

    SAMPLE, SPLIT, CONTROL = range(101, 104)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Records of one set as tokens (n), and numbers that tell whose each is (n)."""

    examples: tuple[Example, ...]
    tokens: tuple[Tokens, ...]
    group: Int[np.ndarray, " n"]

    def chosen(self, places: Sequence[int]) -> "Sample":
        """Some of them, in the order given."""
        return Sample(
            examples=tuple(self.examples[i] for i in places),
            tokens=tuple(self.tokens[i] for i in places),
            group=self.group[np.asarray(places, dtype=np.int64)],
        )

    def __len__(self) -> int:
        """How many there are."""
        return len(self.examples)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A run that has forgotten, and what it was to forget.

    Work that is needed on the way is done in `folder`, which is private. Of each set at most `most` records take part,
    drawn by the generator of `seed`. `spent` counts scored tokens, forwards and backwards and forwards only.
    """

    child: Run
    deletion: Deletion
    folder: Path
    seed: int = 0
    most: int = MOST
    say: Say = lambda text: None
    ticker: Ticker = lambda name, total: lambda done: None
    spent: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "forwards": 0})

    def __post_init__(self) -> None:
        """Raise `UnlearningError` for a classifier, an empty set, or a run whose weights are not its own."""
        if self.config.task != "causal-lm":
            message = f"The run's task is {self.config.task}; robustness is measured by the likelihood of texts."
            raise UnlearningError(message, "Verify it by its scores alone.")
        if weights_digest(self.child.weights) != self.child.card.model.get("weights"):
            message = "The weights of the run that has forgotten are not those that its card names."
            raise UnlearningError(message, "Carry the request out again: `sordino unlearn run`.")
        if self.most < 2 or self.seed < 0:
            raise UnlearningError(f"most is {self.most} and seed {self.seed}.", "Allowed: from 2, and from 0.")

    @property
    def config(self) -> RunConfig:
        """The configuration of both runs."""
        return self.deletion.config

    def load(self, run: Run | None = None) -> Model:
        """The model that has forgotten, or that of another `run` of the same configuration."""
        return restore(self.config.model, self.config.method, (run or self.child).weights)

    @cached_property
    def serializer(self) -> Serializer:
        """How records become tokens in both runs."""
        tokenizer = load_tokenizer(self.config.model)
        return serializer_for(self.config, tokenizer, int(self.child.card.model["context"]))

    @cached_property
    def forget(self) -> Sample:
        """Records that were to be forgotten."""
        return self._sample("forget", self.deletion.forget)

    @cached_property
    def never(self) -> Sample:
        """Records that were never trained on."""
        return self._sample("never trained on", self.deletion.never)

    @cached_property
    def retain(self) -> Sample:
        """Records that were trained on and stay."""
        return self._sample("to retain", self.deletion.retain)

    def _sample(self, what: str, examples: Sequence[Example]) -> Sample:
        plain = [e for e in examples if e.role != "canary"]
        if len(plain) > self.most:
            rng = np.random.default_rng([self.seed, Streams.SAMPLE])
            plain = [plain[i] for i in sorted(rng.choice(len(plain), self.most, replace=False).tolist())]
        pairs = [(e, t) for e in plain if (t := self.encode(e.record)).target[1:].any()]
        if not pairs:
            message = f"No record {what} has a token to score."
            raise UnlearningError(message, "There is nothing to compare with: hold out more units by coin.")
        numbers = {unit: n for n, unit in enumerate(dict.fromkeys(e.record.unit for e, _ in pairs))}
        group = np.array([numbers[e.record.unit] for e, _ in pairs], dtype=np.int64)
        return Sample(examples=tuple(e for e, _ in pairs), tokens=tuple(t for _, t in pairs), group=group)

    def encode(self, record: Record) -> Tokens:
        """A record as tokens; unlike in training, one that is too long is never refused."""
        serializer = self.serializer
        if serializer.too_long == "refuse":
            serializer = dataclasses.replace(serializer, too_long="truncate")
        return serializer.encode(record)

    def read(self, model: Model, tokens: Sequence[Tokens]) -> Statistics:
        """One pass of `model` over `tokens`, counted."""
        self.spent["forwards"] += sum(int(t.target[1:].sum()) for t in tokens)
        return collect(model, tokens)

    def losses(self, model: Model, *samples: Sample) -> list[Float[np.ndarray, " n"]]:
        """The mean loss of each record, in nats a token, of each sample; one pass."""
        found = loss_of(self.read(model, [t for sample in samples for t in sample.tokens]))
        edges = np.cumsum([len(sample) for sample in samples])[:-1]
        return list(np.split(found, edges))

    @cached_property
    def plain(self) -> dict[str, tuple[float, Bool[np.ndarray, " T"]]]:
        """What the model that has forgotten says of records to forget and never trained on, by their ids; one pass.

        The mean loss, in nats a token, and which of the scored tokens were the likeliest.
        """
        samples = (self.forget, self.never)
        found = self.read(self.load(), [t for sample in samples for t in sample.tokens])
        losses, hits = loss_of(found), np.split(found.rank == 0, found.offsets[1:-1])
        ids = [e.record.id for sample in samples for e in sample.examples]
        return {name: (float(loss), hit) for name, loss, hit in zip(ids, losses, hits, strict=True)}

    def plain_loss(self, sample: Sample) -> Float[np.ndarray, " n"]:
        """The loss of each record of a part of those to forget, or never trained on."""
        return np.array([self.plain[e.record.id][0] for e in sample.examples])

    def told(self, before: Mapping[str, int]) -> str:
        """What was spent since, as words for a note."""
        tokens, forwards = (self.spent[name] - before[name] for name in ("tokens", "forwards"))
        trained = f"{tokens:,} tokens trained on, " if tokens else ""
        return f"cost: {trained}{forwards:,} tokens read"


def loss_of(statistics: Statistics) -> Float[np.ndarray, " records"]:
    """The mean loss of each record, in nats a token; raises `UnlearningError` where one is no number."""
    found: np.ndarray = -Ragged(statistics.logprob, statistics.offsets).mean()
    if not np.isfinite(found).all():
        message = f"{int((~np.isfinite(found)).sum())} of {len(found)} losses are no numbers."
        raise UnlearningError(message, "What is no number is no evidence: is the model damaged?")
    return found


def auc_of(
    inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"], ours: Sample, theirs: Sample
) -> stats.Interval:
    """P(a record of `ours` has a higher score than one of `theirs`), DeLong's interval clustered by unit."""
    return stats.delong(np.concatenate([inside, outside]), *labels(ours, theirs), scale="logit")


def area(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """The same without its interval."""
    return stats.auc(np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside))


def labels(ours: Sample, theirs: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Which records are members, and whose each is."""
    member = np.arange(len(ours) + len(theirs)) < len(ours)
    return member, np.concatenate([ours.group, theirs.group + ours.group.max(initial=0) + 1])


def estimated(interval: stats.Interval) -> Estimate:
    """An interval as it is written down."""
    return Estimate(**dataclasses.asdict(interval))


def difference(first: stats.Interval, second: stats.Interval) -> Estimate:
    """`first` − `second` of two figures on different models, from their intervals.

    The distances of the limits are added in squares (MOVER: Zou & Donner 2008, Statistics in Medicine 27, "Construction
    of confidence limits about effect measures: a general approach"), as for independent figures: where both are beside
    the same records, which makes them alike, the interval is too wide rather than too narrow.
    """
    assert first.value is not None and second.value is not None  # an AUC of records that are there
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Estimate(
        value=value,
        low=max(-1.0, float(value - below)),
        high=min(1.0, float(value + above)),
        n=min(first.n, second.n),
        method=f"difference of AUCs, MOVER on: {first.method}",
    )
