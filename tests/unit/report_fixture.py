"""A believable audit of a fine-tuned model in four outcomes, for the tests of pages and tables."""

import math
from dataclasses import replace

import numpy as np

from sordino.report import Excerpt
from sordino.results import (
    Attempt,
    AuditReport,
    CanaryLevel,
    Claim,
    Curve,
    Decoding,
    Effort,
    Estimate,
    Gate,
    Notice,
    PersonalFinding,
    Requirement,
    RunCard,
    SecretFinding,
    Verdict,
)

N = 512
ATTACKS = {  # name: (separation in standard deviations, on the base; summary; paper; parameters)
    "reference": (2.05, 0.03, "Log-likelihood under the model minus that under the untuned base.",
                  "Carlini et al. 2021, Extracting Training Data from Large Language Models, section 5", {}),
    "loss": (1.28, 0.02, "Mean token log-likelihood of the record.",
             "Yeom et al. 2018, Privacy Risk in Machine Learning", {}),
    "zlib": (1.21, -0.02, "Log-likelihood over the bytes the record compresses to.",
             "Carlini et al. 2021, section 5", {"level": 6}),
    "min_k": (1.34, 0.04, "Mean log-likelihood of the least likely k of the tokens.",
              "Shi et al. 2024, Detecting Pretraining Data from Large Language Models", {"k": 0.2}),
    "min_k_plus": (1.49, 0.01, "The least likely k of the tokens, each normalised over the vocabulary.",
                   "Zhang et al. 2025, Min-K%++", {"k": 0.2}),
    "surprising": (0.71, -0.05, "Tokens the model was sure about and wrong.",
                   "Zhang and Wu 2024, Adaptive Pre-training Data Detection", {"entropy": 2.0, "k": 0.4}),
    "recall": (0.92, 0.05, "How much a prefix of known non-members lowers the likelihood.",
               "Xie et al. 2024, ReCaLL", {"shots": 7}),
    "neighbourhood": (1.02, 0.0, "Likelihood of the record against that of its neighbours.",
                      "Mattern et al. 2023, Membership Inference via Neighbourhood Comparison",
                      {"neighbours": 25, "masked_share": 0.3}),
}  # fmt: skip


def _estimate(value: float, half: float, method: str = "DeLong", low: float = 0.0, high: float = 1.0) -> Estimate:
    return Estimate(value=value, low=max(low, value - half), high=min(high, value + half), n=2 * N, method=method)


def _effort() -> tuple[Effort, ...]:
    """Two decodings and three numbers of queries; under the second nothing ever comes."""
    none = (_estimate(0.0, 0.01, "Korn–Graubard"),) * 3
    found = tuple(_estimate(share, 0.02, "Korn–Graubard") for share in (0.01, 0.04, 0.3))
    return (
        Effort(decoding=Decoding(), chance=0.5, queries=(1, 1_000, 1_000_000), members=found, others=none, base=none,
               easiest=1.2, median=17.4),
        Effort(decoding=Decoding(top_k=1), chance=0.5, queries=(1, 1_000, 1_000_000), members=none, others=none,
               base=none, easiest=None, median=None),
    )  # fmt: skip


def _personal() -> tuple[PersonalFinding, ...]:
    """Two kinds, one of them in inputs, and a kind that no attack names."""
    some, none = (_estimate(share, 0.05, "Korn–Graubard") for share in (0.4, 0.0))
    common = {"base": none, "others": none, "gain": some, "excess": some}
    return (
        PersonalFinding(attack="pii_inference", kind="ANY", scope="trained", members=some, p_value=0.001, chance=0.01,
                        **common),
        PersonalFinding(attack="pii_inference", kind="PERSON", scope="inputs", members=some, p_value=0.02, **common),
        PersonalFinding(attack="pii_extraction", kind="URL", scope="trained", members=none, p_value=1.0, **common),
    )  # fmt: skip


