"""What every membership attack must hold, whoever wrote it, and synthetic signals to hold it against."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from sordino.attacks.base import Attack, check, offered
from sordino.attacks.complexity import compressed_sizes
from sordino.signals import STATISTICS, Generated, Known, Ragged, Shadows, Signals, Statistics
from sordino.stats import auc

RECORDS, VOCABULARY = 200, 24
LABELS = {"label", "labels", "member", "members", "included", "y", "truth", "role", "coins", "target"}
MEMBER = np.arange(RECORDS) % 2 == 0


def statistics(logits, tokens, lengths):
    """Statistics (the definitions, plainly) of `logits` (N, V) that predict `tokens` (N)."""
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own, mean = logp[np.arange(len(tokens)), tokens], (np.exp(logp) * logp).sum(axis=1)
    return Statistics(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        position=np.concatenate([np.arange(1, n + 1) for n in lengths]).astype(np.int32),
        token=tokens.astype(np.int32),
        logprob=own,
        mean=mean,
        variance=(np.exp(logp) * (logp - mean[:, None]) ** 2).sum(axis=1),
        rank=(logp > own[:, None]).sum(axis=1).astype(np.int32),
        top=logp.argmax(axis=1).astype(np.int32),
        others=(np.exp(logp) * np.log1p(-np.exp(logp))).sum(axis=1) - np.exp(own) * np.log1p(-np.exp(own)),
    )


def generated(tokens, lengths, share, seed):
    """What a model writes that gets each word of a record right with probability `share` (records)."""
    rng, starts = np.random.default_rng([seed, 99]), np.concatenate([[0], np.cumsum(lengths)])
    true, samples = [], []
    for record, count in enumerate(lengths):
        own = tokens[starts[record] : starts[record] + count]
        true.append(" ".join(f"w{t}" for t in own))
        right = rng.random((5, count)) < share[record]
        drawn = np.where(right, own, rng.integers(0, 10 * VOCABULARY, (5, count)))
        samples.append(tuple(" ".join(f"w{t}" for t in row) for row in drawn))
    return Generated(prompts=["so"] * len(true), remainders=true, samples=samples, greedy=[s[0] for s in samples])


def shadows(base_nll, member_gain, seed, count=8) -> Shadows:
    """Shadow models that know the records they were trained on better by `member_gain` nats a token (records)."""
    rng = np.random.default_rng([seed, 7])
    included = rng.random((count, len(base_nll))) < 0.5
    noise = 0.05 * rng.normal(size=included.shape)
    return Shadows(nll=np.maximum(base_nll + noise - included * member_gain, 0.01), included=included)


def combined(signals: Signals) -> dict:
    """Scores of two attacks (records, 2), as those get them that combine the others."""
    columns = [-signals.nll, signals.reference.nll - signals.nll] if signals.base else [-signals.nll] * 2
    return {"scores": np.stack(columns, axis=1)}


def of_weights(signals: Signals) -> dict:
    """What an adversary with the weights measures, were gradients as large as losses are: mean ln p of the tokens."""
    loss = signals.nll
    return {"gradients": loss, "tuned_gradients": loss, "one_step": np.stack([loss, loss - 0.1 * loss**2], axis=1)}


def similarity(signals: Signals, surrogate: Signals) -> dict:
    """Moments (see the input) of a similarity that is 1 where the true token is the likeliest, else falls."""
    theirs, ours = (-0.1 * np.asarray(one.statistics.rank, np.float64) for one in (signals, surrogate))
    logprob = np.asarray(surrogate.statistics.logprob, np.float64)
    columns = (theirs, ours, ours**2, logprob, ours * logprob)
    return {"similarity": np.stack([Ragged(c, signals.statistics.offsets).mean() for c in columns], axis=1)}


def rejected(signals: Signals, moved, seed: int) -> dict:
    """ln p of answers that were liked less, which tuning made less likely by `moved` nats for members."""
    counts, rng = signals.logprob.counts, np.random.default_rng([seed, 13])
    base = np.where(counts > 0, -3.0 * counts + rng.normal(size=len(counts)), np.nan)
    noise = 0 if moved is None else 0.5 * np.random.default_rng([seed, 14]).normal(size=len(counts))
    return {"rejected": base + noise - (moved or 0) * np.resize(MEMBER, len(counts))}


def other_texts(signals: Signals, base: Signals, seed: int) -> dict:
    """What models say of neighbours, and of records after others: nothing that they learned by heart is in those.

    Neighbours (records, 4) are half a nat a token harder than a record is for the base. Before a record stand other
    records (records, 2): after non-members a model is as sure as its base, after members as it is itself.
    """
    rng, before, own = np.random.default_rng([seed, 5]), base.nll, signals.nll

    def near(nll, *columns):
        return nll.reshape(-1, *[1] * len(columns)) + 0.02 * rng.normal(size=(len(nll), *columns))

    return {
        "neighbours": near(before + 0.5, 4),
        "self_prompt": np.concatenate([near(before, 1), near(before + 0.5, 4)], axis=1),
        "prefixes": np.stack([-near(before), -own], axis=1),
        "member_prefixes": np.stack([-near(own), -own], axis=1),
    }


def synthetic(gain: float, seed: int = 0, lengths=None, *, known: bool = True) -> Signals:
    """Signals of a base model and of one tuned on `MEMBER` records, whose true tokens gained `gain` nats.

    With gain 0 members and non-members are alike: the tuned model moved, but at random. Views of a
    record (lower case and the like) are texts that nothing was tuned on. Every check asks for the same few, so they
    are made once, and nobody can write to them.
    """
    made = _synthetic(float(gain), seed, None if lengths is None else tuple(map(int, lengths)), known)
    _seal(made)
    return made


def _seal(value: object) -> None:
    """Let no array in `value` be written to."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif is_dataclass(value):
        for field in fields(value):
            _seal(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            _seal(part)


@cache
def _synthetic(gain: float, seed: int, lengths: tuple[int, ...] | None, known: bool) -> Signals:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(30, 50, RECORDS) if lengths is None else np.asarray(lengths)
    total, rows = int(lengths.sum()), np.repeat(np.arange(len(lengths)), lengths)
    tokens, texts = rng.integers(0, VOCABULARY, total), []
    for count in lengths:
        texts.append("".join(map(chr, rng.integers(97, 123, 4 * int(count)))))
    names = tuple(f"record-{i}" for i in range(len(lengths)))

    def tuned(base, gained):
        moved = base + 0.3 * rng.normal(size=base.shape)
        moved[np.arange(len(base)), tokens] += gained * MEMBER[rows]
        return moved

    base = 1.5 * rng.normal(size=(total, VOCABULARY))
    views = {}
    for name in ("lowercase",):
        bare = statistics(tuned(1.5 * rng.normal(size=base.shape), 0.0), tokens, lengths)
        views[name] = Signals(record_ids=names, texts=[text.lower() for text in texts], statistics=bare)
    inside = np.resize(MEMBER, len(lengths))
    before, after = (generated(tokens, lengths, 0.2 + 0.2 * g * inside, seed) for g in (0.0, gain))
    reference = Signals(
        record_ids=names, texts=texts, statistics=statistics(base, tokens, lengths), views=views, generated=before
    )
    made = statistics(tuned(base, gain), tokens, lengths)
    # Two records of one label make a unit.
    units = tuple(f"unit-{2 * (i // 4) + i % 2}" for i in range(len(lengths)))
    # A shadow learns of its own records what the target learned of its.
    rise = Ragged(np.asarray(made.logprob) - reference.statistics.logprob, made.offsets).mean()
    own = np.full(len(lengths), max(0.0, float(np.nanmean(rise[inside]))) if gain else 0.0)
    extra = {"units": units, "shadows": shadows(np.nan_to_num(reference.nll, nan=1.0), own, seed)}
    reference = replace(reference, **extra)
    signals = Signals(
        record_ids=names, texts=texts, statistics=made, base=reference, views=views, generated=after, **extra
    )
    sizes = {"compressed": compressed_sizes(texts)}
    signals, reference = (
        replace(
            s,
            measured={
                **combined(s),
                **sizes,
                **of_weights(s),
                **similarity(s, reference),
                **rejected(s, moved, seed),
                **other_texts(s, reference, seed),
            },
        )
        for s, moved in ((signals, gain), (reference, None))
    )
    signals = replace(signals, base=reference)
    if not known:
        return signals
    other = _synthetic(gain, seed + 1000, None, False)
    told = Known(signals=other, member=MEMBER)
    untold = Known(signals=replace(other.base, base=other.base), member=MEMBER)
    return replace(signals, known=told, base=replace(reference, known=untold))


def select(signals: Signals, chosen) -> Signals:
    """The signals of some records, with their base and their views."""
    return Signals(
        record_ids=[signals.record_ids[i] for i in chosen],
        texts=[signals.texts[i] for i in chosen],
        statistics=signals.statistics.select(chosen),
        base=None if signals.base is None else select(signals.base, chosen),
        views={name: select(view, chosen) for name, view in signals.views.items()},
        units=[signals.units[i] for i in chosen] if signals.units else (),
        shadows=signals.shadows and signals.shadows.select(chosen),
        known=signals.known,
        measured={name: rows[list(chosen)] for name, rows in signals.measured.items()},
        generated=signals.generated
        and Generated(**{f.name: [getattr(signals.generated, f.name)[i] for i in chosen] for f in fields(Generated)}),
    )


def given(signals: Signals, attack: Attack) -> Signals:
    """Only what the attack has said that it needs."""
    missing = set(attack.views) - set(signals.views)
    views = {name: signals.views[name] for name in attack.views if name not in missing}
    # A view nobody here has heard of is, to the model, one more text that it was not tuned on.
    views |= {name: signals.views["lowercase"] for name in missing}
    return offered(attack, replace(signals, views=views))


def scores(attack: Attack, signals: Signals):
    """The attack's checked scores on what it has declared."""
    allowed = given(signals, attack)
    return check(allowed, attack(allowed), attack)


def has_one_name(attack: Attack) -> None:
    """File, function and attack have one name, and the file is short."""
    path = Path(sys.modules[attack.run.__module__].__file__)
    assert path.stem == attack.run.__name__ == attack.name
    assert attack.name.isidentifier()
    assert attack.name == attack.name.lower()
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def says_what_it_is(attack: Attack) -> None:
    """A first sentence for the report, a paper with its year, and what the adversary must see."""
    assert attack.summary.endswith(".")
    assert 20 <= len(attack.summary) <= 200
    assert any(str(year) in attack.paper for year in range(2015, 2035))
    assert attack.access


def sees_no_labels(attack: Attack) -> None:
    """Signals go in, keyword parameters with defaults tune it, and none of them is a label."""
    first, *rest = inspect.signature(attack.run).parameters.values()
    assert first.annotation in (Signals, "Signals")
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)
    assert not LABELS & {p.name for p in (first, *rest)}
    assert not LABELS & {f.name for f in fields(Signals)}


