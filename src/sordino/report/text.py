"""How figures, names and findings read in words: shared by the page and the terminal."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sordino.results import UNBOUNDED, AuditReport, Estimate, RunCard

__all__ = [
    "GLOSSARY",
    "MEANING",
    "STATE",
    "deletion",
    "estimate_text",
    "false_positive_rate",
    "figure_text",
    "flatten",
    "glossary",
    "headline",
    "in_words",
    "interval_text",
    "meaning",
    "metric_label",
    "moment",
    "printable",
    "promise",
    "withheld",
]

STATE = {
    "leaks": "Leaks",
    "no leak found": "No leak found",
    "inconclusive": "Inconclusive",
    "invalid split": "Invalid split",
}

MEANING = {
    "leaks": (
        "At least one attack did better than chance allows at telling what this model was trained on, or "
        "at reading it back. Whoever gets the access named in the threat model can do the same. The controls "
        "say how far the finding can be relied on."
    ),
    "no leak found": (
        "None of the attacks carried out here could tell records the model was trained on from records it "
        "never saw, or read them back, within the intervals shown. That is a statement about these attacks "
        "and this sample. It is not a proof that the model holds no secret: read what was not tested."
    ),
    "inconclusive": (
        "The evidence is too thin to decide either way. The intervals below reach from harmless to harmful, "
        "or a control could not be judged. More held-out records make them narrower."
    ),
    "invalid split": (
        "The records used as members differ from those used as non-members in ways that have nothing to do "
        "with the model. An attack could tell them apart without looking at the model at all, so its success "
        "says nothing about a leak. Membership figures are withheld on this page for that reason."
    ),
}

WITHIN = (
    "The training is claimed to be differentially private, and what was measured is within the claim. The claim "
    "bounds what anybody can tell of one unit, by whatever attack; the smaller its ε, the less. An audit cannot "
    "prove it, only show it to be wrong, and where attacks find nothing it cannot tell a model that holds "
    "nothing from one they are too weak for."
)

GLOSSARY = (
    (
        "Membership inference",
        "Telling whether a given record was in the training data. Where taking part is itself sensitive (a "
        "clinic, a complaint, a lawsuit), this alone is a breach.",
    ),
    (
        "AUC",
        "How often an attack picks the member when shown a pair of one member and one non-member. 0.5 is a "
        "coin toss, 1 is certainty.",
    ),
    (
        "TPR at FPR",
        "The share of members recognised (true-positive rate) while only the stated share of non-members is "
        "wrongly accused (false-positive rate). It shows harm to a few people that an average hides.",
    ),
    (
        "Exposure",
        "How much better than guessing the model completes a planted secret, in bits. Each bit halves the "
        "guesses an attacker needs; a secret the model never saw gives 1.4 bits on average, by chance.",
    ),
    (
        "Interval",
        "The range, in square brackets, in which the true figure lies with the stated confidence. A wide "
        "interval means little evidence, not little risk.",
    ),
    (
        "Untuned base",
        "The same model before it saw the private records. What an attack achieves there is not a leak of "
        "this training, so every figure stands beside it.",
    ),
)

# Spelt out here because strftime's names depend on the reader's locale.
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

RATE = re.compile(r"(?P<name>tpr|realised fpr)@(?P<fpr>[0-9.]+(?:e-?[0-9]+)?)fpr")

LABELS = {
    "auc": "AUC",
    "rate": "Passages extracted",
    "non-members": "Same, from records never seen",
    "excess": "Excess over records never seen",
    "plain": "Same, without the soft prompt",
    "gain": "Gain by the soft prompt",
    "perplexity": "Held-out perplexity",
    "accuracy": "Held-out accuracy",
    "loss": "Held-out loss of the true class, nats",
}

# Of texts that a model wrote: which share of those that a ranking puts first repeats records.
TOP = re.compile(r"(?P<name>precision|held-out)@(?P<best>[0-9]+)(\.(?P<ranking>\w+))?")

# About text that comes out of a model: beside the point where it only tells classes.
OF_TEXT = ("Exposure",)

RANKED = {
    "base": "perplexity over the untuned model's", "zlib": "perplexity over zlib's size",
    "lowercase": "perplexity over that in lower case", "window": "its best window of tokens",
}  # fmt: skip

SHORT = {"auc": "AUC", "non-members": "unseen"}


def meaning(report: AuditReport) -> str:
    """Say what the state of the verdict means; of a classifier, nothing about text that comes out."""
    words = MEANING[report.verdict.state]
    if report.verdict.state == "inconclusive" and any(g.name == "bound" and g.passed for g in report.gates):
        return WITHIN  # there is a claim, and the lower bound is not above it
    if report.task == "causal-lm":
        return words
    return words.replace(", or at reading it back", "").replace(", or read them back,", "")


def glossary(report: AuditReport) -> tuple[tuple[str, str], ...]:
    """Choose the words that the page about this model uses."""
    return tuple(entry for entry in GLOSSARY if report.task == "causal-lm" or entry[0] not in OF_TEXT)


def printable(text: str) -> str:
    """Replace characters that steer a terminal or reorder a line by U+FFFD."""
    return "".join("\ufffd" if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    """Tell whether `char` is a control, format or surrogate character other than newline and tab."""
    return char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cf", "Cs"}


def _places(*values: float) -> int:
    """Choose the decimals fit for the largest of `values`, so that a value and its interval line up."""
    scale = max((abs(value) for value in values if abs(value) < UNBOUNDED), default=0.0)
    if 0 < scale < 0.001:
        return 1 - math.floor(math.log10(scale))
    return 3 if scale <= 1 else 2 if scale < 10 else 1 if scale < 100 else 0


def _number(value: float, places: int) -> str:
    if math.isnan(value):
        return "undefined"
    if abs(value) >= UNBOUNDED:
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{places}f}".replace("-", "−")


def figure_text(estimate: Estimate) -> str:
    """Write the value alone, with the decimals its interval has; 'not resolvable' where there is none."""
    if estimate.value is None:
        return "not resolvable"
    return _number(estimate.value, _places(estimate.value, estimate.low, estimate.high))


def interval_text(estimate: Estimate) -> str:
    """Write the interval, such as `[0.830, 0.910]`; empty where the figure is not resolvable."""
    if estimate.value is None:
        return ""
    places = _places(estimate.value, estimate.low, estimate.high)
    return f"[{_number(estimate.low, places)}, {_number(estimate.high, places)}]"


def estimate_text(estimate: Estimate, metric: str = "") -> str:
    """Write the figure as one text; where not resolvable, what it would take in terms of `metric`."""
    if estimate.value is not None:
        return f"{figure_text(estimate)} {interval_text(estimate)}"
    counted = "non-members" if "fpr" in metric else _counted(estimate.method)
    if estimate.needs is None:
        return f"not resolvable with {estimate.n:,} {counted}"
    return f"not resolvable: takes {estimate.needs:,} {counted}, had {estimate.n:,}"


def _counted(method: str) -> str:
    """Read what `n` and `needs` count from a method that says so, such as 'groups of records'."""
    named = method.split(",")[0]
    return named if named[:1].islower() and " " in named else "observations"


def false_positive_rate(metric: str) -> float | None:
    """Read the rate in a name such as `tpr@0.01fpr`; None for any other metric."""
    found = RATE.fullmatch(metric)
    return float(found["fpr"]) if found and found["name"] == "tpr" else None


def metric_label(metric: str, *, short: bool = False) -> str:
    """Name a metric as the field does: `tpr@0.01fpr` is 'TPR at 1% FPR', or 'TPR@1%' if `short`."""
    found = RATE.fullmatch(metric)
    if found:
        percent = f"{100 * float(found['fpr']):g}%"
        if found["name"] == "tpr":
            return f"TPR@{percent}" if short else f"TPR at {percent} FPR"
        return f"FPR@{percent}" if short else f"Realised FPR, meant to be {percent}"
    top = TOP.fullmatch(metric)
    if top and not short:
        if top["name"] == "held-out":
            return f"Same {top['best']} texts, by records held out"
        return f"Precision at {top['best']}, ranked by {RANKED.get(top['ranking'], top['ranking'])}"
    return (SHORT if short else LABELS).get(metric, metric)


def moment(stamp: str) -> str:
    """Write an ISO 8601 time as a person does, in its own zone; any other text stays as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}, {when:%H:%M}{zone}"


