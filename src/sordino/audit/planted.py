"""The planted canaries: how exposed is each secret, by how often it was trained on, and is the instrument working?"""

from dataclasses import replace

import msgspec
import numpy as np

from sordino import stats
from sordino.attacks.base import Attack
from sordino.attacks.spaces import secret_space
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import estimate
from sordino.audit.parts import in_parts
from sordino.evidence import digest
from sordino.results import AuditPlan, CanaryLevel, Estimate
from sordino.train.planted import read_canaries

__all__ = ["Found", "canary_levels", "expose"]

# Canaries between two results on disk: each may cost many forwards.
_PART = 8


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The exposure of one canary, as it is kept in private/."""

    id: str
    repetitions: int
    included: bool
    bits: float
    low: float
    high: float
    exact: bool
    space: int
    forwards: int


def expose(collector: Collector, attack: Attack, plan: AuditPlan, examples: dict[str, "object"]) -> list[Found]:
    """The exposure of every canary under the tuned model, computed once and kept in private/."""
    canaries = read_canaries(collector.run)
    if not canaries:
        return []
    chosen = [examples[c.id] for c in canaries]
    key = collector.key(chosen, "tuned", "exposure/3", str(plan.token_forwards))  # type: ignore[arg-type]
    tick = collector.ticker("canary exposure", len(canaries))

    def work(start: int, stop: int) -> list[Found]:
        made = []
        for canary, example in zip(canaries[start:stop], chosen[start:stop], strict=True):
            space = secret_space(example.record, canary, collector.serializer)  # type: ignore[attr-defined]
            [result] = attack(collector.tuned, [space], token_forwards=plan.token_forwards)
            full = np.log2(result.space)
            made.append(
                Found(
                    id=canary.id, repetitions=canary.repetitions, included=canary.included, bits=result.bits,
                    low=float(full - np.log2(result.high)), high=float(full - np.log2(result.low)),
                    exact=result.exact, space=result.space, forwards=result.forwards,
                )
            )  # fmt: skip
            tick(1)
        collector.forwards += 1
        return made

    return in_parts(collector.run, f"exposures/{digest(key)}", len(canaries), _PART, work, Found, tick=tick)


def _mean(exposures: list[float], bits: float, confidence: float) -> Estimate:
    found = estimate(stats.mean_interval(exposures, confidence=confidence))
    # An exposure lies between 0 and the bits of the space; a few of them may spread wider than that.
    return replace(found, low=max(0.0, found.low), high=min(bits, found.high))


def canary_levels(found: list[Found], confidence: float) -> tuple[CanaryLevel, ...]:
    """Mean exposure by repetitions, of the canaries trained on and of those left out."""
    levels = []
    for repetitions in sorted({f.repetitions for f in found}):
        inside = [f.bits for f in found if f.repetitions == repetitions and f.included]
        outside = [f.bits for f in found if f.repetitions == repetitions and not f.included]
        here = [f for f in found if f.repetitions == repetitions]
        bits = float(np.log2(here[0].space))
        sampled = sum(not f.exact for f in here)
        method = "exact rank by search" if not sampled else f"{sampled} of {len(here)} ranks from a sample"
        levels.append(
            CanaryLevel(
                repetitions=repetitions,
                included=_mean(inside, bits, confidence),
                left_out=_mean(outside, bits, confidence),
                exposures=tuple(inside),
                left_out_exposures=tuple(outside),
                bits=bits,
                method=method,
                forwards=sum(f.forwards for f in here),
            )
        )
    return tuple(levels)
