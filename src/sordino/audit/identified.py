"""Which single records the strongest attack identifies: conformal p-values under a false discovery rate."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from sordino import stats
from sordino.results import Estimate

__all__ = ["FALSE_DISCOVERIES", "IDENTIFIED", "Identified", "identified_words", "identify"]

_RATE = 0.05
_ONE, _SEVERAL = "records", "groups of records"
IDENTIFIED = f"identified@{_RATE:g}fdr"
FALSE_DISCOVERIES = f"realised fdp@{_RATE:g}fdr"


@dataclass(frozen=True, kw_only=True)
class Identified:
    """For every record its p-value of "not trained on" and whether it was called a member.

    `p_values` (records,) are NaN, and `called` (records,) False, where a record had another part to play.
    """

    estimates: Mapping[str, Estimate]
    p_values: np.ndarray
    called: np.ndarray


def identify(
    scores: np.ndarray,
    member: np.ndarray,
    group: np.ndarray,
    calibrate: np.ndarray,
    judged: np.ndarray,
    confidence: float = 0.95,
) -> Identified:
    """Call members among the `judged` against the non-members that `calibrate`; all arrays (records,).

    Records that share a coin are one: their mean score has one p-value, (1 + #{calibrating ≥ it})/(n + 1),
    and Benjamini–Hochberg over all judged coins keeps the expected share of non-members among those called
    at 5 %. Valid as long as neither part had a say in choosing the attack. Bates et al., Annals of
    Statistics 51 (2023), theorem 2.
    """
    codes, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=scores) / sizes

    def coins(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=chosen, minlength=codes.size) > 0

    held, tested, inside = coins(calibrate), coins(judged), coins(member)
    p = np.full(codes.size, np.nan)
    p[tested] = stats.conformal_p(means[held], means[tested])
    called = np.zeros(codes.size, dtype=np.bool_)
    called[tested] = stats.benjamini_hochberg(p[tested]) <= _RATE
    right, members, wrong = (int(np.count_nonzero(c)) for c in (called & inside, tested & inside, called & ~inside))
    many = math.ceil(np.count_nonzero(tested) / (_RATE * (np.count_nonzero(held) + 1)) - 1e-9)
    noun = _ONE if sizes.max() == 1 else _SEVERAL
    if many > np.count_nonzero(tested):  # not even all of them together could be called
        found = {IDENTIFIED: _unresolved(int(np.count_nonzero(held)), confidence)}
    else:
        how = f"Benjamini–Hochberg on conformal p-values: takes {many} or more at once"
        found = _shares(right, members, wrong, confidence, f"{noun}, {how}")
    return Identified(estimates=found, p_values=p[place], called=called[place])


def _unresolved(held: int, confidence: float) -> Estimate:
    method, need = "calibrating non-members, a third of them all", round(1 / _RATE) - 1
    return Estimate(value=None, low=0.0, high=1.0, n=held, method=method, confidence=confidence, needs=need)


def _shares(right: int, members: int, wrong: int, confidence: float, words: str) -> dict[str, Estimate]:
    share = stats.clopper_pearson(right, members, confidence)
    found = {IDENTIFIED: _named(share, f"Clopper–Pearson over {members} {words}")}
    if right + wrong:
        share = stats.clopper_pearson(wrong, right + wrong, confidence)
        found[FALSE_DISCOVERIES] = _named(share, f"Clopper–Pearson over {right + wrong} {words}")
    return found


def _named(interval: stats.Interval, method: str) -> Estimate:
    return Estimate(**{**asdict(interval), "method": method})


def identified_words(headline: Mapping[str, Estimate]) -> str:
    """How many are identified, as a sentence; "" where that is not resolvable."""
    one, false = headline.get(IDENTIFIED), headline.get(FALSE_DISCOVERIES)
    if one is None or one.value is None:
        return ""
    noun = "groups of trained-on records" if _SEVERAL in one.method else "trained-on records"
    wrong = f" ({round((false.value or 0) * false.n)} of {false.n} accusations were wrong)" if false else ""
    count = round(one.value * one.n) or "None"
    return f"{count} of {one.n} {noun} are each identified with a false discovery rate of {_RATE:.0%}{wrong}."
