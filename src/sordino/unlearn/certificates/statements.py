"""What may be said of a deletion: the promise of its tier, the evidence that is missing, and what none of it shows.

Certificates are written and checked with these, so no torch is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sordino import stats
from sordino.errors import UnlearningError
from sordino.results import Certificate, Estimate, Outcome, Scores, Tier
from sordino.results.values import UNBOUNDED

__all__ = ["Gap", "gaps", "judged", "limits", "promise", "unknown", "utility"]

# What each tier's promise is made of; without it there is no promise.
_FACTS: Mapping[str, tuple[str, ...]] = {
    "shards": ("shards", "rebuilt", "threads"),
    "exact": ("threads",),
    "dp": ("epsilon", "delta", "units", "spent", "capacity"),
    "approximate": (),
}
_SETS = ("forget", "never", "retain", "validation")
_NEEDED: Mapping[Tier, tuple[str, ...]] = {"exact": ("validation",), "dp": (), "approximate": _SETS}
# Metrics of usefulness: of which records, which column.
_UTILITY = tuple((of, column) for of in ("retain", "validation") for column in ("loss", "rouge_l"))


def _facts_of(tier: Tier, facts: Mapping[str, Any]) -> tuple[str, ...]:
    return _FACTS["shards" if tier == "exact" and {"shards", "rebuilt"} & facts.keys() else tier]


def unknown(tier: Tier, facts: Mapping[str, Any]) -> list[str]:
    """What the promise of `tier` is made of and `facts` do not have."""
    return [name for name in _facts_of(tier, facts) if facts.get(name) is None]


def promise(tier: Tier, facts: Mapping[str, Any]) -> str:
    """What is promised, in sentences: exact, what was trained anew; dp, (ε, δ) and the capacity; else nothing.

    `facts`, for exact: "threads" of the CPU and, of a run in shards, "shards" and how many were "rebuilt"; for dp:
    "epsilon", "delta", "units" deleted now, "spent" on deletions before, "capacity". Where one is missing nothing is
    promised. Bits are spoken of only where "bit_identical" says so; "relation" is that of the guarantee.
    """
    lacking = unknown(tier, facts)
    if lacking:
        return f"Nothing is promised: {', '.join(lacking)} {'was' if len(lacking) == 1 else 'were'} not recorded."
    if tier == "dp":
        return _private(facts)
    if tier == "approximate":
        return "Empirical, no guarantee: what was measured is all that speaks for it."
    return f"{_trained(facts)} {_bits(facts)}".strip()


def _private(facts: Mapping[str, Any]) -> str:
    replaced = facts.get("relation") == "replace-one"
    without = "with others in the place of what was deleted" if replaced else "without what was deleted"
    return (
        f"The weights are as they were. They are ({facts['epsilon']:g}, {facts['delta']:.3g})-close, by differential "
        f"privacy, to those of a training {without}: {facts['units']:,} now and {facts['spent']:,} before, of "
        f"{facts['capacity']:,} that the run's ledger allows for."
    )


def _trained(facts: Mapping[str, Any]) -> str:
    if "shards" not in facts:
        return "The model was trained anew from the base on what stays, with the settings and seed of before."
    return (
        f"{facts['rebuilt']:,} of {facts['shards']:,} shards held something of it. Each was trained anew on what "
        "stays, from the last slice that had seen none of it; the other shards never saw any."
    )


def _bits(facts: Mapping[str, Any]) -> str:
    if facts.get("bit_identical") is None:
        return ""
    if not facts["bit_identical"]:
        return "Whether the bits are those of training on what stays alone cannot be said here."
    threads = f"{facts['threads']:,} CPU {'thread' if facts['threads'] == 1 else 'threads'}"
    return f"On the same software and {threads}, training on what stays alone gives the same weights, bit for bit."


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A piece of evidence that is not there; `needed` says that the tier's outcome cannot be "pass" without it."""

    what: str
    needed: bool


