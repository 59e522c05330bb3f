"""What a deletion can show: its proofs, its verification, and the evidence that its certificate is made of."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import sordino
from sordino.errors import UnlearningError
from sordino.evidence import code_digest, digest
from sordino.manifest import manifest_of
from sordino.results import (
    CertifiedRequest,
    Cost,
    Digests,
    Manifests,
    Purged,
    Qualification,
    Qualified,
    Robustness,
    Tier,
    UnlearnPlan,
    Verification,
    decode,
    encode,
)
from sordino.run import Run, write_atomic
from sordino.unlearn.base import Deletion
from sordino.unlearn.certificates.certificate import prove

if TYPE_CHECKING:
    from sordino.unlearn.flow import Transaction
    from sordino.unlearn.requests.holdings import Holding

__all__ = ["Proofs", "certified", "evaluated", "facts_of", "proofs_of", "search_of", "shown_by", "verified"]

_FILE = "proofs.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proofs:
    """What only both runs with all their records can give, kept because a purge takes it from one of them."""

    request: CertifiedRequest
    manifests: Manifests


def proofs_of(transaction: "Transaction") -> Proofs:
    """The proofs that each record was trained on and no longer is; made once.

    Raises `RunError` where the records of a run are not those of its card, `UnlearningError` where a record is still
    among what the child holds.
    """
    path = transaction.folder / _FILE
    if not path.exists():
        deletion, child = transaction.deletion, transaction.child
        before, after = manifest_of(transaction.run), manifest_of(child)
        leaves = sorted({before.leaf(example) for example in deletion.forget})
        made = Proofs(
            request=CertifiedRequest(
                id=transaction.request.id,
                received=transaction.request.created,
                kind=transaction.request.kind,
                count=len(transaction.request.names),
                subjects=tuple(sorted({before.subject(e.record.unit) for e in deletion.forget})),
                records=tuple(leaf.hex() for leaf in leaves),
                acknowledged=transaction.request.acknowledged,
            ),
            manifests=Manifests(
                before=transaction.run.card.name,
                after=child.card.name,
                root_before=before.root,
                root_after=after.root,
                proofs=prove(before.tree, after.tree, leaves),
            ),
        )
        write_atomic(path, encode(made), mode=0o600)
    return decode(path.read_bytes(), Proofs, str(path))


def evaluated(deletion: Deletion, child: Run, plan: UnlearnPlan) -> Deletion:
    """The deletion with the records that it may be judged by: of held-out ones, only those that no search has seen."""
    if not plan.settings.get("search"):
        return deletion
    from sordino.unlearn.tuning.searching import search_half, search_validation

    seed = int(child.card.unlearning["seed"])
    never = search_half(deletion.never, seed)[1]
    return dataclasses.replace(deletion, never=never, validation=search_validation(deletion, seed)[1])


def facts_of(child: Run, tier: Tier) -> dict[str, Any]:
    """What the promise of `tier` is made of, as the card of `child` says it."""
    told: Mapping[str, Any] = child.card.unlearning
    if tier == "exact" and "shards" in told:
        shards = told["shards"]
        found = {"shards": shards["count"], "slices": shards["slices"], "rebuilt": shards.get("dropped")}
        return {**found, "threads": shards.get("threads"), "bit_identical": shards.get("bit_identical")}
    if tier == "exact":
        return {"threads": int(child.card.environment["threads"]), "bit_identical": _on_cpu(child)}
    if tier == "dp":
        guarantee = told.get("guarantee", {})
        return {name: guarantee.get(name) for name in ("epsilon", "delta", "units", "spent", "capacity", "relation")}
    return {}


def _on_cpu(child: Run) -> bool:
    from sordino.config import recorded
    from sordino.model import pick_device

    return pick_device(recorded(child.card.config, str(child.path / "run.json")).model.device).type == "cpu"


def shown_by(transaction: "Transaction", proofs: Proofs) -> dict[str, bool]:
    """Which of the things that the tier has to show are there.

    That bits are those of training anew is more than the exact tier demands: what was trained anew elsewhere, or on a
    GPU, has seen no more of the deleted.
    """
    plan, child = transaction.planned, transaction.child
    if plan.tier == "approximate":
        return {}
    from sordino.model import weights_digest

    facts = facts_of(child, plan.tier)
    known = all(value is not None for value in facts.values())
    if plan.tier == "dp":
        return {"capacity": known and facts["units"] + facts["spent"] <= facts["capacity"]}
    return {
        "roots": proofs.manifests.root_before != proofs.manifests.root_after,
        "absence": len(proofs.manifests.proofs) == len(proofs.request.records) > 0,
        "weights": known and weights_digest(child.weights) == child.card.model["weights"],
    }


def verified(transaction: "Transaction", named: str | None, *, robustness: bool) -> Verification:
    """Measure what is left, try to bring it back, and judge; see `sordino.unlearn.verifying.verification`."""
    from sordino.unlearn.robustness import measure
    from sordino.unlearn.verifying.qualifying import fitting
    from sordino.unlearn.verifying.verification import Evidence, verify

    plan, child = transaction.planned, transaction.child
    proofs = proofs_of(transaction)
    before, after = transaction.scores("before"), transaction.scores("after")
    tried: tuple[Robustness, ...] = ()
    untried: Mapping[str, str] = {}
    if robustness:
        deletion = evaluated(transaction.deletion, child, plan)
        folder = transaction.folder / "robustness"
        attacked = measure(child, deletion, folder, say=transaction.say, ticker=transaction.ticker)
        tried, untried = attacked.found, attacked.missing
    settings = child.card.unlearning["settings"]
    evidence = Evidence(
        tier=plan.tier,
        shown=shown_by(transaction, proofs),
        qualification=fitting(transaction.run, plan.method, settings, named),
        robustness=tried,
        untried=untried,
    )
    return verify(transaction.request, before, after, evidence)


def cited(transaction: "Transaction", verification: Verification) -> Qualified | None:
    """The qualification that the verification relies on, with the digest of its file."""
    if verification.qualification is None:
        return None
    path = transaction.deletions.path / "qualifications" / f"{verification.qualification}.json"
    if not path.exists():
        message = f"The qualification {verification.qualification}, which the verification cites, is gone."
        raise UnlearningError(message, "Restore it, or verify again.")
    data = path.read_bytes()
    found = decode(data, Qualification, str(path))
    return Qualified(id=found.id, digest=digest(data), outcome=found.outcome, rows=found.rows)


def digests_of(run: Run, child: Run) -> Digests:
    """What the two runs were made of."""
    return Digests(
        base=str(child.card.model["base"]),
        weights_before=str(run.card.model["weights"]),
        weights_after=str(child.card.model["weights"]),
        tokenizer=str(child.card.model["tokenizer"]),
        data=str(run.card.data["fingerprint"]),
        code=code_digest(),
        version=sordino.__version__,
    )


def cost_of(child: Run) -> Cost:
    """What it took, as the card of `child` says it."""
    return msgspec.convert(child.card.unlearning["cost"], Cost)


def search_of(child: Run, plan: UnlearnPlan) -> dict[str, int]:
    """The budget of the search that found the settings, and how many trials were made of it; nothing without one."""
    budget = int(plan.settings.get("search", 0))
    if not budget:
        return {}
    from sordino.unlearn.tuning.trials import read_trials

    return {"budget": budget, "trials": len(read_trials(child))}


def listed(found: "tuple[Holding, ...]") -> tuple[Purged, ...]:
    """The purge list of a certificate."""
    return tuple(Purged(path=one.path, kind=one.kind, removed=one.removed) for one in found)


def certified(transaction: "Transaction", key: Path, *, issuer: str, purge: bool) -> Path:
    """Issue the certificate of a request that was verified, after what still holds the deleted was removed, if asked.

    Everything that the runs alone can tell is read before anything is removed. Raises `UnlearningError` where the
    verification failed: nothing is certified then.
    """
    from sordino.unlearn.certificates.certificate import Parts, issue, write
    from sordino.unlearn.requests.purge import holdings
    from sordino.unlearn.requests.purge import purge as remove

    verification, plan, child = transaction.verification, transaction.planned, transaction.child
    earlier = _purged_before(transaction, purge)
    if verification.outcome == "fail":
        why = " ".join(verification.reasons)
        raise UnlearningError(f"The verification failed. {why}", "Unlearn by another method, or train anew.")
    proofs, signing = proofs_of(transaction), key_at(key)
    parts = Parts(
        state=transaction.state,
        request=proofs.request,
        manifests=proofs.manifests,
        digests=digests_of(transaction.run, child),
        tier=plan.tier,
        method=plan.method,
        cost=cost_of(child),
        verification=verification,
        before=transaction.scores("before"),
        after=transaction.scores("after"),
        qualification=cited(transaction, verification),
        facts=facts_of(child, plan.tier),
        settings=child.card.unlearning["settings"],
        search=search_of(child, plan),
        issuer=issuer,
    )
    found = holdings(transaction.run, transaction.request)
    made = issue(dataclasses.replace(parts, purge=(*earlier, *listed(found))), signing)
    if purge:
        # What would not hold is refused before anything is removed.
        found = remove(transaction.run, transaction.request, found)
        made = issue(dataclasses.replace(parts, purge=(*earlier, *listed(found))), signing)
    path = write(made, transaction.folder)
    transaction.deletions.advance(transaction.request.id, "certified", certificate=digest(path.read_bytes()))
    return path


def _purged_before(transaction: "Transaction", purge: bool) -> tuple[Purged, ...]:
    """What the certificate that is there says was removed; raises `UnlearningError` where a new one would say no more.

    A certificate is issued again only after a purge.
    """
    if transaction.state != "certified":
        return ()
    path = transaction.folder / "certificate.json"
    if not purge:
        message = f"Request {transaction.request.id} is certified already."
        raise UnlearningError(message, f"`sordino unlearn check {path}`; --purge removes what still holds the deleted.")
    from sordino.unlearn.certificates.certificate import read

    return tuple(one for one in read(path).purge if one.removed)


def key_at(path: Path) -> Any:
    """The signing key in `path`; a new one where there is none."""
    from sordino.evidence import load_key, new_key

    return load_key(path) if path.exists() else new_key(path)
