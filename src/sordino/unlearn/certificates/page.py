"""The certificate as a page to read and print: one HTML file, no JavaScript, no network.

What is signed is certificate.json; the page says so. Every text is escaped by the template: only the style sheet and
the pictures, both made here, go in as they are.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np

from sordino.report.html import TEMPLATES, environment
from sordino.report.plots import name_axes, new_axes
from sordino.report.svg import ACCENT, CONTROL, INK, MUTED, canvas, to_svg
from sordino.results import Certificate, Columns, Robustness, Scores

__all__ = ["curve_svg", "losses_svg", "render_certificate"]

SECTIONS = (
    ("outcome", "Outcome"),
    ("request", "What was asked"),
    ("done", "What was done"),
    ("evidence", "Evidence"),
    ("robustness", "Attempts to bring it back"),
    ("cost", "Cost"),
    ("purge", "What held it, and what is left"),
    ("limits", "What this does not prove"),
    ("check", "How to check this"),
    ("digests", "Digests"),
)

HEADLINES = {
    "pass": "The deletion was carried out and verified.",
    "fail": "The deletion was carried out, and did not hold up.",
    "inconclusive": "The deletion was carried out; the evidence does not decide whether it held.",
}

TIERS = {"exact": "exact", "dp": "differential privacy", "approximate": "approximate"}

ROWS = {
    "before": "Before",
    "after": "After",
    "retrain": "Trained anew",
    "do_nothing": "Nothing done",
}

METRICS = {
    "auc": ("AUC, deleted against never trained on", "0.5: they cannot be told apart"),
    "auc_calibrated": ("AUC, beside the untuned model", "0.5: they cannot be told apart"),
    "loss": ("Loss on the deleted", "nats a token"),
    "probability": ("Probability of the deleted", "exp(−loss)"),
    "extraction_strength": ("Extraction strength", "share of a record that comes back from the rest"),
    "exact_memorisation": ("Exact memorisation", "share of tokens that the model would write"),
    "rouge_l": ("ROUGE-L of its answers", "recall against the deleted record"),
    "priv_leak": ("PrivLeak", "percent, against the model trained anew"),
}
_SETS = {"never": "never trained on", "retain": "that stay", "validation": "for validation"}
_KINDS = {"pass": "good", "fail": "bad", "inconclusive": "open"}


def render_certificate(certificate: Certificate) -> str:
    """Write `certificate` as one HTML document, the same bytes for the same argument.

    No text of it can become markup.
    """
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "certificate.css"))
    metrics = _metrics(certificate)
    made = environment()
    made.filters["short"] = lambda value: f"{value[:12]}…" if len(value) > 16 else value
    made.filters["plain"] = _plain
    made.filters["percent"] = lambda share: f"{100 * share:.3g} %"
    return made.get_template("certificate.html.j2").render(
        certificate=certificate,
        sections=SECTIONS,
        style=style,
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        headline=HEADLINES[certificate.outcome],
        kinds=_KINDS,
        tiers=TIERS,
        rows=[(ROWS.get(row.name, row.name.replace("_", " ")), row) for row in certificate.verification.rows],
        metrics=[one for one in metrics if one[0].partition("_")[0] not in _SETS],
        others=[one for one in metrics if one[0].partition("_")[0] in _SETS],
        utility=[(*_named(name), one) for name, one in certificate.utility.items()],
        losses=losses_svg(certificate.before, certificate.after),
        robustness=[
            (one, curve_svg(one, f"curve-{n}")) for n, one in enumerate(certificate.verification.robustness, 1)
        ],
        digests=[(f.name.replace("_", " "), getattr(certificate.digests, f.name)) for f in fields(certificate.digests)],
    )


def _plain(value: Any) -> str:
    """A setting as it would stand in a file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _named(metric: str) -> tuple[str, str]:
    """What a metric is called, and what it means in a few words."""
    if metric in METRICS:
        return METRICS[metric]
    of, _, rest = metric.partition("_")
    if of in _SETS and rest in METRICS:
        label, words = METRICS[rest]
        label = label.removesuffix(" on the deleted").removesuffix(" of the deleted").removesuffix(" of its answers")
        return f"{label}, records {_SETS[of]}", "" if "deleted" in words else words
    return metric.replace("_", " "), ""


