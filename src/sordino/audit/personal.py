"""What attacks on personal data come to by kind, beside the untuned model and records that were never trained on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sordino import stats
from sordino.attacks.in_place import Ranked
from sordino.attacks.mentions import Mention
from sordino.attacks.produced import Produced
from sordino.audit.evaluate import estimate
from sordino.audit.judging import difference
from sordino.results import Estimate

__all__ = ["EVERY", "Extracted", "Guessed", "Scope", "Subjects", "extracted", "guessed"]

Scope = Literal["trained", "inputs"]

EVERY = "ANY"
"""The kind of a row of all kinds together, where there are several."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The mentions (m) that attacks are judged by; `included` (m): of records trained on; `group` (m): coins."""

    mentions: Sequence[Mention]
    included: np.ndarray
    group: np.ndarray

    def take(self, keep: np.ndarray) -> "Subjects":
        """Those of some mentions."""
        chosen = [self.mentions[i] for i in np.flatnonzero(keep).tolist()]
        return Subjects(mentions=chosen, included=self.included[keep], group=self.group[keep])


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What extraction got of one `kind` whose entities are of one `scope`.

    An entity is "trained" if any record that was trained on has it in what a model learns to write, else one of
    "inputs". `generated` and `base_generated` count distinct entities of the kind that the two models wrote, all
    scopes; `leaked` those of this scope that the tuned model alone wrote. `precision` is the share of what it alone
    wrote that is in the training data (any scope; None where they were only looked up); `recall` and
    `base_recall` are the shares of the entities in training that each wrote; `gain` is their paired difference, with
    its one-sided p-value; `held_out` is the share written of entities that stand only in records never trained on, and
    `excess` is `recall` less that.
    """

    kind: str
    scope: Scope
    generated: int
    base_generated: int
    leaked: int
    precision: Estimate | None
    recall: Estimate
    base_recall: Estimate
    gain: Estimate
    p_value: float
    held_out: Estimate
    excess: Estimate


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """How often the true value came first (or among the first `top`) at places of one `kind` and `scope`.

    `members` and `others` are shares of mentions in records trained on and not; `base` that of the untuned model at the
    same members; `gain` the paired difference of the two with its one-sided p-value; `excess` that of members and
    others. `chance` is the share that guessing gets at members (None where candidates are the model's own).
    `untried` counts members that could not be asked about.
    """

    kind: str
    scope: Scope
    top: int
    members: Estimate
    base: Estimate
    gain: Estimate
    p_value: float
    others: Estimate
    excess: Estimate
    chance: float | None
    untried: int


def _share(hit: np.ndarray, group: np.ndarray, confidence: float) -> Estimate:
    if not hit.size:
        return Estimate(
            value=None, low=0.0, high=1.0, n=0, method="entities of this kind", confidence=confidence, needs=1
        )
    return estimate(stats.korn_graubard(hit, group, confidence))


def _gain(hit: np.ndarray, base: np.ndarray, group: np.ndarray, confidence: float, seed: int) -> tuple[Estimate, float]:
    if not hit.size:
        empty = Estimate(value=None, low=-1.0, high=1.0, n=0, method="no entities", confidence=confidence, needs=1)
        return empty, 1.0
    found = stats.paired_difference(hit, base, group, confidence)
    return estimate(found), stats.sign_flip(hit.astype(float) - base.astype(float), group, seed=seed)


def _excess(first: Estimate, second: Estimate) -> Estimate:
    if first.value is None or second.value is None:
        method, confidence = "no entities on one side", first.confidence
        return Estimate(value=None, low=-1.0, high=1.0, n=0, method=method, confidence=confidence, needs=1)
    return difference(first, second)


def _kinds(found: Collection[str]) -> list[str]:
    """All kinds together first, where there are several, then each of them."""
    return [*([EVERY] if len(found) > 1 else []), *sorted(found)]


def _scopes(subjects: Subjects) -> dict[tuple[str, str], tuple[str, int]]:
    """Of each entity (kind, key): "trained", "inputs" or "held out", and the first mention that makes it so."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    order = {"trained": 0, "inputs": 1, "held out": 2}
    for number, (mention, included) in enumerate(zip(subjects.mentions, subjects.included.tolist(), strict=True)):
        scope = ("trained" if mention.scored else "inputs") if included else "held out"
        old = found.get((mention.kind, mention.key))
        if old is None or order[scope] < order[old[0]]:
            found[mention.kind, mention.key] = (scope, number)
    return found


def extracted(
    tuned: Sequence[Produced],
    base: Sequence[Produced],
    subjects: Subjects,
    *,
    looked_up: Sequence[str] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Extracted]:
    """What each kind of entity, of each scope, came to in as many generations of the tuned and the untuned model.

    `looked_up` names kinds that a lexicon alone detects. As in the code of Lukas et al. 2023 what the untuned model
    writes too is no leak: of `leaked` and `precision` it is left out.
    """
    scopes = _scopes(subjects)
    ours, theirs = ({(p.kind, p.key) for p in found} for found in (tuned, base))
    known = {name for name, (scope, _) in scopes.items() if scope != "held out"}
    made = []
    for kind in _kinds({name[0] for name in scopes}):
        mine, before = ({n for n in found if kind in (n[0], EVERY)} for found in (ours, theirs))
        alone = {n for n in mine - before if n[0] not in looked_up}
        precision = None
        if kind not in looked_up:
            precision = estimate(stats.clopper_pearson(len(alone & known), len(alone), confidence))

        def hits(scope: str, kind: str = kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            names = [(n, at) for n, (s, at) in scopes.items() if kind in (n[0], EVERY) and s == scope]
            hit, old = (np.array([n in found for n, _ in names], dtype=bool) for found in (ours, theirs))
            return hit, old, subjects.group[[at for _, at in names]]

        out, _, out_group = hits("held out")
        held_out = _share(out, out_group, confidence)
        for scope in ("trained", "inputs"):
            hit, old, group = hits(scope)
            if not hit.size:
                continue
            gain, p_value = _gain(hit, old, group, confidence, seed)
            recall = _share(hit, group, confidence)
            made.append(
                Extracted(
                    kind=kind, scope=scope, generated=len(mine), base_generated=len(before),
                    leaked=int((hit & ~old).sum()), precision=precision, recall=recall,
                    base_recall=_share(old, group, confidence), gain=gain, p_value=p_value, held_out=held_out,
                    excess=_excess(recall, held_out),
                )
            )  # fmt: skip
    return made


def guessed(  # noqa: PLR0913 - two models, their subjects, and how to judge
    tuned: Sequence[Ranked],
    base: Sequence[Ranked],
    subjects: Subjects,
    *,
    top: int = 1,
    chosen: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Guessed]:
    """What ranks (m) of each kind and scope came to; both models are judged at places where both could be asked.

    `chosen` says that candidates were given (inference), so that there is a level of chance; a tie for the first
    place is no hit.
    """
    tried = np.array([a.tried and b.tried for a, b in zip(tuned, base, strict=True)], dtype=bool)
    kinds = np.array([m.kind for m in subjects.mentions], dtype=object)
    scored = np.array([m.scored for m in subjects.mentions], dtype=bool)
    hit, old = (np.array([r.rank is not None and r.rank <= top for r in ranks], dtype=bool) for ranks in (tuned, base))
    level = np.array([min(1.0, top / max(1, r.candidates)) for r in tuned])
    made = []
    for kind in _kinds(set(kinds.tolist())):
        for scope, in_scope in (("trained", scored), ("inputs", ~scored)):
            here = ((kinds == kind) | (kind == EVERY)) & in_scope
            inside, outside = here & tried & subjects.included, here & tried & ~subjects.included
            if not (here & subjects.included).any():
                continue
            group = subjects.group[inside]
            gain, p_value = _gain(hit[inside], old[inside], group, confidence, seed)
            members = _share(hit[inside], group, confidence)
            others = _share(hit[outside], subjects.group[outside], confidence)
            made.append(
                Guessed(
                    kind=kind, scope=scope, top=top, members=members, base=_share(old[inside], group, confidence),  # type: ignore[arg-type]
                    gain=gain, p_value=p_value, others=others, excess=_excess(members, others),
                    chance=float(level[inside].mean()) if chosen and inside.any() else None,
                    untried=int((here & ~tried & subjects.included).sum()),
                )
            )  # fmt: skip
    return made
