"""The audit of a trained run, in order: signals, attacks, controls, gates, requirements, verdict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sordino.attacks.base import Suite, discover
from sordino.audit.blind import blind_baseline
from sordino.audit.canaried import Canaried, beside, canaried, memorisation, of_candidates
from sordino.audit.choosing import Chosen, choose
from sordino.audit.claimed import Claimed, claimed
from sordino.audit.collecting import Collector, Ticker
from sordino.audit.datasets import attempts_on_the_set
from sordino.audit.evaluate import Evidence, Outcome, delta, evaluate, noted
from sordino.audit.external import create_external
from sordino.audit.extracting import extract
from sordino.audit.gates import base_gate, blind_gate, bound_gate, canary_gate, lower_bound, shuffle_gate
from sordino.audit.inputs import Context, provide
from sordino.audit.inputs.drawn import along
from sordino.audit.planted import Found, canary_levels, expose
from sordino.audit.reporting import findings_of, known_metrics, report_of
from sordino.audit.require import check_names, parse
from sordino.audit.secrets import check_secrets
from sordino.audit.settings import load_external
from sordino.audit.untested import Kind, untested
from sordino.audit.utility import utility
from sordino.audit.written import Written
from sordino.errors import AuditError
from sordino.records import Example, Split
from sordino.records.columns import Rows
from sordino.records.placed import where
from sordino.records.store import load as load_split
from sordino.results import AuditPlan, AuditReport, Estimate, Gate, InputPlan, SecretPlan, encode
from sordino.run import Run

__all__ = ["audit", "audit_model"]

_HALVES, _SHUFFLES, _BLIND, _REDRAW, _KNOWN, _INPUTS, _SET = 11, 12, 13, 14, 15, 16, 17


@dataclass(frozen=True)
class _Seeds:
    """Seeds of the audit's own randomness, apart from each other and from training's."""

    run: int

    def __call__(self, purpose: int) -> int:
        return int(np.random.SeedSequence([abs(self.run), purpose]).generate_state(1)[0])


def audit(  # noqa: PLR0913 - a run, and what may be chosen when it is audited
    run: Run,
    *,
    require: Sequence[str] = (),
    attacks: Sequence[str] = (),
    suite: Suite | None = None,
    inputs: InputPlan | None = None,
    secrets: Sequence[SecretPlan] | None = None,
    ticker: Ticker = lambda name, total: lambda done: None,
) -> AuditReport:
    """Audit `run`, write audit.json and attacks/, and return the report.

    `require` adds requirements to those of the plan; `attacks` limits the membership attacks by name
    (the pre-declared one is always among them), `suite`, `inputs` and `secrets` replace the plan's. What was computed
    before is not computed again. Raises `AuditError` or `ConfigError` where that cannot be done as asked.
    """
    with run.lock():
        plan = run.card.plan
        plan = replace(
            plan, suite=suite or plan.suite, inputs=inputs or plan.inputs,
            secrets=plan.secrets if secrets is None else tuple(secrets),
        )  # fmt: skip
        return _audit(run, require, attacks, plan, ticker)


def audit_model(
    model: str,
    *,
    members: str,
    nonmembers: str,
    require: Sequence[str] = (),
    attacks: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Audit a model that Sordino did not train; returns its run folder, whose `audit` is the report.

    `model` is a folder, a hub id or, with `endpoint`, its name on a server; `members` and `nonmembers`
    are files of records; `options` are further keys of `ExternalConfig`, such as `base="gpt2"` or
    `data={"text": "body"}`. Raises as `audit` does, and `DataError` and `ModelError`.
    """
    data = {**options.pop("data", {}), "path": str(members)}
    values = {"model": {"path": str(model)}, "data": data, "nonmembers": str(nonmembers), **options}
    run = create_external(load_external(values))
    audit(run, require=require, attacks=attacks)
    return run