def gives_one_float_a_record(attack: Attack) -> None:
    """float64 (n,), NaN for records without tokens and for no others, the same every time."""
    lengths = np.array([0, 1, 2, 0, 40, 7, 0])
    signals = synthetic(1.0, lengths=lengths)
    raw = attack(given(signals, attack))
    assert (raw.dtype, raw.shape) == (np.dtype(np.float64), (len(lengths),))
    found = scores(attack, signals)
    assert np.isnan(found).tolist() == (lengths == 0).tolist()
    np.testing.assert_array_equal(scores(attack, signals), found)


def stays_finite(attack: Attack) -> None:
    """A record known by heart, and one that is as good as impossible, have finite scores too."""
    signals = synthetic(1.0, lengths=[20, 20, 20])
    s = signals.statistics
    logprob, mean, variance, rank = (x.copy() for x in (s.logprob, s.mean, s.variance, s.rank))
    logprob[:20] = mean[:20] = variance[:20] = 0.0
    rank[:20] = 0
    logprob[20:40], rank[20:40] = -1e4, VOCABULARY - 1
    extreme = replace(s, logprob=logprob, mean=mean, variance=variance, rank=rank)
    assert np.isfinite(scores(attack, replace(signals, statistics=extreme))).all()


def keeps_order(attack: Attack) -> None:
    """Records permuted, scores permuted; and a record's score does not depend on its company."""
    signals = synthetic(1.0)
    order = np.random.default_rng(1).permutation(RECORDS).tolist()
    found = scores(attack, signals)
    np.testing.assert_allclose(scores(attack, select(signals, order)), found[order], rtol=1e-9)
    if attack.joint:
        return
    alone = [7] if attack.level == "record" else [5, 7]  # a whole unit
    np.testing.assert_allclose(scores(attack, select(signals, alone)), found[alone], rtol=1e-9)


