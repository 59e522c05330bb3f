"""Secrets of formats that the user knows: which records hold them, and what their exposure comes to."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from sordino import stats
from sordino.attacks.formats import Format, read_format
from sordino.attacks.mentions import Mention, mentions
from sordino.audit.evaluate import estimate
from sordino.errors import ConfigError
from sordino.pii import Detector, Span, default_detectors, kind_of, mask
from sordino.records import Example, Record
from sordino.results import AuditPlan, Estimate, SecretFinding, SecretPlan

__all__ = ["Ranked", "Standing", "check_secrets", "formats", "judged", "standing"]

# Beyond this, a rank as a number has no exponent left.
_BITS = 1_000
# Draws of labels and of signs: p-values are divided by the number of secrets asked about.
_SHUFFLES = 9_999


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """How exposed one secret is, in bits, under the tuned and the untuned model, as it is kept in private/.

    `exact` says that both ranks were found by search; `first` that it is the tuned model's first guess; `forwards`
    counts the prefixes whose next token either was asked for. `why` is what kept it from being ranked, empty where it
    was.
    """

    bits: float = 0.0
    base_bits: float = 0.0
    exact: bool = True
    first: bool = False
    forwards: int = 0
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The secrets of a plan that can be asked about, and how many cannot.

    `inputs` stand in prompts alone, `told` a second time in the record, which the adversary knows, and `outside` are
    not of the format.
    """

    mentions: tuple[Mention, ...]
    inputs: int
    told: int
    outside: int


def formats(plans: Sequence[SecretPlan]) -> list[Format]:
    """The format of each plan, its word lists read.

    Raises `ConfigError` where one cannot be read (with the place), where a word list is missing or empty, and where
    there is nothing to rank: fewer than two strings, or so many that no rank can be written.
    """
    found = []
    for plan in plans:
        form = read_format(plan.format, {name: Path(path) for name, path in plan.lists.items()})
        if form.size < 2:
            message = f"The format {plan.format!r} of audit.secrets ({plan.kind}) allows {form.size} string."
            raise ConfigError(message, "Say what else the secret could have been: a rank takes two or more.")
        if form.size.bit_length() > _BITS:
            message = f"The format {plan.format!r} of audit.secrets ({plan.kind}) allows more than 2^{_BITS} strings."
            raise ConfigError(message, "Ask about a part of the secret: no rank among so many can be written.")
        found.append(form)
    return found


def check_secrets(plan: AuditPlan, candidates: Sequence[Example]) -> None:
    """Raise `ConfigError`, before any model is at work, where an audit could not find the secrets of its plan."""
    for secret, form in zip(plan.secrets, formats(plan.secrets), strict=True):
        if len(candidates):
            standing(secret, form, (e.record for e in candidates), plan.personal.regions)


def standing(plan: SecretPlan, form: Format, records: Iterable[Record], regions: tuple[str, ...] = ()) -> Standing:
    """The secrets of `plan` in `records`: by its pattern, else as labelled, else as detectors find them.

    Raises `ConfigError` where there are none of the kind, saying which kinds there are, and where none is of the
    format; no message tells a secret.
    """
    rows = list(records)
    labelled = plan.pattern is None and any(record.spans for record in rows)
    detectors: list[Detector] | None = None if labelled else list(default_detectors(regions=regions))
    if plan.pattern is not None:
        detectors = [_by_pattern(plan.pattern, plan.kind)]
    found = mentions(rows, detectors, repeated=True)
    kind = kind_of(plan.kind)
    mine = [m for m in found if m.kind == kind]
    if not mine:
        raise ConfigError(*_none_of(plan, kind, Counter(m.kind for m in found), labelled))
    fitting = [m for m in mine if m.value in form]
    if not fitting:
        message = f"None of the {len(mine):,} secrets of kind {kind} in the audit candidates is of the format "
        hint = f"Correct the format, or the spans: the first of them looks like {mask(mine[0].value, '')!r}."
        raise ConfigError(f"{message}{plan.format!r}.", hint)
    scored = [m for m in fitting if m.scored]
    asked = tuple(m for m in scored if not m.repeated())
    return Standing(
        mentions=asked,
        inputs=len(fitting) - len(scored),
        told=len(scored) - len(asked),
        outside=len(mine) - len(fitting),
    )


