"""The model card that goes with an exported model: how it was trained, and what its audit found.

Aggregates only: no private text, no record id, no path of the owner's machine, and not the seed, from
which whoever knows a unit's name could work out its coin.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sordino.report import text
from sordino.results import AuditReport, Estimate, RunCard

__all__ = ["Artefact", "render_card"]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_TRAIN = (
    "epochs", "batch_size", "learning_rate", "schedule", "warmup", "weight_decay", "clip", "precision", "select",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """What a folder holds: `form` in words, its `base` as the public knows it, and the type of its numbers.

    `adapter` says whether the weights are an adapter, `hub` whether `base` is a hub id, `audited` whether
    these are the weights the audit attacked, bit for bit.
    """

    form: str
    base: str
    dtype: str
    adapter: bool
    hub: bool
    audited: bool


def render_card(card: RunCard, report: AuditReport | None, artefact: Artefact) -> str:
    """Write README.md of an exported model, the same text for the same arguments."""
    parts = [
        _front(card, artefact),
        f"# {_plain(card.name)}",
        f"{_plain(artefact.form)}, in {artefact.dtype}; fine-tuned from {_plain(artefact.base)} on private records.",
        _usage(card, artefact),
        _training(card),
        *_privacy(report, artefact),
    ]
    return "\n\n".join(parts) + "\n"


def _classifies(card: RunCard) -> bool:
    return card.config.get("task") == "classification"


def _front(card: RunCard, artefact: Artefact) -> str:
    lines = ["---", f"library_name: {'peft' if artefact.adapter else 'transformers'}"]
    lines.append(f"pipeline_tag: {'text-classification' if _classifies(card) else 'text-generation'}")
    if artefact.hub:
        lines.append(f"base_model: {artefact.base}")
    return "\n".join([*lines, "tags:", "- sordino", "---"])


def _usage(card: RunCard, artefact: Artefact) -> str:
    head = "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    load = 'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
    if artefact.adapter:
        head = head.replace("from transformers", "from peft import PeftModel\nfrom transformers", 1)
        where = artefact.base if artefact.hub else "FOLDER/base"
        load = f'base = AutoModelForCausalLM.from_pretrained("{where}")\n'
        load += 'model = PeftModel.from_pretrained(base, "FOLDER")\n'
    if _classifies(card):
        head, load = (part.replace("ForCausalLM", "ForSequenceClassification") for part in (head, load))
        if artefact.adapter and artefact.hub:
            # The base knows nothing of the classes; config.json beside the adapter does.
            head = head.replace("import Auto", "import AutoConfig, Auto", 1)
            load = load.replace(f'("{where}")', f'(\n    "{where}", config=AutoConfig.from_pretrained("FOLDER")\n)')
    return f'{head}{load}tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'


def _training(card: RunCard) -> str:
    """A table of how the model was trained, without a word about where the records are."""
    method, train = card.config.get("method", {}), card.config.get("train", {})
    counts = card.data.get("counts", {})
    rows = [("Method", ", ".join(f"{k} {v}" for k, v in text.flatten(method)))]
    rows += [(key.replace("_", " ").capitalize(), str(train[key])) for key in _TRAIN if key in train]
    rows += [("Records trained on", f"{counts['trained']:,}")] if "trained" in counts else []
    rows += [("Unit of privacy", str(card.data["unit"]))] if "unit" in card.data else []
    read = "Tokens read" if _classifies(card) else "Target tokens"
    figures = (("step", "Optimizer steps"), ("tokens", f"{read}, all epochs together"))
    rows += [(name, f"{card.training[key]:,}") for key, name in figures if key in card.training]
    if card.training.get("accuracy") is not None:
        rows.append(("Accuracy on validation records", f"{card.training['accuracy']:.3f}"))
    shape = (("parameters", "Parameters"), ("trainable", "Parameters tuned"))
    rows += [(name, f"{card.model[key]:,}") for key, name in shape if key in card.model]
    rows.append(("Differential privacy", text.promise(card.privacy) or "none was claimed"))
    rows += [("Deletion", text.deletion(card))] if card.unlearning else []
    return f"## Training\n\n{_table(('what', 'value'), rows)}"


def _privacy(report: AuditReport | None, artefact: Artefact) -> list[str]:
    """The findings of the audit, or that there was none."""
    if report is None:
        words = (
            "This model was not audited. Nothing is known about what it gives away of the records it was trained on."
        )
        return ["## Privacy", words]
    sentence, reasons = text.headline(report)
    state = report.verdict.state
    parts = [
        "## Privacy",
        f"**{text.STATE[state]}.** {_plain(sentence)}",
        text.meaning(report),
        _bullets(reasons),
        _attacks(report),
        _canaries(report),
        _controls(report),
        f"### What was not tested\n\n{_bullets([*_differs(artefact), *report.untested])}",
        _source(report),
    ]
    return [part for part in parts if part]


def _differs(artefact: Artefact) -> list[str]:
    if artefact.audited:
        return []
    return ["These very numbers: the audit attacked the weights in float32 and as tuned, before they were exported."]


def _attacks(report: AuditReport) -> str:
    """Every attack's figures with intervals, beside the untuned base; what an invalid split withholds is left out."""
    rows = [
        (
            attempt.name,
            text.metric_label(metric),
            text.estimate_text(one, metric),
            _beside(attempt.control.get(metric)),
            "–" if attempt.p_value is None else f"{attempt.p_value:.2g}",
        )
        for attempt in report.attempts
        for metric, one in attempt.estimates.items()
        if not text.withheld(report, f"{attempt.family}.{attempt.name}.{metric}") and not metric.startswith("realised")
    ]
    if not rows:
        return ""
    sizes = {f"{round(100 * one.confidence)}%" for a in report.attempts for one in a.estimates.values()}
    head = ("attack", "figure", "this model", "untuned base", "p, adjusted")
    return f"### Attacks\n\nIntervals at {', '.join(sorted(sizes))} confidence.\n\n{_table(head, rows)}"


