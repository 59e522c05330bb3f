"""What an audit found, put together: figures by name, findings, and the report with where it comes from."""

import platform
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import numpy as np

import sordino
from sordino.audit.choosing import Chosen
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import Outcome
from sordino.audit.identified import IDENTIFIED
from sordino.audit.require import judge
from sordino.audit.subjects import Trained
from sordino.audit.verdict import Findings, claims, threat_model, verdict
from sordino.audit.written import Written
from sordino.pii import kind_of
from sordino.results import Attempt, AuditPlan, AuditReport, Estimate, Gate, Notice

__all__ = ["findings_of", "known_metrics", "report_of"]


def known_metrics(chosen: Chosen, plan: AuditPlan, collector: Collector) -> list[str]:
    """The names of all figures that an audit of the `chosen` attacks can have, which requirements may use."""
    rates = ["auc", *(f"tpr@{f:g}fpr" for f in plan.fpr)]
    owners = ["membership", *(f"membership.{n}" for n in chosen.membership)]
    shares = [f"extraction.{n}.{k}" for n in (*chosen.extraction, *chosen.asking) for k in ("rate", "excess")]
    known = [f"{o}.{r}" for o in owners for r in rates] + shares + [f"membership.{IDENTIFIED}"]
    known += [f"secrets.{kind_of(one.kind)}" for one in plan.secrets]
    if not isinstance(collector.subject, Trained):
        return [*known, "membership.delta_auc"]
    useful, levels = ["accuracy", "loss"], []
    if collector.subject.task == "causal-lm":
        useful = ["perplexity"]
        levels = [f"canaries.exposure@{k}" for k in collector.subject.config.canaries.levels]
        levels += ["epsilon.canaries"] * bool(collector.subject.config.canaries.audit.count)
    rest = ["epsilon.lower", *(f"utility.{which}{name}" for which in ("", "base_") for name in useful)]
    return [*known, *levels, *rest]


def _metrics(outcome: Outcome, findings: Findings, bound: Estimate | None) -> dict[str, Estimate]:
    found = {f"membership.{k}": v for k, v in outcome.headline.items()}
    for a in outcome.attempts:
        found |= {f"membership.{a.name}.{k}": v for k, v in a.estimates.items()}
    if verdict(findings).state == "invalid split":
        found = {}  # they would describe the split, and a requirement must not be judged by them
    if findings.delta is not None:
        found["membership.delta_auc"] = findings.delta
    for a in findings.extraction:
        found |= {f"extraction.{a.name}.{k}": v for k, v in a.estimates.items()}
    found |= {f"secrets.{one.kind}": one.members for one in findings.secrets}
    found |= {f"canaries.exposure@{level.repetitions}": level.included for level in findings.canaries}
    found |= {f"utility.{k}": v for k, v in findings.utility.items()}
    if findings.canary_bound is not None:
        found["epsilon.canaries"] = findings.canary_bound
    return found | ({"epsilon.lower": bound} if bound is not None else {})


def findings_of(
    collector: Collector, outcome: Outcome, gates: Sequence[Gate], pulled: Sequence[Attempt]
) -> Findings:  # fmt: skip
    """What the verdict is drawn from, as far as attacks and gates give it."""
    evidence = outcome.evidence
    inside, outside = (len(np.unique(evidence.group[evidence.member == side])) for side in (True, False))
    return Findings(
        p_value=outcome.p_value,
        strongest=outcome.strongest,
        headline=outcome.headline,
        extraction=pulled,
        canaries=(),
        gates={g.name: g for g in gates},
        utility={},
        members=inside,
        nonmembers=outside,
        unit=str(collector.card.data["unit"]),
        trained_here=collector.subject.trained_here,
        task=collector.subject.task,
        by_unit=any(a.level == "unit" for a in outcome.attempts if a.name == outcome.strongest),
    )


def report_of(
    collector: Collector,
    outcome: Outcome,
    findings: Findings,
    bound: Estimate | None,
    plan: AuditPlan,
    inputs: Collection[str],
) -> AuditReport:
    """The report of an audit; `inputs` is what attacks were given besides signals."""
    card, evidence, here = collector.card, outcome.evidence, findings.trained_here
    metrics = _metrics(outcome, findings, bound)
    attempts = (*outcome.attempts, *findings.extraction)
    access, group = [a.access for a in attempts], "coins" if here else "groups"
    return AuditReport(
        run=card.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict(findings),
        task=findings.task,
        threat_model=threat_model(findings, access, collector.subject.has_base, inputs),
        claims=claims(findings),
        attempts=attempts,
        canaries=tuple(findings.canaries),
        gates=tuple(findings.gates.values()),
        utility=findings.utility,
        metrics=metrics,
        requirements=tuple(judge(text, metrics) for text in plan.require),
        untested=(),
        counts={
            **card.data["counts"],
            "members": int(evidence.member.sum()),
            "non-members": int((~evidence.member).sum()),
            f"{group} in": findings.members,
            f"{group} out": findings.nonmembers,
            "unscored": outcome.unscored,
        },
        notices=_notices(collector),
        provenance=_provenance(collector),
        seconds={"training": float(card.training.get("seconds", 0.0))} if here else {},
        strongest=outcome.strongest,
        trained_here=here,
    )


def _notices(collector: Collector) -> tuple[Notice, ...]:
    """Those of the run, and those of what a server wrote, each once."""
    more = collector.subject.notices if isinstance(collector.subject, Written) else ()
    return tuple(dict.fromkeys((*collector.card.notices, *more)))


def _provenance(collector: Collector) -> dict[str, str]:
    card = collector.card
    named = {k: str(card.model[k]) for k in ("path", "base", "weights", "tokenizer", "serializer")}
    if not collector.subject.trained_here:
        named |= collector.subject.manifest()
    return {
        **{f"model.{k}": v for k, v in named.items()},
        "data.fingerprint": str(card.data["fingerprint"]),
        "sordino": sordino.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **{
            f"{'trained' if collector.subject.trained_here else 'prepared'} with {k}": v
            for k, v in card.environment.items()
        },
    }
