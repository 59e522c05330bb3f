"""Requirements such as `membership.tpr@0.01fpr <= 0.05`, judged on the whole interval."""

import operator
import re
from collections.abc import Mapping, Sequence

from sordino.errors import ConfigError, did_you_mean
from sordino.results import Estimate, Requirement

__all__ = ["check_names", "judge", "parse"]

_FORM = re.compile(r"\s*(?P<metric>[^\s<>=]+)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>[-+0-9.eE]+)\s*")
_SIGNS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


def parse(text: str) -> tuple[str, str, float]:
    """Metric, sign and limit of a requirement; raises `ConfigError` where it has another form."""
    match = _FORM.fullmatch(text)
    hint = 'Write it like "membership.tpr@0.01fpr <= 0.05".'
    if match is None:
        raise ConfigError(f"The requirement {text!r} cannot be read.", hint)
    try:
        limit = float(match["limit"])
    except ValueError as error:
        raise ConfigError(f"The limit in {text!r} is not a number.", hint) from error
    return _canonical(match["metric"]), match["sign"], limit


def _canonical(metric: str) -> str:
    """Write the rate of `…tpr@0.010fpr` as figures are named: `…tpr@0.01fpr`."""
    before, at, rate = metric.rpartition("tpr@")
    try:
        return f"{before}{at}{float(rate.removesuffix('fpr')):g}fpr" if at and rate.endswith("fpr") else metric
    except ValueError:
        return metric


def check_names(texts: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ConfigError`, with a suggestion, for a requirement on a figure that no audit computes."""
    for text in texts:
        metric, _, _ = parse(text)
        if metric not in known:
            raise ConfigError(f"No audit figure is called '{metric}'.", did_you_mean(metric, known))


def judge(text: str, metrics: Mapping[str, Estimate]) -> Requirement:
    """Met if the whole interval satisfies it, failed if none of it does, else inconclusive.

    A figure that is not resolvable is inconclusive, never met.
    """
    metric, sign, limit = parse(text)
    found = metrics.get(metric)
    if found is None:
        missing = Estimate(value=None, low=0.0, high=1.0, n=0, method="not measured in this audit")
        return Requirement(text=text, status="inconclusive", estimate=missing, finding=f"{metric} was not measured.")
    holds = [_SIGNS[sign](bound, limit) for bound in (found.low, found.high)]
    if found.value is None:
        return Requirement(text=text, status="inconclusive", estimate=found, finding=f"{metric} is {found}.")
    status = "met" if all(holds) else "inconclusive" if any(holds) else "failed"
    words = {"met": "all of", "inconclusive": "only a part of", "failed": "none of"}[status]
    finding = f"{words} the interval {found} satisfies it".capitalize() + "."
    return Requirement(text=text, status=status, estimate=found, finding=finding)  # type: ignore[arg-type]