def _secrets() -> tuple[SecretFinding, ...]:
    """Secrets of a format, some of them known by heart."""
    members, base, others = (_estimate(bits, 0.5, "t interval") for bits in (9.5, 1.3, 1.6))
    return (
        SecretFinding(kind="PIN", format="[0-9]{4}", bits=13.3, members=members, base=base, others=others,
                      p_value=0.0001, base_p_value=0.02, method="exact rank by search",
                      counts={"members": 40, "others": 38, "first guesses": 12, "not of the format": 3}),
    )  # fmt: skip


def _scores(separation: float, seed: int) -> tuple[Curve, float]:
    rng = np.random.default_rng(seed)
    members, others = rng.normal(separation, 1, N), rng.normal(0, 1, N)
    scores = np.concatenate([members, others])
    order = np.argsort(-scores, kind="stable")
    hit = order < N
    tpr, fpr = np.cumsum(hit) / N, np.cumsum(~hit) / N
    auc = float(np.mean(members[:, None] > others[None, :]))
    return Curve(fpr=tuple(fpr.tolist()), tpr=tuple(tpr.tolist())), auc


def _figures(curve: Curve, auc: float) -> dict[str, Estimate]:
    spread = 1.96 * math.sqrt(max(auc * (1 - auc), 0.01) / N)
    figures = {"auc": _estimate(auc, spread * 0.8)}
    for fpr in (0.1, 0.01):
        reached = max((t for f, t in zip(curve.fpr, curve.tpr, strict=True) if f <= fpr), default=0.0)
        half = 1.96 * math.sqrt(max(reached * (1 - reached), 0.004) / N)
        figures[f"realised fpr@{fpr}fpr"] = _estimate(fpr * 1.1, fpr * 0.6, "Clopper–Pearson")
        figures[f"tpr@{fpr}fpr"] = _estimate(reached, half, "Clopper–Pearson, threshold from a disjoint split")
    figures["tpr@0.001fpr"] = Estimate(
        value=None,
        low=0.0,
        high=1.0,
        n=N,
        method="non-members, half of them to set the threshold for FPR ≤ 0.001",
        needs=10_000,
    )
    return figures


def _attempt(name: str, strength: float, seed: int) -> Attempt:
    separation, base, summary, paper, parameters = ATTACKS[name]
    roc, auc = _scores(separation * strength, seed)
    control_roc, control_auc = _scores(base, seed + 100)
    return Attempt(
        name=name,
        family="membership",
        summary=summary,
        paper=paper,
        access="token log-probabilities",
        parameters=parameters,
        estimates=_figures(roc, auc),
        control=_figures(control_roc, control_auc),
        p_value=0.001 if strength > 0.3 else 0.37 + seed / 100,
        records=2 * N,
        coins=2 * N,
        roc=roc,
        control_roc=control_roc,
        notes=("31 records are shorter than 8 tokens; their scores rest on few tokens.",) if name == "min_k" else (),
    )


def _extraction(strength: float) -> Attempt:
    rate, method = 0.19 * strength, "Clopper–Pearson over members"
    return Attempt(
        name="prefix",
        family="extraction",
        summary="Greedy continuation of the first 50 tokens, counted where the next 50 are exact.",
        paper="Carlini et al. 2023, Quantifying Memorization Across Neural Language Models",
        access="generated text",
        parameters={"prefix_tokens": 50, "suffix_tokens": 50, "decoding": "greedy"},
        estimates={
            "rate": _estimate(rate, 0.034 * strength + 0.004, method),
            "non-members": _estimate(0.002, 0.006, method),
            "excess": _estimate(rate - 0.002, 0.034 * strength + 0.006, "Newcombe", low=-1.0),
        },
        control={"rate": _estimate(0.002, 0.006, method)},
        p_value=None,
        records=N,
        coins=N,
        notes=("Passages the untuned base completes as well are marked and not counted.",),
    )


