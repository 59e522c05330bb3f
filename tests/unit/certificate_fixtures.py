"""A small verified deletion, as a certificate is made of it, and a stand-in for the statistics of verification."""

import dataclasses
import hashlib
import json
import sys
import types

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sordino.evidence import Tree, canonical, digest, public_hex, sign
from sordino.results import (
    CertifiedRequest,
    Comparison,
    Cost,
    Digests,
    Estimate,
    Manifests,
    Purged,
    Qualified,
    Robustness,
    Row,
    Scores,
    Verification,
)
from sordino.stats import mean_interval
from sordino.unlearn.certificates.certificate import Parts, issue, prove
from sordino.unlearn.certificates.reading import identity

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
MODULE = "sordino.unlearn.verifying.verification"


def leaf(number):
    return hashlib.blake2b(f"record {number}".encode(), digest_size=32).digest()


def columns(losses, seed):
    rng = np.random.default_rng(seed)
    count = len(losses)
    return {
        "subject": tuple(float(i // 2 + 10 * seed) for i in range(count)),
        "loss": tuple(float(v) for v in losses),
        "base_loss": tuple(float(v) for v in 3 + rng.random(count)),
        "tokens": tuple(float(v) for v in rng.integers(5, 20, count)),
        "extraction_strength": tuple(float(v) for v in rng.random(count) / 10),
        "exact_memorisation": tuple(float(v) for v in rng.random(count) / 5),
    }


def scores(model, forget, *, count=4, shift=0.0):
    rng = np.random.default_rng(0)
    never = 2.5 + rng.random(count) / 4
    return Scores(
        model=model,
        forget=columns(forget, 1),
        never=columns(never, 2),
        retain=columns(1.0 + shift + rng.random(3) / 10, 3),
        validation=columns(2.4 + shift + rng.random(3) / 10, 4),
    )


def estimate(value, half=0.1, n=20, method="t interval"):
    return Estimate(value=value, low=value - half, high=value + half, n=n, method=method)


def recompute(verification, before, after):
    """Mean loss of deleted against never-trained records, by subject: enough to be wrong about."""
    made = []
    for one in verification.comparisons:
        values = [np.asarray(getattr(after, name)["loss"]) for name in ("forget", "never")]
        found = mean_interval(values[0][: len(values[1])] - values[1][: len(values[0])])
        inside = -one.margin <= found.low and found.high <= one.margin
        outside = found.low > one.margin or found.high < -one.margin
        made.append(
            dataclasses.replace(
                one,
                difference=Estimate(**dataclasses.asdict(found)),
                p_value=float(np.mean(before.forget["loss"])) / 100,
                outcome="pass" if inside else "fail" if outside else "inconclusive",
            )
        )
    states = {one.outcome for one in made}
    outcome = "fail" if "fail" in states else "pass" if states == {"pass"} else "inconclusive"
    rows = []
    for row in verification.rows:
        held = {"before": before, "after": after}.get(row.name)
        metrics = (
            {}
            if held is None
            else {
                f"{name}_loss": Estimate(**dataclasses.asdict(mean_interval(getattr(held, name)["loss"])))
                for name in ("forget", "never", "retain", "validation")
            }
            | {column: Estimate(**dataclasses.asdict(mean_interval(held.forget[column]))) for column in held.forget}
        )
        rows.append(dataclasses.replace(row, metrics={**row.metrics, **metrics}))
    return dataclasses.replace(verification, comparisons=tuple(made), rows=tuple(rows), outcome=outcome)


def stand_in():
    """A module to stand in for the one that computes the statistics."""
    made = types.ModuleType(MODULE)
    made.recompute = recompute
    return made


def issued(**changed):
    """The certificate of `evidence`, by the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, MODULE, stand_in())
        return issue(evidence(**changed), KEY)


def verification(before, after, *, margin=1.0):
    draft = Verification(
        request="a" * 32,
        outcome="pass",
        reasons=("Every comparison passes.",),
        comparisons=(
            Comparison(
                metric="loss",
                definition="mean loss of deleted less that of never-trained records, nats a token",
                margin=margin,
                difference=estimate(0.0),
                p_value=0.5,
                power=0.9,
                detectable=0.4,
                outcome="pass",
            ),
        ),
        rows=(
            Row(name="before", metrics={}),
            Row(name="after", metrics={"auc": estimate(0.52, 0.15, 24, "DeLong")}),
            Row(name="retrain", metrics={"auc": estimate(0.5, 0.1)}, source="qualification"),
            Row(name="do_nothing", metrics={"auc": estimate(0.9, 0.05)}, source="qualification"),
        ),
        robustness=(
            Robustness(
                name="relearning",
                what="AUC after an epoch on half of the deleted, against records learned for the first time",
                estimate=estimate(0.55),
                curve=((0, 0.5), (5, 0.53), (10, 0.55)),
                note="They come back no faster than new ones.",
            ),
        ),
        qualification="q" * 8,
        qualified="pass",
    )
    return recompute(draft, before, after)


def evidence(*, count=4, others=6, **changed):
    """The parts of the certificate of `count` records of a run of `count` + `others`."""
    rng = np.random.default_rng(5)
    digests = Digests(
        base=digest("base"), weights_before=digest("before"), weights_after=digest("after"),
        tokenizer=digest("tokenizer"), data=digest("data") * 2, code=code(), version="0.1.0",
    )  # fmt: skip
    before = scores(digests.weights_before, 0.4 + rng.random(count) / 10, count=count)
    after = scores(digests.weights_after, 2.5 + rng.random(count) / 4, count=count, shift=0.01)
    was, now = Tree(leaf(i) for i in range(count + others)), Tree(leaf(i) for i in range(count, count + others))
    gone = [leaf(i).hex() for i in range(count)]
    parts = {
        "state": "verified",
        "request": CertifiedRequest(
            id="a" * 32, received="2026-11-22T09:00:00+00:00", kind="subject", count=2,
            subjects=(digest("one"), digest("two")), records=tuple(gone),
        ),
        "manifests": Manifests(
            before="2026-11-22-tickets-3f9a", after="2026-11-23-tickets-77aa", root_before=was.root,
            root_after=now.root, proofs=prove(was, now, gone),
        ),
        "digests": digests,
        "tier": "approximate",
        "method": "grad_diff",
        "cost": Cost(seconds=12.5, tokens=4000, forwards=600, share=0.021, formula=0.02),
        "verification": verification(before, after),
        "before": before,
        "after": after,
        "qualification": Qualified(
            id="q" * 8, digest=digest("qualification"), outcome="pass",
            rows=(Row(name="retrain", metrics={"auc": estimate(0.5, 0.1)}, source="qualification"),),
        ),
        "settings": {"lr": 1e-5, "epochs": 10, "alpha": 1.0, "refusals": None},
        "search": {"trials": 12},
        "purge": (
            Purged(path="2026-11-22-tickets-3f9a/private/checkpoints/step-10", kind="checkpoint", removed=True),
            Purged(path="2026-11-22-tickets-3f9a/weights", kind="weights", removed=False),
        ),
        "issuer": "The data protection office",
    }  # fmt: skip
    made = {**parts, **changed}
    made["verification"] = dataclasses.replace(made["verification"], tier=made["tier"])
    return Parts(**made)


def code():
    from sordino.evidence import code_digest

    return code_digest()


def resigned(plain, key=KEY):
    """`plain` with the id and the signature that its issuer would have given it."""
    made = json.loads(json.dumps(plain)) | {"public_key": public_hex(key)}
    made["id"] = identity(made)
    made["signature"] = sign(key, canonical({k: v for k, v in made.items() if k != "signature"}))
    return made
