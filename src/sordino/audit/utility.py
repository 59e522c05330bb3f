"""What a model is good for: its figures on validation records, tuned and untuned."""

import numpy as np

from sordino import stats
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import estimate
from sordino.records import Split
from sordino.results import AuditPlan, Estimate
from sordino.signals import Signals

__all__ = ["utility"]


def utility(collector: Collector, placed: Split, plan: AuditPlan) -> dict[str, Estimate]:
    """Perplexity, or of a classifier accuracy and loss, and the same of the untuned model; {} without such records."""
    # What is told of a model trained elsewhere about its known non-members is no measure of what it is good for.
    if not placed.validation or not collector.subject.trained_here:
        return {}
    tuned, base = collector.signals(placed.validation, {})
    assert base is not None  # a run of our own has it
    _, group = np.unique([e.group for e in placed.validation], return_inverse=True)

    measure = _class_utility if collector.subject.task == "classification" else _language_utility
    after, before = (measure(signals, group, plan.confidence) for signals in (tuned, base))
    return after | {f"base_{name}": found for name, found in before.items()}


def _language_utility(signals: Signals, group: np.ndarray, confidence: float) -> dict[str, Estimate]:
    rows = signals.logprob
    return {"perplexity": estimate(stats.perplexity_interval(-rows.sum(), rows.counts, group, confidence))}


def _class_utility(signals: Signals, group: np.ndarray, confidence: float) -> dict[str, Estimate]:
    s, scored = signals.statistics, signals.logprob.counts > 0
    hits = np.asarray(s.top) == s.token
    return {
        "accuracy": estimate(stats.korn_graubard(hits, group[scored], confidence)),
        "loss": estimate(stats.mean_interval(signals.nll[scored], group[scored], confidence)),
    }
