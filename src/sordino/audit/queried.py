"""Extraction by sampling, judged: how many records come out within how many queries, beside records never seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sordino import stats
from sordino.attacks.base import Attack, Odds, offered
from sordino.audit.inputs import Pair
from sordino.audit.judging import Judge, attempted
from sordino.results import Attempt, AuditPlan, Decoding, Effort, Estimate, SamplingPlan

__all__ = ["Queried", "expected", "out", "queried"]

_LN10 = float(np.log(10))


@dataclass(frozen=True, kw_only=True)
class Queried:
    """What asking comes to: the attack of the headline, the whole grid, and the odds under the models."""

    attempt: Attempt
    effort: tuple[Effort, ...]
    decodings: tuple[Decoding, ...]
    tuned: Odds
    base: Odds | None

    def rows(self, records: Sequence[str]) -> dict[str, Any]:
        """What is kept in private/: of each record log10 of the queries it takes on average, None where it never comes.

        `passage` is where its likeliest passage stands, in tokens from the record's beginning.
        """
        return {
            "records": list(records),
            "decodings": [str(d) for d in self.decodings],
            "log10_queries": [[expected(x) for x in row] for row in self.tuned.logprob.tolist()],
            "base_log10_queries": None
            if self.base is None
            else [[expected(x) for x in row] for row in self.base.logprob.tolist()],
            "passage": np.stack([self.tuned.start, self.tuned.stop], axis=-1).tolist(),
        }


def queried(attack: Attack, pair: Pair, judge: Judge, plan: AuditPlan) -> Queried:
    """Carry out `attack` on both models and count the records that come out.

    A record comes out within n queries under a decoding where they give its likeliest passage with the probability
    that the plan names. The headline is one cell of the grid, which the plan fixes.
    """
    wanted = {"prefix_tokens": plan.prefix_tokens, "suffix_tokens": plan.suffix_tokens}
    wanted = {k: v for k, v in wanted.items() if k in attack.parameters}
    tuned = attack(offered(attack, pair[0]), **wanted)
    base = None if pair[1] is None else attack(offered(attack, pair[1]), **wanted)
    decodings, possible, grid = pair[0].sampled.decodings, tuned.tried > 0, plan.sampling
    first = {"decoding": str(decodings[0]), "queries": grid.limit, "chance": grid.chance}
    notes = [
        f"A record counts if {grid.limit:,} {'query' if grid.limit == 1 else 'queries'} ({decodings[0]}) give a "
        f"passage of it with probability {grid.chance:g} or more: its likeliest passage, of "
        f"{int(tuned.tried.sum()):,} tried. No text was drawn for this."
    ]
    if not possible.all():
        notes.append(f"{int((~possible).sum())} records are too short to be tried.")
    attempt = attempted(
        attack,
        parameters={**attack.parameters, **wanted, **first},
        estimates=judge.shares(out(tuned.logprob[:, 0], grid.limit, grid.chance), possible),
        control={} if base is None else judge.shares(out(base.logprob[:, 0], grid.limit, grid.chance), possible),
        records=int(possible.sum()),
        coins=judge.coins(possible),
        notes=tuple(notes),
    )
    effort = tuple(_effort(decoding, (tuned, base), i, judge, grid) for i, decoding in enumerate(decodings))
    return Queried(attempt=attempt, effort=effort, decodings=decodings, tuned=tuned, base=base)


def out(log_p: np.ndarray | float, queries: int, chance: float) -> np.ndarray:
    """Whether so many queries give, with probability `chance` or more, what one gives with e^`log_p`."""
    return np.asarray(stats.within(log_p, queries) >= chance)


def _effort(
    decoding: Decoding, pair: tuple[Odds, Odds | None], column: int, judge: Judge, grid: SamplingPlan
) -> Effort:
    tuned, base = pair
    inside, outside = ((tuned.tried > 0) & side for side in (judge.evidence.member, ~judge.evidence.member))

    def row(odds: Odds, side: np.ndarray) -> tuple[Estimate, ...]:
        return tuple(judge.share(out(odds.logprob[:, column], n, grid.chance), side) for n in grid.queries)

    own = 0.0 - tuned.logprob[inside, column] / _LN10
    return Effort(
        decoding=decoding,
        chance=grid.chance,
        queries=grid.queries,
        members=row(tuned, inside),
        others=row(tuned, outside),
        base=() if base is None else row(base, inside),
        easiest=_finite(own.min()) if len(own) else None,
        median=_finite(np.quantile(own, 0.5, method="lower")) if len(own) else None,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def expected(log_p: float) -> float | None:
    """log10 of 1/p: how many queries it takes on average; None where it never comes."""
    return _finite(0.0 - log_p / _LN10)