def _audit(
    run: Run,
    require: Sequence[str],
    names: Sequence[str],
    plan: AuditPlan,
    ticker: Ticker,
) -> AuditReport:
    started = time.monotonic()
    collector = Collector(run, ticker)
    placed = load_split(run.records)
    plan, seeds = _with_requirements(plan, require), _Seeds(collector.card.seed)
    on_canaries, plan = plan.headline == "canaries", of_candidates(plan)
    candidates = list(placed.candidates)
    if not candidates:
        message = f"{run.path} has no audit candidates: it was trained with split.candidates: 0."
        raise AuditError(message, "Train with candidates to be able to audit.")
    context = Context(
        collector=collector, examples=candidates, known=_told(placed, plan, seeds(_KNOWN)), plan=plan,
        seed=seeds(_INPUTS),
    )  # fmt: skip
    chosen = choose(names, context)
    check_names(plan.require, known_metrics(chosen, plan, collector))
    if chosen.secrets:
        check_secrets(plan, candidates)

    made = [*chosen.membership.values(), *chosen.extraction.values()]
    views = {name: view for attack in made for name, view in attack.views.items()}
    wanted = {name for attack in made for name in attack.inputs}
    with context.timed("passes"):
        own = collector.signals(candidates, views, along(context) if "drawn" in wanted else ())
    pair = provide(wanted, context, own)
    evidence = Evidence.of(candidates, seeds(_HALVES))
    with context.timed("statistics"):
        outcome = evaluate(chosen.scoring, *pair, evidence, plan, seeds(_SHUFFLES))
    outcome = replace(outcome, attempts=noted(outcome.attempts, chosen.scoring, context.notes))
    pulled = extract(context, chosen, pair, evidence)
    _write_scores(run, outcome)
    with context.timed("canaries"):
        found = _exposed(collector, placed, plan)
        coins = canaried(collector, placed.canaries, plan)
    with context.timed("blind control"):
        texts, shuffles = pair[0].texts, plan.shuffles
        blind = blind_baseline(texts, evidence.member, evidence.group, shuffles=shuffles, seed=seeds(_BLIND))
    bound = lower_bound(outcome, plan)[0] if collector.subject.trained_here else None
    gates = [blind_gate(blind), base_gate(outcome, plan, seeds(_SHUFFLES))]
    if bound is not None:
        gates.append(shuffle_gate(outcome, plan, seeds(_REDRAW), coins.gains if coins and on_canaries else None))
    claim = claimed(run, coins.examples if coins and on_canaries else candidates, plan)
    gates.append(canary_gate(found, collector.subject.trained_here, collector.subject.task, claim))
    if bound is not None:
        gates.append(_bound_gate(bound, coins, claim, plan, on_canaries))
    with context.timed("passes"):
        useful = utility(collector, placed, plan)
    findings = findings_of(collector, outcome, gates, pulled.attempts)
    findings = replace(
        findings,
        personal=pulled.personal,
        secrets=pulled.secrets,
        canaries=canary_levels(found, plan.confidence),
        canary_bound=coins.bound if coins else None,
        claim=claim,
        utility=useful,
        delta=None
        if collector.subject.trained_here
        else delta(outcome, [n for n, a in chosen.membership.items() if not a.base], plan.confidence),
    )
    outcome = replace(
        outcome, attempts=(*outcome.attempts, *attempts_on_the_set(chosen.on_the_set, outcome, plan, seeds(_SET)))
    )
    given = wanted | {name for attack in chosen.asking.values() for name in attack.inputs}
    report = report_of(collector, outcome, findings, bound, plan, given)
    report = replace(
        report,
        untested=(*chosen.left_out, *_untested(collector, chosen)),
        memorisation=memorisation(collector, plan.confidence),
        effort=pulled.effort,
        personal=pulled.personal,
        secrets=pulled.secrets,
        seconds={**report.seconds, **context.seconds, "audit": round(time.monotonic() - started, 2)},
    )
    run.write_audit(report)
    run.event("audited", verdict=report.verdict.state, forwards=collector.forwards)
    return report


def _told(placed: Split, plan: AuditPlan, seed: int) -> list[Example]:
    """Records whose membership the adversary knows: not candidates, so never judged; at most so many on a side."""
    rng = np.random.default_rng(seed)
    found: list[Example] = []
    for side in (where(placed.examples, "train"), where(placed.examples, "validation")):
        chosen = np.sort(rng.permutation(len(side))[: plan.inputs.known])
        found += side.take(chosen) if isinstance(side, Rows) else [side[int(i)] for i in chosen]
    return found


def _untested(collector: Collector, chosen: Chosen) -> tuple[str, ...]:
    return untested(_kind(collector), chosen.membership, discover("membership"), bool(chosen.personal))


def _kind(collector: Collector) -> Kind:
    if isinstance(collector.subject, Written):
        return "text"
    if not collector.subject.trained_here:
        return "elsewhere"
    return "classifier" if collector.subject.task == "classification" else "trained"


def _bound_gate(
    bound: Estimate, coins: Canaried | None, claim: Claimed | None, plan: AuditPlan, on_canaries: bool
) -> Gate:
    """Gate (e) on the bound that was declared before training, with the other beside it."""
    if coins is None or not on_canaries:
        return beside(bound_gate(bound, claim, plan.confidence), coins.bound if coins else None, "audit canaries")
    return beside(bound_gate(coins.bound, claim, plan.confidence), bound, "the candidates")


def _exposed(collector: Collector, placed: Split, plan: AuditPlan) -> list[Found]:
    if not collector.subject.trained_here:
        return []
    return expose(collector, discover("extraction")["exposure"], plan, {e.record.id: e for e in placed.canaries})


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


def _write_scores(run: Run, outcome: Outcome) -> None:
    """Per-record scores stay in private/."""
    scores = {a.name: row.tolist() for a, row in zip(outcome.attempts, outcome.scores, strict=True)}
    single = {"p_values": outcome.identified.p_values.tolist(), "called": outcome.identified.called.tolist()}
    rows = {
        "records": list(outcome.records),
        "member": outcome.evidence.member.tolist(),
        "scores": scores,
        "identified": {"attack": outcome.strongest, **single},
    }
    run.write_private("scores.json", encode(rows))