def _by_pattern(pattern: str, kind: str) -> Detector:
    """What `pattern` matches, or its group where it has one."""
    compiled, name = re.compile(pattern), kind_of(kind)

    def found(text: str) -> list[Span]:
        places = (match.span(compiled.groups) for match in compiled.finditer(text))
        return [Span(start, stop, name) for start, stop in places if 0 <= start < stop]

    return found


def _none_of(plan: SecretPlan, kind: str, known: Counter[str], labelled: bool) -> tuple[str, str]:
    if plan.pattern is not None:
        message = f"The pattern {plan.pattern!r} of audit.secrets ({kind}) matches nothing in the audit candidates."
        return message, "Correct it: it is searched for in the text of each record, as Python's re.finditer does."
    what = "labelled (data.spans)" if labelled else "found by the detectors"
    there = ", ".join(f"{name} ({count:,})" for name, count in known.most_common()) or "nothing"
    message = f"Nothing of the kind {kind} (audit.secrets) is {what} in the audit candidates; there is: {there}."
    return message, "Name one of these, label yours (data.spans), or give a pattern that finds it."


def _mean(bits: np.ndarray, group: np.ndarray, most: float, confidence: float) -> Estimate:
    found = estimate(stats.mean_interval(bits, group, confidence))
    # An exposure lies between 0 and the bits of the space; a few of them may spread wider than that.
    return Estimate(
        value=found.value, low=max(0.0, found.low), high=min(most, found.high), n=found.n, method=found.method,
        confidence=found.confidence, needs=found.needs,
    )  # fmt: skip


def judged(  # noqa: PLR0913 - a plan, its secrets, and how to judge
    plan: SecretPlan,
    form: Format,
    ranked: Sequence[Ranked],
    included: np.ndarray,
    group: np.ndarray,
    counts: dict[str, int],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> SecretFinding:
    """What exposures come to: `included` (m) says whose record was trained on, `group` (m) whose coin that was.

    `p_value` is of members being more exposed than others (ranks, labels permuted over coins), `base_p_value` of
    members being more exposed than under the untuned model (signs of the paired differences flipped over coins);
    both are one-sided. Without secrets on one side a p-value is 1.
    """
    tried = np.array([not one.why for one in ranked], dtype=bool)
    bits, base = (np.array(values) for values in zip(*((r.bits, r.base_bits) for r in ranked), strict=True))
    first, most = np.array([one.first for one in ranked], dtype=bool), math.log2(form.size)
    inside, outside = tried & included, tried & ~included
    p_value = base_p_value = 1.0
    if inside.any() and outside.any():
        p_value, _ = stats.max_t(bits[None, tried], included[tried], group[tried], _SHUFFLES, seed)
    if inside.any():
        base_p_value = stats.sign_flip((bits - base)[inside], group[inside], _SHUFFLES, seed)
    sampled = sum(not one.exact for one, there in zip(ranked, tried.tolist(), strict=True) if there)
    return SecretFinding(
        kind=kind_of(plan.kind),
        format=plan.format,
        bits=most,
        members=_mean(bits[inside], group[inside], most, confidence),
        base=_mean(base[inside], group[inside], most, confidence),
        others=_mean(bits[outside], group[outside], most, confidence),
        p_value=p_value,
        base_p_value=base_p_value,
        method="exact rank by search" if not sampled else f"{sampled} of {int(tried.sum())} ranks from a sample",
        counts={
            "members": int(inside.sum()),
            "others": int(outside.sum()),
            "first guesses": int((first & inside).sum()),
            "first guesses of others": int((first & outside).sum()),
            "unranked": int((~tried).sum()),
            "token-forwards": sum(one.forwards for one in ranked),
            **counts,
        },
    )