def in_words(metric: str, estimate: Estimate, *, full: bool = False) -> str:
    """Say what a figure means to somebody who has never seen one, `full` with the price of false alarms.

    Empty where there is nothing to add.
    """
    value = estimate.value
    if value is None or not math.isfinite(value):
        return ""
    if metric == "auc":
        return f"Picks the member of a pair {_share(value, 'time')}."
    fpr = false_positive_rate(metric)
    if fpr:
        accused = f", while wrongly accusing 1 non-member in {round(1 / fpr):,}" if full else ""
        return f"Recognises {_share(value, 'member')}{accused}."
    if metric == "rate":
        return f"Gives a passage of {_share(value, 'record')}."
    if metric.startswith("precision@"):
        return f"Repeats a record trained on in {_share(value, 'text')}."
    return ""


def _share(value: float, noun: str) -> str:
    """Say a proportion as people do: '87 members out of 100'."""
    if value <= 0:
        return f"no {noun}" if noun != "time" else "never"
    out_of = next((base for base in (100, 1_000, 10_000) if value * base >= 1), 1_000_000)
    count = round(value * out_of)
    return f"{count:,} {noun}{'s' if count != 1 else ''} out of {out_of:,}"


def headline(report: AuditReport) -> tuple[str, tuple[str, ...]]:
    """Choose the sentence on top and those behind it; an invalid split puts its reason on top."""
    verdict = report.verdict
    if verdict.state != "invalid split":
        return verdict.headline, verdict.reasons
    if verdict.reasons:
        return verdict.reasons[0], verdict.reasons[1:]
    return "The split is invalid: no statement about leaks can be made from it.", ()