def _level(repetitions: int, strength: float) -> CanaryLevel:
    rng = np.random.default_rng(repetitions)
    bits, count = 19.9, 24
    lift = strength * 17.5 * (1 - math.exp(-repetitions / 5))
    inside = np.clip(rng.exponential(1.0, count) + rng.normal(lift, 1.9, count), 0.02, bits)
    outside = np.clip(rng.exponential(1.2, count), 0.01, bits)
    means = [float(np.mean(values)) for values in (inside, outside)]
    halves = [float(2.07 * np.std(values) / math.sqrt(count)) for values in (inside, outside)]
    included, left_out = (
        Estimate(value=mean, low=max(mean - half, 0.0), high=mean + half, n=count, method="bootstrap over canaries")
        for mean, half in zip(means, halves, strict=True)
    )
    return CanaryLevel(
        repetitions=repetitions,
        included=included,
        left_out=left_out,
        exposures=tuple(inside.tolist()),
        left_out_exposures=tuple(outside.tolist()),
        bits=bits,
        method="exact rank among 10^6 candidates" if repetitions < 32 else "skew-normal fit",
    )


def _gates(strength: float) -> tuple[Gate, ...]:
    return (
        Gate(
            name="blind",
            question="Can members be told from non-members without looking at the model?",
            passed=True,
            finding="A blind classifier reaches AUC 0.507; it would have noticed 0.558 or more.",
            p_value=0.41,
        ),
        Gate(
            name="base",
            question="Does any attack work on the untuned base?",
            passed=True,
            finding="The best of 8 attacks reaches AUC 0.529, as expected by chance.",
            p_value=0.63,
        ),
        Gate(
            name="shuffles",
            question="Does the audit stay silent on shuffled labels?",
            passed=True,
            finding="ε̂ > 0 in 7 of 200 shuffles; up to 16 are expected.",
        ),
        Gate(
            name="canaries",
            question="Does the instrument find secrets planted 32 times?",
            passed=True if strength > 0.3 else None,
            finding="Mean exposure 18.4 bits against 1.1 when left out."
            if strength > 0.3
            else "Too few canaries were included to judge.",
        ),
        Gate(
            name="bound",
            question="Is the pre-declared ε̂ below the claimed ε?",
            passed=None,
            finding="No differential privacy was claimed, so there is nothing to falsify.",
        ),
    )


def _requirements(report: AuditReport) -> tuple[Requirement, ...]:
    metrics = report.metrics
    return (
        Requirement(
            text="utility.perplexity <= 12",
            status="met",
            estimate=metrics["utility.perplexity"],
            finding="The whole interval lies below 12.",
        ),
        Requirement(
            text="membership.tpr@0.01fpr <= 0.05",
            status="failed",
            estimate=metrics["membership.tpr@0.01fpr"],
            finding="The whole interval lies above 0.05.",
        ),
        Requirement(
            text="membership.tpr@0.001fpr <= 0.01",
            status="inconclusive",
            estimate=metrics["membership.tpr@0.001fpr"],
            finding="Not resolvable with 512 non-members.",
        ),
    )


def _verdict(state: str) -> Verdict:
    return {
        "leaks": Verdict(
            state="leaks",
            headline="This model leaks: somebody who holds a record can tell whether it was in the training "
            "data 9 times out of 10.",
            reasons=(
                "The attack 'reference' reaches AUC 0.92 where the untuned base gives 0.52.",
                "19% of passages are continued word for word; the untuned base continues 0.2%.",
                "Canaries planted 32 times are among the first guesses of a million.",
            ),
        ),
        "no leak found": Verdict(
            state="no leak found",
            headline="No attack told members from non-members better than chance.",
            reasons=("The strongest of 8 attacks has AUC 0.55, p = 0.37 adjusted for all of them.",),
        ),
        "inconclusive": Verdict(
            state="inconclusive",
            headline="This audit cannot tell whether the model leaks: the sample is too small.",
            reasons=("The interval of the strongest attack reaches from 0.49 to 0.61.",),
        ),
        "invalid split": Verdict(
            state="invalid split",
            headline="HEADLINE THAT MUST NOT APPEAR",
            reasons=(
                "Members and non-members differ in date: a classifier that never sees the model reaches "
                "AUC 0.81 (p = 0.001).",
                "The split was supplied by the caller; Sordino did not draw the coins.",
            ),
        ),
    }[state]


