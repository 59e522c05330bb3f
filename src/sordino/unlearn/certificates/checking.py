"""Checking a certificate: signature, digests, proofs, and every statistic computed again; no torch is loaded."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from sordino.errors import SordinoError, first_line
from sordino.evidence import canonical, code_digest, read_public, verify, verify_absence, verify_inclusion
from sordino.results import Certificate, Columns, Scores
from sordino.unlearn.certificates.differences import differing
from sordino.unlearn.certificates.reading import identity, parsed, plain_of, signed_bytes
from sordino.unlearn.certificates.statements import gaps, judged, limits, promise, unknown, utility

__all__ = ["Check", "Checked", "check", "examined"]

CheckState = Literal["ok", "failed", "not checked"]

_DIGEST = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_ROOT = re.compile(r"[0-9a-f]{64}")
_SETS = ("forget", "never", "retain", "validation")
# One model, read twice: nats a token by which batches and threads may change its loss.
_BASE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check, and in a sentence what was found."""

    name: str
    state: CheckState
    what: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks of the certificate `id` found: `sound` where none failed, whatever `outcome` it states."""

    id: str
    outcome: str
    public_key: str
    sound: bool
    checks: tuple[Check, ...]


class _Failed(Exception):
    """A check failed: why, in a sentence."""


class _Unchecked(Exception):
    """A check could not be made: why, in a sentence."""


def check(path: Path | str, key: str | None = None) -> Checked:
    """Check the certificate at `path` (or certificate.json in that folder), against the public key that is trusted.

    `key` is 64 hex digits or a file (`evidence.read_public`); without it the certificate may be anybody's. Raises
    `RunError` where there is no certificate that can be read, and `ConfigError` for what is no key.
    """
    trusted = None if key is None else read_public(key)
    plain, certificate = parsed(Path(path))
    return examined(plain, certificate, trusted)


def examined(plain: Mapping[str, Any], certificate: Certificate, trusted: str | None = None) -> Checked:
    """The checks of a certificate that was read, as plain values and as what they mean; `trusted` is a public key."""
    checks = (
        _made("schema", partial(_schema, plain, certificate)),
        _made("id", partial(_identity, plain, certificate)),
        _made("signature", partial(_signature, plain, certificate)),
        _made("key", partial(_key, certificate, trusted)),
        *(_made(name, partial(part, certificate)) for name, part in _PARTS.items()),
    )
    return Checked(
        id=certificate.id,
        outcome=certificate.outcome,
        public_key=certificate.public_key,
        sound=all(one.state != "failed" for one in checks),
        checks=checks,
    )


def _made(name: str, function: Callable[[], str]) -> Check:
    try:
        return Check(name=name, state="ok", what=function())
    except _Unchecked as error:
        return Check(name=name, state="not checked", what=str(error))
    except (_Failed, SordinoError) as error:
        return Check(name=name, state="failed", what=str(error))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A certificate that was signed can still hold anything.
        return Check(name=name, state="failed", what=f"It could not be computed: {first_line(error)}.")


def _schema(plain: Mapping[str, Any], certificate: Certificate) -> str:
    if canonical(plain) != canonical(plain_of(certificate)):
        raise _Failed("It holds something that its schema does not know.")
    return f"Schema {certificate.schema}, and nothing beyond it."


def _identity(plain: Mapping[str, Any], certificate: Certificate) -> str:
    if identity(plain) != certificate.id:
        raise _Failed("The id is not that of what it holds.")
    return "The id is the digest of what it holds."


def _signature(plain: Mapping[str, Any], certificate: Certificate) -> str:
    if not verify(certificate.public_key, signed_bytes(plain), certificate.signature):
        raise _Failed("The signature is not that of its public key for what it holds: it was changed, or never signed.")
    return "Signed with the key that it names, and not changed since."


def _key(certificate: Certificate, trusted: str | None) -> str:
    if trusted is None:
        raise _Unchecked(
            "No trusted key was given (--key): whoever wrote the certificate may have made the key "
            f"{certificate.public_key[:16]}… as well."
        )
    if certificate.public_key != trusted:
        raise _Failed("It is signed with another key than the trusted one.")
    return "Signed with the trusted key."


def _digests(certificate: Certificate) -> str:
    found = {k: v for k, v in dataclasses.asdict(certificate.digests).items() if k != "version"}
    found |= {f"subject {n}": one for n, one in enumerate(certificate.request.subjects, 1)}
    if certificate.qualification is not None:
        found["qualification"] = certificate.qualification.digest
    bad = [name for name, value in found.items() if not _DIGEST.fullmatch(value)]
    roots = (certificate.manifests.root_before, certificate.manifests.root_after)
    bad += [
        name for name, value in zip(("root before", "root after"), roots, strict=True) if not _ROOT.fullmatch(value)
    ]
    if bad:
        raise _Failed(f"{len(bad)} digests are none, such as that of {bad[0]}.")
    return f"All {len(found) + 2} digests have the form of one."


def _weights(certificate: Certificate) -> str:
    same = certificate.digests.weights_before == certificate.digests.weights_after
    if same and certificate.tier != "dp":
        raise _Failed("The weights after are those from before: nothing was forgotten.")
    if not same and certificate.tier == "dp":
        raise _Failed("The weights were changed, so the guarantee of the training is not theirs.")
    return "The weights are the same, as this tier says." if same else "The weights were changed."


def _records(certificate: Certificate) -> str:
    leaves, manifests = certificate.request.records, certificate.manifests
    if not leaves or certificate.request.count < 1:
        raise _Failed("No record is named: nothing is certified.")
    if len(set(leaves)) != len(leaves):
        raise _Failed(f"{len(leaves) - len(set(leaves))} records are listed twice.")
    if tuple(proof.leaf for proof in manifests.proofs) != leaves:
        raise _Failed(f"The {len(manifests.proofs)} proofs are not those of the {len(leaves)} records.")
    if manifests.root_before == manifests.root_after:
        raise _Failed("The manifest after is that from before.")
    sizes = {(proof.before.size, proof.after.size) for proof in manifests.proofs}
    if len(sizes) != 1:
        raise _Failed("The proofs are of manifests of different sizes.")
    before, after = next(iter(sizes))
    if after > before - len(leaves):
        raise _Failed(f"Of {before} records {len(leaves)} went, and {after} are left.")
    return f"A proof for each of {len(leaves):,} records; {before:,} were trained on before, {after:,} after."


def _inclusion(certificate: Certificate) -> str:
    manifests = certificate.manifests
    bad = sum(not verify_inclusion(manifests.root_before, one.leaf, one.before) for one in manifests.proofs)
    if bad or not manifests.proofs:
        raise _Failed(f"{bad} of {len(manifests.proofs)} records are not shown to have been trained on before.")
    return f"All {len(manifests.proofs):,} records were trained on before."


def _absence(certificate: Certificate) -> str:
    manifests = certificate.manifests
    bad = sum(not verify_absence(manifests.root_after, one.leaf, one.after) for one in manifests.proofs)
    if bad or not manifests.proofs:
        raise _Failed(f"{bad} of {len(manifests.proofs)} records are not shown to be gone.")
    return f"None of the {len(manifests.proofs):,} records is in the manifest after."


def _scores(certificate: Certificate) -> str:
    before, after = certificate.before, certificate.after
    if before is None or after is None:
        raise _Unchecked("No scores are stored.")
    models = (certificate.digests.weights_before, certificate.digests.weights_after)
    if (before.model, after.model) != models:
        raise _Failed("The scores are not of the models whose digests are given.")
    for name in _SETS:
        _paired(before, after, name)
    count = len(before.forget.get("subject", ()))
    if count != len(certificate.request.records):
        raise _Failed(f"{count} of {len(certificate.request.records)} deleted records were scored.")
    return "Both models were scored on the same records, among them all that were deleted."


def _paired(before: Scores, after: Scores, name: str) -> None:
    """Refuse scores of a set that are not of the same records, read by the same untuned model."""
    first: Columns = getattr(before, name)
    second: Columns = getattr(after, name)
    lengths = [{len(values) for values in columns.values()} for columns in (first, second)]
    if max(map(len, lengths)) > 1:
        raise _Failed(f"The scores of the set '{name}' are not of one length.")
    same = all(first.get(column) == second.get(column) for column in ("subject", "tokens"))
    if lengths[0] != lengths[1] or not same:
        raise _Failed(f"The two models were not scored on the same records of the set '{name}'.")
    base = (first.get("base_loss", ()), second.get("base_loss", ()))
    if len(base[0]) != len(base[1]) or any(abs(x - y) > _BASE for x, y in zip(*base, strict=True)):
        raise _Failed(f"The losses of the untuned model on the set '{name}' are not the same before and after.")


def _statistics(certificate: Certificate) -> str:
    if certificate.before is None or certificate.after is None:
        raise _Unchecked("There are no scores to compute them from.")
    from sordino.unlearn.verifying.verification import recompute

    again = recompute(certificate.verification, certificate.before, certificate.after)
    other = list(differing(msgspec.to_builtins(certificate.verification), msgspec.to_builtins(again)))
    if other:
        raise _Failed(f"{len(other)} values differ when computed again, such as {other[0]}.")
    return f"The same when computed again from the scores of {_counted(certificate.after)} records."


def _counted(scores: Scores) -> str:
    return f"{sum(len(getattr(scores, name).get('loss', ())) for name in _SETS):,}"


def _utility(certificate: Certificate) -> str:
    again = msgspec.to_builtins(utility(certificate.before, certificate.after))
    other = list(differing(msgspec.to_builtins(certificate.utility), again))
    if other:
        raise _Failed(f"{len(other)} values differ when computed again, such as {other[0]}.")
    if not again:
        raise _Unchecked("No scores of records that stay are stored.")
    return f"The same when computed again: {len(again)} differences."


def _outcome(certificate: Certificate) -> str:
    verification = certificate.verification
    if verification.request != certificate.request.id:
        raise _Failed("The verification is of another request.")
    if verification.tier != certificate.tier:
        raise _Failed(f"It was verified by the rule of the tier {verification.tier}, not {certificate.tier}.")
    states = {one.outcome for one in verification.comparisons}
    if certificate.tier == "approximate" and verification.outcome == "pass" and states != {"pass"}:
        raise _Failed("It says pass, and not every comparison does.")
    missing = tuple(gap.what for gap in gaps(certificate))
    if missing != certificate.missing:
        raise _Failed(f"{len(missing)} pieces of evidence are missing, and {len(certificate.missing)} are named.")
    outcome, reasons = judged(certificate)
    if (outcome, reasons) != (certificate.outcome, certificate.reasons):
        raise _Failed(f"It says {certificate.outcome}; what it holds says {outcome}.")
    return f"“{outcome}” follows from what it holds; {len(missing)} pieces of evidence are named as missing."


def _promise(certificate: Certificate) -> str:
    facts = certificate.facts
    if not unknown(certificate.tier, facts):
        if certificate.tier == "dp" and facts["spent"] + facts["units"] > facts["capacity"]:
            raise _Failed(f"{facts['spent']} + {facts['units']} deletions exceed the capacity, {facts['capacity']}.")
        if certificate.tier == "exact" and not 0 <= facts.get("rebuilt", 0) <= facts.get("shards", 0):
            raise _Failed(f"{facts['rebuilt']} of {facts['shards']} shards were rebuilt.")
    if certificate.digests.code != code_digest():
        raise _Unchecked("It was issued by another version of Sordino, whose wording is not known here.")
    said = (promise(certificate.tier, facts), limits(certificate))
    if said != (certificate.promise, certificate.does_not_prove):
        raise _Failed("What is promised, or what is said not to be proved, does not follow from what it holds.")
    return "What is promised, and what is not proved, follow from what it holds."


def _qualification(certificate: Certificate) -> str:
    named, held = certificate.verification.qualification, certificate.qualification
    if named != (None if held is None else held.id):
        raise _Failed("The verification relies on another qualification than the one it holds.")
    if certificate.verification.qualified != (None if held is None else held.outcome):
        raise _Failed("The verification takes the qualification to have ended in another way.")
    if held is None:
        raise _Unchecked("The method was not qualified.")
    raise _Unchecked(f"The qualification is another file: compare its digest, {held.digest[:16]}….")


def _robustness(certificate: Certificate) -> str:
    count = len(certificate.verification.robustness)
    raise _Unchecked(f"{count} attempts to bring back what was deleted: measured on the model, which is not here.")


def _page(certificate: Certificate) -> str:
    raise _Unchecked("certificate.html is for reading; what is signed is certificate.json.")


_PARTS: Mapping[str, Callable[[Certificate], str]] = {
    "digests": _digests,
    "weights": _weights,
    "records": _records,
    "inclusion before": _inclusion,
    "absence after": _absence,
    "scores": _scores,
    "statistics": _statistics,
    "utility": _utility,
    "outcome": _outcome,
    "promise": _promise,
    "qualification": _qualification,
    "robustness": _robustness,
    "page": _page,
}