def finds_members(attack: Attack) -> None:
    """Positive control: members whose tokens became likelier score higher."""
    assert auc(scores(attack, synthetic(2.0)), MEMBER) >= 0.8


def reads_what_it_says(attack: Attack) -> None:
    """Statistics that it has not declared may be unknown: NaN or −1, as a server leaves them."""
    signals = synthetic(1.0)

    def bare(one: Signals) -> Signals:
        s = one.statistics
        gone = {n: np.full_like(getattr(s, n), np.nan if n in ("logprob", "mean", "variance") else -1)
                for n in set(STATISTICS) - attack.needs}  # fmt: skip
        views = {name: bare(view) for name, view in one.views.items()}
        return replace(one, statistics=replace(s, **gone), views=views, base=one.base and bare(one.base))

    np.testing.assert_array_equal(scores(attack, bare(signals)), scores(attack, signals))


def by_chance(value: float) -> bool:
    """Whether an AUC is within 4 standard errors of ½ (exact under the null: (n + 1)/(12 n₁ n₀))."""
    return abs(value - 0.5) <= 4 * np.sqrt((RECORDS + 1) / (12 * MEMBER.sum() * (~MEMBER).sum()))


def finds_nothing_where_nothing_is(attack: Attack) -> None:
    """Negative controls: a model that learned nothing of members, and an untuned one."""
    for seed in (1, 2, 3):
        signals = synthetic(0.0, seed)
        assert by_chance(auc(scores(attack, signals), MEMBER))
        untuned = replace(signals.base, base=signals.base, views=signals.views)
        assert by_chance(auc(scores(attack, untuned), MEMBER))


MEMBERSHIP_CHECKS = (
    has_one_name,
    says_what_it_is,
    sees_no_labels,
    gives_one_float_a_record,
    stays_finite,
    keeps_order,
    reads_what_it_says,
    finds_members,
    finds_nothing_where_nothing_is,
)