def _metrics(certificate: Certificate) -> list[tuple[str, str, str]]:
    """Every metric of any row, once: its name, what it is called, and a few words."""
    names = dict.fromkeys(name for row in certificate.verification.rows for name in row.metrics)
    known = [name for name in METRICS if name in names]
    return [(name, *_named(name)) for name in (*known, *(name for name in names if name not in METRICS))]


def losses_svg(before: Scores | None, after: Scores | None) -> str:
    """The losses of the deleted before and after, and of never-trained records: the share at or below each value.

    Empty where there are none of them.
    """
    if before is None or after is None:
        return ""
    drawn = [_losses(before.forget), _losses(after.forget), _losses(after.never)]
    if not all(len(values) for values in drawn):
        return ""
    styles: Sequence[Mapping[str, Any]] = (
        {"color": CONTROL, "linestyle": (0, (5, 3)), "linewidth": 1.8},
        {"color": ACCENT, "linewidth": 2.4},
        {"color": INK, "linestyle": (0, (1, 2)), "linewidth": 1.8},
    )
    low, high = min(min(v) for v in drawn), max(max(v) for v in drawn)
    room = 0.04 * (high - low) or 0.1
    with canvas():
        figure, axes = new_axes(230, (46, 12, 44, 10))
        for values, style in zip(drawn, styles, strict=True):
            x, y = _steps(values, low - room, high + room)
            axes.step(x, y, where="post", **style)
        axes.set(xlim=(low - room, high + room), ylim=(0, 1.02))
        axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        name_axes(axes, "loss, nats a token", "records at or below")
        means = [float(np.mean(values)) for values in drawn]
        words = (
            f"Mean loss of the deleted before {means[0]:.2f} and after {means[1]:.2f} nats a token, of records never "
            f"trained on {means[2]:.2f}. The closer the line after comes to the last, the less the model tells apart."
        )
        return to_svg(figure, key="losses", title="Losses before and after", description=words)


def _losses(columns: Columns) -> list[float]:
    return sorted(columns.get("loss", ()))


# More steps than this are finer than a page shows.
_STEPS = 120


def _steps(values: Sequence[float], low: float, high: float) -> tuple[list[float], list[float]]:
    """The empirical distribution from `low` to `high`, thinned to what can be seen."""
    count = len(values)
    places = sorted({round(i * (count - 1) / (_STEPS - 1)) for i in range(_STEPS)}) if count > _STEPS else range(count)
    x, y = [low], [0.0]
    for place in places:
        x.append(values[place])
        y.append((place + 1) / count)
    return [*x, high], [*y, 1.0]


def curve_svg(attack: Robustness, key: str) -> str:
    """The curve of an attack of many steps: AUC of deleted against never-trained records; empty where it has none."""
    if len(attack.curve) < 2 or any(first[0] >= second[0] for first, second in pairwise(attack.curve)):
        return ""
    steps, values = zip(*attack.curve, strict=True)
    with canvas():
        figure, axes = new_axes(170, (46, 12, 44, 10))
        axes.axhline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
        axes.plot(steps, values, color=ACCENT, linewidth=2.2, marker="o", markersize=5)
        axes.set_ylim(min(0.4, *values) - 0.02, max(0.7, *values) + 0.02)
        name_axes(axes, "steps", "AUC")
        words = f"AUC {values[0]:.2f} at step {steps[0]:,}, {values[-1]:.2f} at step {steps[-1]:,}; 0.5 is a coin toss."
        return to_svg(figure, key=key, title=f"The course of {attack.name.replace('_', ' ')}", description=words)