def _beside(control: Estimate | None) -> str:
    return "–" if control is None else text.estimate_text(control)


def _canaries(report: AuditReport) -> str:
    rows = [
        (
            f"{level.repetitions}×",
            text.estimate_text(level.included),
            text.estimate_text(level.left_out),
            f"{level.bits:.1f}",
        )
        for level in report.canaries
    ]
    if not rows:
        return ""
    words = "Random secrets were planted in the training data; exposure is in bits, 1.4 by chance."
    return f"### Planted canaries\n\n{words}\n\n{_table(('repeated', 'exposure', 'left out', 'at most'), rows)}"


def _controls(report: AuditReport) -> str:
    words = {True: "passed", False: "FAILED", None: "could not be judged"}
    rows = [(gate.question, words[gate.passed]) for gate in report.gates if not _hidden(report, gate.name)]
    bound = report.metrics.get("epsilon.lower")
    if bound is not None and not text.withheld(report, "epsilon.lower"):
        rows.append((f"Lower bound on ε ({bound.method})", text.figure_text(bound)))
    coins = report.metrics.get("epsilon.canaries")
    if coins is not None:
        rows.append((f"Lower bound on ε from canaries ({coins.method})", text.figure_text(coins)))
    return f"### Controls\n\n{_table(('control', 'outcome'), rows)}" if rows else ""


def _hidden(report: AuditReport, gate: str) -> bool:
    return gate == "bound" and text.withheld(report, "epsilon.lower")


def _source(report: AuditReport) -> str:
    counts = [f"{report.counts[k]:,} {k}" for k in ("members", "non-members") if k in report.counts]
    version = report.provenance.get("sordino", "")
    tested = f", on {' and '.join(counts)}" if counts else ""
    return f"Audited on {text.moment(report.created)} with Sordino {_plain(version)}{tested}.".replace("  ", " ")


def _plain(value: str) -> str:
    """Write `value` so that nothing in it is markup."""
    return _MARKUP.sub(r"\\\1", " ".join(text.printable(value).split()))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows])
