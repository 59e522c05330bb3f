"""ε̂ from the audit canaries: how much likelier their secrets became, guesses of their coins, and one bound."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from sordino import stats
from sordino.audit.bounds import from_coins
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import estimate
from sordino.canaries import AuditCanary
from sordino.errors import RunError
from sordino.evidence import digest, digest_files
from sordino.records import Example
from sordino.results import AuditPlan, Estimate, Gate, MemorisationLevel, MemorisationPoint, encode
from sordino.train.monitor import levels, read_curve, secret_logprob
from sordino.train.planted import NEW_TOKENS, planted, read_audit_canaries, scored_tokens

__all__ = ["Canaried", "beside", "canaried", "memorisation", "of_candidates"]

_DEFINITION = "canaries/1"


@dataclass(frozen=True, kw_only=True)
class Canaried:
    """What the audit canaries of a run came to: gains (m) and coins (m) of those scored, and the bound.

    `examples` are all of them, as the claim of a private run is about their units.
    """

    gains: np.ndarray
    included: np.ndarray
    bound: Estimate
    examples: tuple[Example, ...]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    gains: list[float | None]


def of_candidates(plan: AuditPlan) -> AuditPlan:
    """The plan of the bound from the candidates, whose attack is `reference` where canaries give the declared one."""
    return replace(plan, headline=AuditPlan().headline) if plan.headline == "canaries" else plan


def canaried(collector: Collector, examples: Sequence[Example], plan: AuditPlan) -> Canaried | None:
    """Score the audit canaries among `examples` and guess their coins; None where none were planted.

    A canary's score is the mean ln p of its secret's tokens (of a design without: of all it has) less that under the
    untuned model. The share of guesses, δ and the confidence are the plan's, fixed before training.
    Source: Steinke, Nasr and Jagielski 2023, theorem 5.2. Raises `RunError` where what is in private/ is damaged.
    """
    coins = read_audit_canaries(collector.run) if collector.subject.trained_here else []
    if not coins:
        return None
    named = {example.record.id: example for example in examples}
    mine = tuple(named[c.id] for c in coins)
    gains, included = _gains(collector, coins, mine), np.array([c.included for c in coins])
    scored = np.isfinite(gains)
    bound = from_coins(gains[scored], included[scored], plan, f"{coins[0].design} canaries")[0]
    if not scored.all():
        bound = replace(bound, method=f"{bound.method}; {int((~scored).sum())} more have no token to score")
    return Canaried(gains=gains[scored], included=included[scored], bound=bound, examples=mine)


def _gains(collector: Collector, coins: Sequence[AuditCanary], examples: tuple[Example, ...]) -> np.ndarray:
    """Computed once and kept in private/."""
    rows = collector.run.private / NEW_TOKENS
    new = coins[0].design == "new-token"
    if new and not rows.exists():
        raise RunError(f"The rows of the new tokens, {rows}, are missing.", "Restore the file, or train again.")
    spans = (part for c in coins for part in (c.id, c.design, c.before, c.secret))
    key = digest(collector.key(examples, "tuned", _DEFINITION, digest_files([rows]) if new else "", *spans))
    path = collector.run.private / "exposures" / f"{key}.json"
    if not path.exists():
        found = _measured(collector, coins, examples)
        collector.forwards += 2
        kept = _Kept(gains=[None if np.isnan(g) else float(g) for g in found])
        collector.run.write_private(f"exposures/{key}.json", encode(kept))
    kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    return np.array([np.nan if g is None else g for g in kept.gains])


def _measured(collector: Collector, coins: Sequence[AuditCanary], examples: tuple[Example, ...]) -> np.ndarray:
    from sordino.model.methods.extra_rows import first_new

    subject: Any = collector.subject
    first = first_new(subject.tuned.module)
    tokens = [
        scored_tokens(e.record, c, collector.serializer, first) for c, e in zip(coins, examples, strict=True)
    ]  # fmt: skip
    tick = collector.ticker("audit canaries", 2)
    logprobs = []
    for name, model in (("tuned", subject.tuned), ("initial", subject.untuned)):
        with _with_rows(collector, model, name, sum(c.design == "new-token" for c in coins)):
            logprobs.append(secret_logprob(model, tokens))
        tick(1)
    after, before = logprobs
    return np.asarray(after - before)


def _with_rows(collector: Collector, model: Any, name: str, count: int) -> AbstractContextManager[Any]:
    """`model` with the rows of the new tokens as they became ("tuned") or as they were ("initial")."""
    if not count:
        return nullcontext()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sordino.model.methods.extra_rows import extra_rows, width_of

    path = collector.run.private / NEW_TOKENS
    try:
        rows = load_file(str(path))[name]
    except (OSError, KeyError, SafetensorError) as error:
        raise RunError(f"The rows of the new tokens, {path}, are damaged: {error}.", "Restore the file.") from error
    wanted = (count, width_of(model.module))
    if tuple(rows.shape) != wanted:
        message = f"The rows of the new tokens, {path}, are {tuple(rows.shape)}, not {wanted}."
        raise RunError(message, "Restore the file, or train again.")
    return extra_rows(model.module, rows.to(model.device))


def beside(gate: Gate, other: Estimate | None, what: str) -> Gate:
    """Gate (e) with the bound beside it that was not declared, and so decides nothing."""
    if other is None:
        return gate
    words = f" Not the declared bound, from {what}: ε ≥ {other.value or 0:.2f} ({other.method})."
    return replace(gate, finding=gate.finding + words)


def memorisation(collector: Collector, confidence: float) -> tuple[MemorisationPoint, ...]:
    """The curve of the monitor as means with intervals; empty where there was none."""
    if not collector.subject.trained_here:
        return ()
    canaries = planted(collector.run)
    points = []
    for step, gains in read_curve(collector.run, canaries):
        found = tuple(
            MemorisationLevel(
                kind=kind,
                repetitions=repetitions,
                included=estimate(stats.mean_interval(inside, confidence=confidence)),
                left_out=estimate(stats.mean_interval(outside, confidence=confidence)),
            )
            for kind, repetitions, inside, outside in levels(canaries, gains)
        )
        points.append(MemorisationPoint(step=step, levels=found))
    return tuple(points)
