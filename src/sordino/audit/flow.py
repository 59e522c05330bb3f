"""The audit of a trained run, in order: signals, attacks, controls, gates, requirements, verdict."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

import sordino
from sordino import stats
from sordino.attacks.base import Attack, discover, find
from sordino.audit.blind import blind_baseline
from sordino.audit.collecting import Collector, Ticker
from sordino.audit.evaluate import Evidence, Outcome, estimate, evaluate
from sordino.audit.extracted import Passage, attempt
from sordino.audit.gates import base_gate, blind_gate, bound_gate, canary_gate, lower_bound, shuffle_gate
from sordino.audit.planted import canary_levels, expose
from sordino.audit.require import check_names, judge, parse
from sordino.audit.verdict import Findings, claims, threat_model, untested, verdict
from sordino.errors import AuditError
from sordino.records import Example, Split
from sordino.records.store import load as load_split
from sordino.results import Attempt, AuditPlan, AuditReport, CanaryLevel, Estimate, Gate, encode
from sordino.run import Run
from sordino.signals import Signals

__all__ = ["audit"]

_HALVES, _SHUFFLES, _BLIND, _REDRAW = 11, 12, 13, 14


@dataclass(frozen=True)
class _Seeds:
    """Seeds of the audit's own randomness, apart from each other and from training's."""

    run: int

    def __call__(self, purpose: int) -> int:
        return int(np.random.SeedSequence([abs(self.run), purpose]).generate_state(1)[0])


def audit(
    run: Run,
    *,
    require: Sequence[str] = (),
    attacks: Sequence[str] = (),
    ticker: Ticker = lambda name, total: lambda done: None,
) -> AuditReport:
    """Audit `run`, write audit.json and attacks/, and return the report.

    `require` adds requirements to those of the plan; `attacks` limits the membership attacks by name
    (the pre-declared one is always among them). What was computed before is not computed again.
    Raises `AuditError` or `ConfigError` where that cannot be done as asked.
    """
    with run.lock():
        return _audit(run, require, attacks, ticker)


def _audit(run: Run, require: Sequence[str], names: Sequence[str], ticker: Ticker) -> AuditReport:
    started = time.monotonic()
    collector = Collector(run, ticker)
    placed = load_split(run.records)
    plan = _with_requirements(collector.card.plan, require)
    task = collector.config.task
    membership = _chosen(names, plan, task)
    extraction = discover("extraction")
    windowed = {n: a for n, a in extraction.items() if n != "exposure" and task in a.tasks}
    check_names(plan.require, _known_metrics(membership, windowed, plan, collector))
    seeds = _Seeds(collector.card.seed)

    candidates = [e for e in placed.examples if e.role == "candidate"]
    if not candidates:
        message = f"{run.path} has no audit candidates: it was trained with split.candidates: 0."
        raise AuditError(message, "Train with candidates to be able to audit.")
    views = {name: view for attack in membership.values() for name, view in attack.views.items()}
    pair = collector.signals(candidates, views)
    evidence = Evidence.of(candidates, seeds(_HALVES))
    outcome = evaluate(membership, *pair, evidence, plan, seeds(_SHUFFLES))
    pulled = [attempt(a, collector, candidates, pair, evidence, plan) for a in windowed.values()]
    _write_private(run, candidates, outcome, [p for _, passages in pulled for p in passages])
    found = expose(collector, extraction["exposure"], plan, {e.record.id: e for e in placed.canaries})
    levels = canary_levels(found, plan.confidence)
    utility = _utility(collector, placed, plan)
    blind = blind_baseline(pair[0].texts, evidence.member, evidence.group, shuffles=plan.shuffles, seed=seeds(_BLIND))
    bound, _, _ = lower_bound(outcome, plan)
    gates = (
        blind_gate(blind),
        base_gate(outcome, plan, seeds(_SHUFFLES)),
        shuffle_gate(outcome, plan, seeds(_REDRAW)),
        canary_gate(found, task),
        bound_gate(bound, None, plan.confidence),
    )
    findings = _findings(collector, outcome, [a for a, _ in pulled], levels, gates, utility)
    report = _report(collector, outcome, findings, bound, plan)
    report = replace(report, seconds={**report.seconds, "audit": round(time.monotonic() - started, 2)})
    run.write_audit(report)
    run.event("audited", verdict=report.verdict.state, forwards=collector.forwards)
    return report


def _with_requirements(plan: AuditPlan, require: Sequence[str]) -> AuditPlan:
    """The plan with more requirements, and with every FPR that one of them names."""
    texts = (*plan.require, *require)
    fpr = set(plan.fpr)
    for text in texts:
        metric, _, _ = parse(text)
        _, at, rate = metric.rpartition(".tpr@")
        if at and rate.endswith("fpr"):
            try:
                fpr.add(float(rate.removesuffix("fpr")))
            except ValueError:
                continue  # check_names says what is wrong with it
    return replace(plan, require=texts, fpr=tuple(sorted((f for f in fpr if 0 < f < 1), reverse=True)))


def _chosen(names: Sequence[str], plan: AuditPlan, task: str) -> dict[str, Attack]:
    for name in (plan.headline, *names):
        find("membership", name, task)
    known = {n: a for n, a in discover("membership").items() if task in a.tasks}
    return {n: a for n, a in known.items() if not names or n in names or n == plan.headline}


def _known_metrics(
    membership: Mapping[str, Attack], windowed: Mapping[str, Attack], plan: AuditPlan, collector: Collector
) -> list[str]:
    rates = ["auc", *(f"tpr@{f:g}fpr" for f in plan.fpr)]
    owners = ["membership", *(f"membership.{n}" for n in membership)]
    shares = [f"extraction.{n}.{k}" for n in windowed for k in ("rate", "excess")]
    useful, levels = ["accuracy", "loss"], []
    if collector.config.task == "causal-lm":
        useful, levels = ["perplexity"], [f"canaries.exposure@{k}" for k in collector.config.canaries.levels]
    rest = ["epsilon.lower", *(f"utility.{which}{name}" for which in ("", "base_") for name in useful)]
    return [f"{o}.{r}" for o in owners for r in rates] + shares + levels + rest


def _write_private(run: Run, candidates: Sequence[Example], outcome: Outcome, passages: Sequence[Passage]) -> None:
    """Per-record scores and extracted text stay in private/."""
    scores = {a.name: row.tolist() for a, row in zip(outcome.attempts, outcome.scores, strict=True)}
    rows = {"member": outcome.evidence.member.tolist(), "scores": scores}
    run.write_private("scores.json", encode(rows))
    run.write_private("passages.json", encode(list(passages)))


def _utility(collector: Collector, placed: Split, plan: AuditPlan) -> dict[str, Estimate]:
    if not placed.validation:
        return {}
    tuned, base = collector.signals(placed.validation, {})
    _, group = np.unique([e.group for e in placed.validation], return_inverse=True)

    measure = _class_utility if collector.config.task == "classification" else _language_utility
    after, before = (measure(signals, group, plan.confidence) for signals in (tuned, base))
    return after | {f"base_{name}": found for name, found in before.items()}


def _language_utility(signals: Signals, group: np.ndarray, confidence: float) -> dict[str, Estimate]:
    rows = signals.logprob
    return {"perplexity": estimate(stats.perplexity_interval(-rows.sum(), rows.counts, group, confidence))}


def _class_utility(signals: Signals, group: np.ndarray, confidence: float) -> dict[str, Estimate]:
    s, scored = signals.statistics, signals.logprob.counts > 0
    hits = np.asarray(s.top) == s.token
    return {
        "accuracy": estimate(stats.korn_graubard(hits, group[scored], confidence)),
        "loss": estimate(stats.mean_interval(signals.nll[scored], group[scored], confidence)),
    }


def _metrics(outcome: Outcome, findings: Findings, bound: Estimate) -> dict[str, Estimate]:
    found = {f"membership.{k}": v for k, v in outcome.headline.items()}
    for a in outcome.attempts:
        found |= {f"membership.{a.name}.{k}": v for k, v in a.estimates.items()}
    for a in findings.extraction:
        found |= {f"extraction.{a.name}.{k}": v for k, v in a.estimates.items()}
    found |= {f"canaries.exposure@{level.repetitions}": level.included for level in findings.canaries}
    found |= {f"utility.{k}": v for k, v in findings.utility.items()}
    return found | {"epsilon.lower": bound}


def _findings(
    collector: Collector,
    outcome: Outcome,
    pulled: Sequence[Attempt],
    levels: tuple[CanaryLevel, ...],
    gates: tuple[Gate, ...],
    utility: Mapping[str, Estimate],
) -> Findings:
    evidence = outcome.evidence
    inside, outside = (len(np.unique(evidence.group[evidence.member == side])) for side in (True, False))
    return Findings(
        p_value=outcome.p_value,
        strongest=outcome.strongest,
        headline=outcome.headline,
        extraction=pulled,
        canaries=levels,
        gates={g.name: g for g in gates},
        utility=utility,
        members=inside,
        nonmembers=outside,
        unit=str(collector.card.data["unit"]),
        task=collector.config.task,
    )


def _report(
    collector: Collector, outcome: Outcome, findings: Findings, bound: Estimate, plan: AuditPlan
) -> AuditReport:
    card, evidence = collector.card, outcome.evidence
    metrics = _metrics(outcome, findings, bound)
    attempts = (*outcome.attempts, *findings.extraction)
    return AuditReport(
        run=card.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict(findings),
        task=findings.task,
        threat_model=threat_model(findings.unit, [a.access for a in attempts], findings.task),
        claims=claims(findings, None),
        attempts=attempts,
        canaries=tuple(findings.canaries),
        gates=tuple(findings.gates.values()),
        utility=findings.utility,
        metrics=metrics,
        requirements=tuple(judge(text, metrics) for text in plan.require),
        untested=untested(findings.task, {n: a.tasks for n, a in discover("membership").items()}),
        counts={
            **card.data["counts"],
            "members": int(evidence.member.sum()),
            "non-members": int((~evidence.member).sum()),
            "coins in": findings.members,
            "coins out": findings.nonmembers,
            "unscored": outcome.unscored,
        },
        notices=card.notices,
        provenance=_provenance(collector),
        seconds={"training": float(card.training.get("seconds", 0.0))},
        strongest=outcome.strongest,
    )


def _provenance(collector: Collector) -> dict[str, str]:
    card = collector.card
    named = {k: str(card.model[k]) for k in ("path", "base", "weights", "tokenizer", "serializer")}
    return {
        **{f"model.{k}": v for k, v in named.items()},
        "data.fingerprint": str(card.data["fingerprint"]),
        "seed": str(card.seed),
        "sordino": sordino.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **{f"trained with {k}": v for k, v in card.environment.items()},
    }