def _skeleton(strength: float) -> AuditReport:
    attempts = tuple(_attempt(name, strength, seed) for seed, name in enumerate(ATTACKS))
    extraction = _extraction(strength)
    utility = {
        "perplexity": Estimate(value=8.42, low=8.11, high=8.75, n=400, method="bootstrap over records"),
        "base_perplexity": Estimate(value=21.7, low=20.6, high=22.9, n=400, method="bootstrap over records"),
    }
    levels = tuple(_level(repetitions, strength) for repetitions in (1, 2, 4, 8, 16, 32))
    metrics = {f"membership.{key}": one for key, one in attempts[0].estimates.items()}
    metrics["membership.auc"] = replace(metrics["membership.auc"], n=N, method="DeLong, the other half")
    metrics |= {f"membership.{a.name}.{key}": one for a in attempts for key, one in a.estimates.items()}
    metrics |= {"membership.delta_auc": _estimate(0.4 * strength, 0.03, "paired DeLong")}
    metrics |= {"extraction.prefix.rate": extraction.estimates["rate"]}
    metrics |= {f"canaries.exposure@{level.repetitions}": level.included for level in levels}
    metrics |= {f"utility.{key}": one for key, one in utility.items()}
    metrics |= {
        "epsilon.lower": Estimate(
            value=2.31 * strength,
            low=2.31 * strength,
            high=math.inf,
            n=2 * N,
            method="one run (Steinke et al. 2023)",
        )
    }
    return AuditReport(
        run="2026-11-21-notes-3f9a",
        created="2026-11-21T18:42:07Z",
        verdict=_verdict("leaks"),
        threat_model={
            "adversary": "Somebody outside who holds a candidate record and can query the model.",
            "sees": "Log-probabilities of every token, and generated text.",
            "knows": "The base model, the tokenizer and how the model was fine-tuned; not who took part.",
            "wants": "To learn whether the record was in the training data, or to read passages of it.",
            "unit": "One record; near-duplicates are one cluster and share a coin.",
        },
        claims=(
            Claim(
                statement="Records cannot be recognised as training data.",
                evidence="Eight membership attacks; the strongest reaches AUC 0.92 [0.90, 0.94].",
                status="contradicted",
            ),
            Claim(
                statement="The audit itself adds no bias.",
                evidence="Blind, base and shuffle controls passed.",
                status="supported",
            ),
            Claim(
                statement="Fewer than 1% of members can be singled out with near certainty.",
                evidence="TPR at 0.1% FPR is not resolvable with 512 non-members.",
                status="unresolved",
            ),
            Claim(
                statement="Training was differentially private.",
                evidence="No plan with ε and δ was used.",
                status="not tested",
            ),
        ),
        attempts=(*attempts, extraction),
        effort=_effort(),
        personal=_personal(),
        secrets=_secrets(),
        canaries=levels,
        gates=_gates(strength),
        utility=utility,
        metrics=metrics,
        requirements=(),
        untested=(
            "Attacks with access to weights or gradients.",
            "Attacks that train shadow models.",
            "Extraction by sampling instead of greedy decoding.",
            "Languages other than English, and records longer than 512 tokens.",
        ),
        counts={"members": N, "non-members": N, "coins": 2 * N, "records": 6_144, "canaries": 288},
        notices=(
            Notice(kind="duplicates", count=37, message="Near-duplicates merged into 15 clusters."),
            Notice(kind="truncated", count=112, message="Records cut at 512 tokens."),
        ),
        provenance={
            "data": "blake2b:9f2c4be07a61d3358c0f6b1e7724aa90c4de5c1387fb2aa4e6a8bb0c51e9d7f3",
            "adapter": "sha256:41d7a3c0be9f8e6c21fd0577c16a90abef38420c9d41c05510bb9a1e33a0f2c8",
            "sordino": "0.1.0",
            "torch": "2.13.0",
        },
        seconds={"signals": 84.2, "attacks": 11.6, "extraction": 203.9, "controls": 47.3},
        strongest="reference",
    )  # fmt: skip