def gaps(certificate: Certificate) -> list[Gap]:
    """What `certificate` has no evidence of.

    Every tier needs scores and the facts of its promise. A tier that promises something is judged by that, and exact
    ones by utility too; one that promises nothing needs scores of each kind of records, the row of retraining, attempts
    to bring back what was forgotten, and a qualification of the method.
    """
    empirical = certificate.tier == "approximate"
    verification = certificate.verification
    found = [
        Gap(what=f"scores of records {when}: of {name}", needed=scores is None or name in _NEEDED[certificate.tier])
        for when, scores in (("before", certificate.before), ("after", certificate.after))
        for name in _unscored(scores)
    ]
    lacking = unknown(certificate.tier, certificate.facts)
    found += [Gap(what=f"fact of the promise: {name}", needed=True) for name in lacking]
    rows = {row.name for row in verification.rows if row.metrics}
    found += [Gap(what=f"row: {name}", needed=True) for name in ("before", "after") if name not in rows]
    if not verification.comparisons:
        found.append(Gap(what="comparisons with never-trained subjects", needed=empirical))
    if "retrain" not in rows:
        found.append(Gap(what="row: retrain", needed=empirical))
    if not verification.robustness:
        found.append(Gap(what="robustness: no attempt was made to bring back what was deleted", needed=empirical))
    if certificate.qualification is None:
        found.append(Gap(what="qualification of the method", needed=empirical))
    return found


def _unscored(scores: Scores | None) -> list[str]:
    return [name for name in _SETS if scores is None or not getattr(scores, name).get("loss")]


def judged(certificate: Certificate) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome of all, and why: that of the verification, but never "pass" where something needed is missing."""
    verification = certificate.verification
    needed = [gap.what for gap in gaps(certificate) if gap.needed]
    if not needed or verification.outcome != "pass":
        return verification.outcome, verification.reasons
    return "inconclusive", (*verification.reasons, *(f"Missing: {what}." for what in needed))


def utility(before: Scores | None, after: Scores | None) -> dict[str, Estimate]:
    """What it cost in usefulness: "retain_loss", "validation_loss" (nats a token) and "…_rouge_l", after less before.

    Means of paired differences, clustered by subject. Sets without scores have none. Raises `UnlearningError` where
    the two models were scored on different records.
    """
    found: dict[str, Estimate] = {}
    if before is None or after is None:
        return found
    for of, column in _UTILITY:
        first, second = getattr(before, of), getattr(after, of)
        if not first.get(column) or not second.get(column):
            continue
        if len(first[column]) != len(second[column]) or first["subject"] != second["subject"]:
            message = f"The models were scored on different records of the set '{of}'."
            raise UnlearningError(message, "Score both on the same records.")
        change = np.asarray(second[column]) - np.asarray(first[column])
        made = stats.mean_interval(change, np.asarray(first["subject"]))
        method = f"paired difference, {made.method}"
        found[f"{of}_{column}"] = Estimate(value=made.value, low=made.low, high=made.high, n=made.n, method=method)
    return found


def limits(certificate: Certificate) -> tuple[str, ...]:
    """What the certificate does not prove, in sentences for whoever relies on it."""
    said = [
        "The proofs bind what the issuer says was trained on, before and after. That the weights came of just these "
        "records, and that the list is complete, rests on the issuer's word.",
        "The signature shows who issued this and that nothing was changed since. It does not show that it is true; "
        "the time of issue is the issuer's own.",
        "Copies elsewhere are not covered: backups, models and exports handed on, and text that the model wrote.",
        "What the base model knew before this training is as it was.",
        f"{_near(certificate)} Somebody can still be talked about in records of others.",
        "Whoever has the salt of the manifest and the records can tell whose hashes these are.",
    ]
    if certificate.tier in ("exact", "dp"):
        said.append(
            "The promise assumes that requests were chosen independently of models released before; it does not hold "
            "for requests made in answer to them (Gupta et al., Adaptive Machine Unlearning, 2021)."
        )
    else:
        said.append("Attacks that were not tried may bring back what the tried ones did not.")
    if certificate.tier != "dp":
        said.append("Whoever holds the model from before can compare the two, and tell what was deleted.")
    said.append(_resolution(certificate))
    left = sum(not one.removed for one in certificate.purge)
    if left:
        said.append(f"{left:,} of {len(certificate.purge):,} listed places still hold what was deleted.")
    return tuple(said)


def _near(certificate: Certificate) -> str:
    if certificate.request.acknowledged:
        return "Near-duplicates of what was deleted were known of, and stay with others."
    return "Near-duplicates below the threshold of the split, and the same facts in other words, stay."


def _resolution(certificate: Certificate) -> str:
    """How small a leak could be seen."""
    found = {row.name: row.metrics for row in certificate.verification.rows}.get("after", {}).get("auc")
    if found is None or found.value is None or not -UNBOUNDED < found.low <= found.high < UNBOUNDED:
        return "Whether deleted and never-trained records can be told apart was not measured to any precision."
    half = (found.high - found.low) / 2
    return (
        f"With {found.n:,} subjects the AUC of deleted against never-trained records is known to ± {half:.2g}: what is "
        "smaller than that would not be seen."
    )
