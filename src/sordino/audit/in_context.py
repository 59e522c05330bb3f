"""Who stood in the prompt? An audit of its own: coins decide over the prompt, and training has no say."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

import sordino
from sordino import stats
from sordino.attacks.base import Attack, discover
from sordino.audit.collecting import Collector, Ticker
from sordino.audit.evaluate import Evidence, curve, rates, score
from sordino.audit.external import External
from sordino.audit.prompted import Prompted, draw, signals_of
from sordino.audit.subjects import Trained
from sordino.errors import AuditError, ConfigError
from sordino.evidence import digest
from sordino.records.store import load as load_split
from sordino.results import Attempt, AuditPlan, Gate, PromptReport, Verdict, encode
from sordino.run import Run, write_atomic

__all__ = ["audit_prompt"]

# As for a whole audit: p-values below this are a leak, and above this upper end of an AUC nothing is called clean.
_LEVEL, _CLEAN_AUC = 0.01, 0.6


def audit_prompt(
    run: Run, *, shots: int = 4, trials: int = 200, ticker: Ticker = lambda name, total: lambda done: None
) -> PromptReport:
    """Put records into prompts of the model by coins, attack the prompts, and write in-context.json.

    In each of `trials` prompts stand `shots` records; they and as many others are scored. All are drawn from records
    that were not trained on, each once. `run` is a run of Sordino's own, or the folder of an audit of a
    model from elsewhere whose weights are here. Raises `ConfigError`, and `AuditError` where that cannot be done.
    """
    for name, value in (("shots", shots), ("trials", trials)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}.", "It must be a whole number of at least 1.")
    with run.lock():
        started = time.monotonic()
        collector = Collector(run, ticker)
        _check(collector)
        seed = int(digest("in-context", str(collector.card.seed))[:12], 16)
        drawn = draw(collector, load_split(run.records), shots, trials, seed)
        report = _report(collector, drawn, seed, started)
        write_atomic(run.path / "in-context.json", encode(report))
        run.event("prompts audited", verdict=report.verdict.state, forwards=collector.forwards)
    return report


def _check(collector: Collector) -> None:
    subject = collector.subject
    if subject.task != "causal-lm":
        message = f"{collector.run.path} is a classifier: nothing is put before the text that it reads."
        raise AuditError(message, "Audit a language model.")
    if not isinstance(subject, Trained | External):
        message = "Prompts are made here only for models whose weights are here, and this one is on a server."
        raise AuditError(message, "Leave out --endpoint, and give --model a folder or a hub id.")


def _report(collector: Collector, drawn: Prompted, seed: int, started: float) -> PromptReport:
    plan, attacks = collector.card.plan, discover("in-context")
    own, other = signals_of(collector, drawn)
    found, control = (np.stack([score(a, signals) for a in attacks.values()]) for signals in (own, other))
    p_value, adjusted = stats.max_t_within(found, drawn.member, drawn.trial, plan.shuffles, seed)
    attempts = tuple(
        _attempt(attack, (found[i], control[i]), float(adjusted[i]), drawn, plan)
        for i, attack in enumerate(attacks.values())
    )
    gate = _gate(control, attempts, drawn, plan, seed)
    shots = int(drawn.member.sum()) // len(drawn.prompts)
    named = {
        k: str(collector.card.model[k]) for k in ("path", "base", "weights", "serializer") if k in collector.card.model
    }
    return PromptReport(
        run=collector.card.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=_verdict(attempts, p_value, gate, shots),
        shots=shots,
        trials=len(drawn.prompts),
        attempts=attempts,
        gate=gate,
        counts={"in the prompt": int(drawn.member.sum()), "not in it": int((~drawn.member).sum())},
        notices=drawn.notices,
        provenance={**{f"model.{k}": v for k, v in named.items()}, "sordino": sordino.__version__},
        seconds={"audit": round(time.monotonic() - started, 2)},
    )


def _attempt(
    attack: Attack, scores: tuple[np.ndarray, np.ndarray], p_value: float, drawn: Prompted, plan: AuditPlan
) -> Attempt:
    # Records of one trial share its prompt: prompts are what is independent.
    held = stats.calibration_split(drawn.member, drawn.trial)
    nobody = np.zeros(len(drawn.member), dtype=bool)
    evidence = Evidence(
        member=drawn.member, group=drawn.trial, calibration=held, choose=nobody, calibrate=nobody
    )  # fmt: skip
    found, control = scores
    return Attempt(
        name=attack.name,
        family="in-context",
        summary=attack.summary,
        paper=attack.paper,
        access=attack.access,
        parameters=attack.parameters,
        estimates=rates(found, evidence, plan),
        control=rates(control, evidence, plan),
        p_value=p_value,
        records=len(found),
        coins=len(drawn.prompts),
        roc=curve(found, drawn.member),
        control_roc=curve(control, drawn.member),
    )


def _gate(
    control: np.ndarray, attempts: Sequence[Attempt], drawn: Prompted, plan: AuditPlan, seed: int
) -> Gate:  # fmt: skip
    p_value, _ = stats.max_t_within(control, drawn.member, drawn.trial, plan.shuffles, seed, "two-sided")
    far = max((a.control["auc"].value or 0.5 for a in attempts), key=lambda area: abs(area - 0.5))
    return Gate(
        name="other prompt",
        question="Are all attacks at chance after a prompt of other records, over which these coins decided nothing?",
        passed=p_value >= _LEVEL,
        finding=f"The AUC farthest from ½ after another prompt is {far:.3f} (max-T p = {p_value:.3g} over all).",
        p_value=p_value,
    )


def _verdict(attempts: Sequence[Attempt], p_value: float, gate: Gate, shots: int) -> Verdict:
    best = max(attempts, key=lambda a: a.estimates["auc"].value or 0.0)
    area = best.estimates["auc"]
    told = (
        f"Shown one of the {shots} records in a prompt and one that was not there, {best.name} picks the right one "
        f"{round(100 * (area.value or 0.5))} times in 100 (AUC {area}); guessing would be 50."
    )
    apart = "This is about what is put into prompts. It says nothing about training, and no ε follows from it."
    if not gate.passed:
        words = "The coins show in the scores without their prompt: the figures mean nothing."
        return Verdict(state="invalid split", headline=words, reasons=(gate.finding,))
    if p_value < _LEVEL and max(a.estimates["auc"].low for a in attempts) > 0.5:
        return Verdict(state="leaks", headline="Which records stood in a prompt can be told.", reasons=(told, apart))
    if max(a.estimates["auc"].high for a in attempts) > _CLEAN_AUC:
        words = "Whether it can be told which records stood in a prompt is open: more --trials would say."
        return Verdict(state="inconclusive", headline=words, reasons=(told, apart))
    return Verdict(
        state="no leak found", headline="It was not told which records stood in a prompt.", reasons=(told, apart)
    )