def withheld(report: AuditReport, metric: str) -> bool:
    """Tell whether an invalid split forbids showing `metric`, a full name such as `membership.loss.auc`.

    Differences paired with a control (any name with 'delta' in it) stay: they are what remains valid.
    """
    invalid = report.verdict.state == "invalid split"
    return invalid and metric.startswith(("membership.", "epsilon.")) and "delta" not in metric


def promise(privacy: Mapping[str, Any]) -> str:
    """What `RunCard.privacy` claims, with all that makes it a claim; "" where it claims nothing."""
    if not privacy:
        return ""
    seeded = "; noise and samples from a recorded seed: the guarantee assumes that nobody knows it"
    return (
        f"ε = {privacy['epsilon']:.3g} at δ = {privacy['delta']:.2g}, protecting a {privacy['protected unit']} "
        f"({privacy['neighbours']}); {privacy['sampling']}; noise multiplier {privacy['noise multiplier']:.3g}; "
        f"clipping {privacy['clipping']}; {privacy['steps']:,} steps; {privacy['accountant']}"
        f"{seeded if privacy.get('seeded') else ''}{''.join(f'; {words}' for words in privacy.get('warnings', ()))}"
    )


def deletion(card: RunCard) -> str:
    """Of what deletion the model came, how, and what that promises; "" where it came of none."""
    told = card.unlearning
    if not told:
        return ""
    count = f"{told.get('forgotten', 0):,} {'record' if told.get('forgotten') == 1 else 'records'}"
    return (
        f"made from {printable(str(card.parent))} when {count} that it was trained on had to go, by {told['method']}, "
        f"tier {told['tier']}: {told['promise']}"
    )


def flatten(value: object, name: str = "") -> list[tuple[str, str]]:
    """Flatten mappings to `(dotted name, text)` rows in their own order; sequences are joined by commas."""
    if isinstance(value, Mapping):
        rows = []
        for key, inner in value.items():
            rows += flatten(inner, f"{name}.{key}" if name else str(key))
        return rows or ([(name, "none")] if name else [])
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if any(isinstance(inner, Mapping) for inner in value):
            return [row for i, inner in enumerate(value) for row in flatten(inner, f"{name}[{i}]")]
        return [(name, ", ".join(_plain(inner) for inner in value) or "none")]
    return [(name, _plain(value))]


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
