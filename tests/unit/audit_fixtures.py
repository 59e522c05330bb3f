"""Attacks, signals and plans for tests of the audit: scores given by hand, no model anywhere."""

from collections.abc import Mapping

import numpy as np

from sordino.attacks.base import Attack
from sordino.audit.evaluate import Evidence, Outcome, evaluate
from sordino.records import Example, Message, Record
from sordino.results import AuditPlan, Estimate
from sordino.signals import Signals, Statistics


def figure(value: float | None, low: float, high: float) -> Estimate:
    """An estimate made up for a test."""
    return Estimate(value=value, low=low, high=high, n=50, method="made up")


def blank_signals(count: int) -> Signals:
    """Records without a single token: made-up attacks do not look."""
    none = {name: np.zeros(0, np.float32) for name in ("logprob", "mean", "variance")}
    none |= {name: np.zeros(0, np.int32) for name in ("position", "token", "rank", "top")}
    return Signals(
        record_ids=tuple(f"r{i}" for i in range(count)),
        texts=("",) * count,
        statistics=Statistics(offsets=np.zeros(count + 1, np.int64), **none),
    )


def candidates(member: np.ndarray, group: np.ndarray) -> list[Example]:
    """Audit candidates with these coins."""
    return [
        Example(
            record=Record(id=f"r{i}", unit=f"u{g}", messages=(Message("text", f"text {i}"),)),
            role="candidate", included=bool(m), group=f"u{g}",
        )
        for i, (m, g) in enumerate(zip(member, group, strict=True))
    ]  # fmt: skip


def judge_scores(
    scores: Mapping[str, np.ndarray],
    member: np.ndarray,
    plan: AuditPlan,
    *,
    group: np.ndarray | None = None,
    controls: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Outcome:
    """`evaluate` on attacks whose scores, under the tuned and the untuned model, are given."""
    count = len(member)
    tuned, untuned = blank_signals(count), blank_signals(count)
    nothing = np.zeros(count)

    def attack(name: str) -> Attack:
        def run(signals: Signals) -> np.ndarray:
            """Return what the test says."""
            return scores[name] if signals.statistics is tuned.statistics else (controls or {}).get(name, nothing)

        return Attack(
            name=name, family="membership", run=run, paper="-", access="log-probabilities", base=False, views={}
        )

    evidence = Evidence.of(candidates(member, np.arange(count) if group is None else group), seed)
    return evaluate({name: attack(name) for name in scores}, tuned, untuned, evidence, plan, seed)