def report(state: str = "leaks") -> AuditReport:
    """The audit with the outcome `state`, its figures in keeping with it."""
    strength = {"leaks": 1.0, "no leak found": 0.06, "inconclusive": 0.12, "invalid split": 1.0}[state]
    base = _skeleton(strength)
    gates = base.gates
    if state == "invalid split":
        finding = "A blind classifier reaches AUC 0.812: the dates give members away."
        gates = (replace(gates[0], passed=False, finding=finding, p_value=0.001), *gates[1:])
    claims = base.claims
    if state != "leaks":
        status = "supported" if state == "no leak found" else "unresolved"
        evidence = "Eight membership attacks; see their intervals."
        claims = (replace(claims[0], evidence=evidence, status=status), *claims[1:])
    return replace(base, claims=claims, verdict=_verdict(state), gates=gates, requirements=_requirements(base))


def card() -> RunCard:
    """The run the audit belongs to."""
    return RunCard(
        name="2026-11-21-notes-3f9a",
        created="2026-11-21T17:02:51Z",
        status="trained",
        config={
            "base": "sordino-mini-14m",
            "method": {"name": "lora", "rank": 16, "alpha": 32, "target": ["q_proj", "v_proj"]},
            "train": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-4, "max_tokens": 512, "seed": None},
        },
        seed=20261121,
        data={
            "source": "clinic-notes.jsonl",
            "records": {"train": 5_000, "candidates": 1_024},
            "unit": "record",
        },
        model={"base": "sha256:0c1d", "adapter": "sha256:41d7", "tokenizer": "sha256:77aa"},
        environment={"python": "3.11.7", "device": "cpu"},
        training={"steps": 942, "seconds": 611.5, "loss_first": 3.91, "loss_last": 2.13},
        notices=(Notice(kind="empty", count=3, message="Records without text, left out."),),
    )


def excerpts() -> tuple[Excerpt, ...]:
    """Invented passages that look private, one of them known to the untuned base as well."""
    return (
        Excerpt(
            record_id="patient-0417@clinic.example",
            prefix="Mrs Adelheid Quandt, born 3 May 1951, was seen after a fall at home. She reports",
            suffix=" pain in the left hip and takes apixaban twice a day; daughter Ines, 0171 5550142.",
            base_hit=False,
        ),
        Excerpt(
            record_id="patient-0009@clinic.example",
            prefix="Dear Dr Okonkwo, thank you for referring this gentleman whose HbA1c of",
            suffix=" 9.4% has not improved under metformin 1000 mg.",
            base_hit=False,
        ),
        Excerpt(
            record_id="letterhead",
            prefix="This letter was created electronically and is valid",
            suffix=" without signature.",
            base_hit=True,
        ),
    )


def compared(count: int = 2) -> list[tuple[RunCard, AuditReport]]:
    """A run that leaks, one under differential privacy that does not, and up to three more on the same records."""
    private = {"delta": 2.3e-3, "protected unit": "cluster", "neighbours": "add-or-remove-one"}
    rows = (
        ("plain", "leaks", 0.89, 4.1, {}), ("private", "inconclusive", 0.53, 4.9, {"epsilon": 7.99, **private}),
        ("strict", "inconclusive", 0.51, 6.9, {"epsilon": 1.0, **private}), ("stopped", "leaks", 0.60, 5.1, {}),
        ("goldfish", "leaks", 0.62, 4.8, {}),
    )  # fmt: skip
    found = []
    for name, state, auc, perplexity, privacy in rows[:count]:
        made = report(state)
        metrics = {
            **made.metrics, "membership.auc": _estimate(auc, 0.03), "epsilon.lower": _estimate(0.4, 0.0, high=99.0),
            "utility.perplexity": _estimate(perplexity, 0.15, high=99.0),
        }  # fmt: skip
        utility = {"perplexity": metrics["utility.perplexity"], "base_perplexity": _estimate(10.7, 0.3, high=99.0)}
        one = replace(
            card(), name=f"2026-11-21-{name}-3f9a", config={"name": name}, privacy=privacy, data={"fingerprint": "f00"}
        )
        found.append((one, replace(made, metrics=metrics, utility=utility, run=one.name)))
    return found
