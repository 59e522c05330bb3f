"""The four pictures of a report: ROC curves, canary exposure, privacy against utility, all attacks at once.

Every function returns an inline SVG, or an empty string where there is nothing to draw. The fine-tuned
model is always the solid accent colour with filled marks, its control always grey, dashed and hollow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sordino.report.svg import ACCENT, CONTROL, GRID, INK, MUTED, PAPER, SHADE, canvas, to_svg
from sordino.report.text import estimate_text, figure_text, printable
from sordino.results import Attempt, CanaryLevel, Curve, Estimate

__all__ = [
    "exposure_svg",
    "name_axes",
    "new_axes",
    "overview_svg",
    "resolution",
    "roc_svg",
    "span",
    "tradeoff_svg",
]

WIDTH = 360  # points; the page scales the picture, so this only sets how large text is beside it
VERTICES = 160  # of a ROC curve: finer than a printer shows at this width
DOTS = 64  # canaries drawn at a level; beyond it, evenly spaced order statistics


def new_axes(height: float, margins: tuple[float, float, float, float]) -> tuple[Any, Any]:
    """Make a figure of WIDTH × `height` points with one bare axes; `margins` left, right, bottom, top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
    left, right, bottom, top = margins
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + top) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.8)
    axes.tick_params(which="both", color=MUTED, labelcolor=MUTED, labelsize=11, length=3, width=0.8)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def name_axes(axes: Any, x: str, y: str) -> None:
    """Say what the axes show."""
    axes.set_xlabel(x, color=INK, fontsize=11.5, labelpad=6)
    axes.set_ylabel(y, color=INK, fontsize=11.5, labelpad=6)


def resolution(curve: Curve) -> float:
    """Find the smallest step of the false-positive rate: 1 / (number of non-members) unless all are tied."""
    return min((b - a for a, b in pairwise((0.0, *curve.fpr)) if b - a > 1e-12), default=1.0)


def _steps(curve: Curve, floor: float) -> tuple[list[float], list[float]]:
    """Turn the curve into a staircase: at each false-positive rate, the TPR reached without exceeding it.

    Points left of `floor` move onto it, a TPR of zero isn't drawn, and of the thresholds that fall
    into one of VERTICES equal bins of log FPR the highest stands for all.
    """
    best: dict[int, tuple[float, float]] = {}
    for fpr, tpr in sorted(zip(curve.fpr, curve.tpr, strict=True)):
        if tpr > 0:
            x = max(fpr, floor)
            best[round(VERTICES * math.log(x) / -math.log(floor))] = (x, tpr)
    points = [*best.values(), (1.0, 1.0)]
    points.insert(0, (points[0][0], floor / 10))  # the first step rises from below the picture
    return [x for x, _ in points], [y for _, y in points]


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _log_percent(axis: Any, floor: float) -> None:
    """Label the decades of a log axis in percent, as plain text rather than powers of ten."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    decades = [10.0**power for power in range(math.ceil(math.log10(floor) - 1e-9), 1)]
    axis.set_major_locator(FixedLocator(decades))
    axis.set_major_formatter(FixedFormatter([_percent(value) for value in decades]))
    axis.set_minor_locator(NullLocator())


def roc_svg(attempt: Attempt, *, key: str, non_members: int | None = None) -> str:
    """Draw the log–log ROC of `attempt`: fine-tuned, untuned base, chance, what isn't resolvable.

    Log axes because the harm is at low false-positive rates (Carlini et al. 2022, section IV). One in
    `non_members` is the smallest rate there can be; without their number the curves' own steps tell.
    """
    if attempt.roc is None:
        return ""
    curves = [curve for curve in (attempt.roc, attempt.control_roc) if curve is not None]
    limit = 1 / non_members if non_members else min(resolution(curve) for curve in curves)
    floor = min(limit / 2, 0.05)
    with canvas():
        figure, axes = new_axes(310, (58, 20, 48, 8))
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.12))
        _log_percent(axes.xaxis, floor)
        _log_percent(axes.yaxis, floor)
        axes.axvspan(floor, limit, facecolor=SHADE, edgecolor="none", zorder=0)
        axes.plot([floor, 1], [floor, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        if attempt.control_roc is not None:
            x, y = _steps(attempt.control_roc, floor)
            axes.plot(x, y, color=CONTROL, linewidth=1.6, linestyle=(0, (5, 2.5)), drawstyle="steps-post")
        x, y = _steps(attempt.roc, floor)
        axes.plot(x, y, color=ACCENT, linewidth=2.2, drawstyle="steps-post")
        name_axes(axes, "Non-members wrongly accused (FPR)", "Members recognised (TPR)")
        name = printable(attempt.name)
        reached = max((t for f, t in zip(attempt.roc.fpr, attempt.roc.tpr, strict=True) if f <= 0.01), default=0)
        description = (
            f"At a false-positive rate of 1% the true-positive rate is {_percent(round(reached, 4))}. "
            f"Rates below {_percent(round(limit, 6))} can't be told apart with this many non-members."
        )
        return to_svg(figure, key=key, title=f"ROC curve of {name} on logarithmic axes", description=description)


def _interval(axes: Any, x: float, estimate: Estimate, *, color: str, hollow: bool) -> None:
    """Draw a vertical interval with its value as a mark; an unresolved value leaves no mark."""
    if not _drawable(estimate):
        return
    axes.plot([x, x], span(estimate), color=color, linewidth=1.8, solid_capstyle="round")
    fill = PAPER if hollow else color
    axes.plot(x, estimate.value, "o", color=color, markerfacecolor=fill, markersize=6.5, markeredgewidth=1.6)


def _strip(axes: Any, x: float, values: Sequence[float], color: str) -> None:
    """Draw each value as a pale dot, spread sideways in a fixed zigzag so that equal ones stay apart."""
    ranked = sorted(values)
    if len(ranked) > DOTS:
        ranked = [ranked[round(i * (len(ranked) - 1) / (DOTS - 1))] for i in range(DOTS)]
    spread = [x + 0.055 * ((i * 2) % 5 - 2) / 2 for i in range(len(ranked))]
    axes.plot(spread, ranked, "o", color=color, markersize=3, markeredgewidth=0, alpha=0.45)


def exposure_svg(levels: Sequence[CanaryLevel], *, key: str) -> str:
    """Draw exposure in bits by repetition: every canary, the mean with its interval, and those left out.

    The dashed line is the most that can be measured, log2 of the candidate space (Carlini et al. 2019,
    definition 6).
    """
    if not levels:
        return ""
    ordered = sorted(levels, key=lambda level: level.repetitions)
    with canvas():
        figure, axes = new_axes(290, (52, 8, 48, 8))
        for position, level in enumerate(ordered):
            _strip(axes, position - 0.27, level.exposures, ACCENT)
            _interval(axes, position - 0.13, level.included, color=ACCENT, hollow=False)
            _strip(axes, position + 0.27, level.left_out_exposures, CONTROL)
            _interval(axes, position + 0.13, level.left_out, color=CONTROL, hollow=True)
            across = [position - 0.5, position + 0.5]
            axes.plot(across, [level.bits] * 2, color=MUTED, linewidth=1.2, dashes=(3, 3))
        top = max(level.bits for level in ordered)
        axes.text(-0.5, top * 1.02, f"most that can be measured: {top:.1f} bits", color=MUTED, fontsize=10.5)
        axes.set(xlim=(-0.5, len(ordered) - 0.5), ylim=(0, top * 1.12))
        axes.set_xticks(range(len(ordered)), [f"{level.repetitions}×" for level in ordered])
        axes.yaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
        name_axes(axes, "Repetitions in the training data", "Exposure (bits)")
        said = (
            f"{one.repetitions} times: {estimate_text(one.included)}, left out {estimate_text(one.left_out)}"
            for one in ordered
        )
        title = "Canary exposure in bits by repetition"
        return to_svg(figure, key=key, title=title, description=f"{'; '.join(said)}.")


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One model in the trade-off: usefulness across, leak upwards, each with its interval."""

    name: str
    x: Estimate
    y: Estimate
    tuned: bool


def _drawable(*estimates: Estimate | None) -> bool:
    """Tell whether every estimate is there, resolved and finite."""
    return all(one is not None and one.value is not None and math.isfinite(one.value) for one in estimates)


def span(one: Estimate) -> tuple[float, float]:
    """Take the ends of an interval, the value in place of an end that is not finite."""
    value = one.value or 0.0
    low, high = (end if math.isfinite(end) else value for end in (one.low, one.high))
    return low, high


def tradeoff_svg(
    attack: str, *, utility: Mapping[str, Estimate], leak: tuple[Estimate | None, Estimate | None], key: str
) -> str:
    """Draw what training cost and what it bought: AUC of `attack` against held-out perplexity or accuracy.

    `utility` has `perplexity` and `base_perplexity`, or of a classifier `accuracy` and `base_accuracy`;
    `leak` is the AUC on the base and on the tuned model.
    """
    useful, better = ("accuracy", "right") if "accuracy" in utility else ("perplexity", "left")
    points = _models(utility, leak, useful)
    if not points:
        return ""
    ends = [end for point in points for end in span(point.x)]
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.2 or (1.0 if useful == "perplexity" else 0.1)
    floor = min(0.38, *(span(point.y)[0] - 0.08 for point in points))
    with canvas():
        figure, axes = new_axes(280, (56, 10, 48, 8))
        axes.set(xlim=(max(low - pad, 0), high + pad), ylim=(floor, 1.04))
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        base, tuned = ((point.x.value, point.y.value) for point in points)
        arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 9, "shrinkB": 9, "linewidth": 0.9}
        axes.annotate("", tuned, base, arrowprops=arrow)
        for point in points:
            _draw_point(axes, point, ahead=(point.x.value or 0.0) < (low + high) / 2)
        upwards = f"AUC of {printable(attack)} (up: leaks more)"
        name_axes(axes, f"Held-out {useful} ({better}: more useful)", upwards)
        axes.yaxis.label.set_parse_math(False)
        said = (f"{one.name}: {useful} {estimate_text(one.x)}, AUC {estimate_text(one.y)}" for one in points)
        return to_svg(figure, key=key, title="Privacy against utility", description=f"{'; '.join(said)}.")


def _models(
    utility: Mapping[str, Estimate], leak: tuple[Estimate | None, Estimate | None], useful: str
) -> tuple[_Point, ...]:
    """Pair the untuned base and the fine-tuned model with their AUC; nothing if a figure is missing."""
    xs = (utility.get(f"base_{useful}"), utility.get(useful))
    return tuple(
        _Point(name=name, x=x, y=y, tuned=name == "fine-tuned")
        for name, x, y in zip(("untuned base", "fine-tuned"), xs, leak, strict=True)
        if x is not None and y is not None and _drawable(*xs, *leak)
    )


def _draw_point(axes: Any, point: _Point, *, ahead: bool) -> None:
    """Draw a model with its intervals; its name goes towards the middle, clear of the other and the arrow."""
    x, y, color = point.x.value, point.y.value, ACCENT if point.tuned else CONTROL
    axes.plot(span(point.x), [y, y], color=color, linewidth=1.8, solid_capstyle="round")
    axes.plot([x, x], span(point.y), color=color, linewidth=1.8, solid_capstyle="round")
    fill = color if point.tuned else PAPER
    axes.plot(x, y, "o", color=color, markerfacecolor=fill, markersize=9, markeredgewidth=1.8)
    axes.annotate(
        point.name,
        (x, y),
        (9 if ahead else -9, 9 if point.tuned else -9),
        textcoords="offset points",
        color=INK,
        fontsize=11.5,
        ha="left" if ahead else "right",
        va="bottom" if point.tuned else "top",
    )


def overview_svg(attempts: Sequence[Attempt], *, key: str) -> str:
    """Draw the AUC of every membership attack with its interval beside its control, the best first: a forest plot."""
    rows = sorted((a for a in attempts if "auc" in a.estimates), key=lambda a: -(a.estimates["auc"].value or 0))
    if not rows:
        return ""
    names = max(len(printable(attempt.name)) for attempt in rows)
    shown = [one for row in rows for one in (row.estimates["auc"], row.control.get("auc")) if one is not None]
    floor = min([0.45, *(span(one)[0] - 0.02 for one in shown if _drawable(one))])
    with canvas():
        figure, axes = new_axes(30 * len(rows) + 62, (max(112, min(240, 7 * names + 14)), 48, 48, 8))
        axes.set(xlim=(floor, 1.01), ylim=(len(rows) - 0.4, -0.6))
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        beside = {"color": INK, "fontsize": 11.5, "va": "center", "transform": axes.get_yaxis_transform()}
        for row, attempt in enumerate(rows):
            _bar(axes, row - 0.14, attempt.estimates["auc"], hollow=False)
            if "auc" in attempt.control:
                _bar(axes, row + 0.2, attempt.control["auc"], hollow=True)
            value = figure_text(attempt.estimates["auc"]).replace("not resolvable", "–")
            axes.text(1.03, row, value, **beside)
        axes.set_yticks(range(len(rows)), [printable(attempt.name) for attempt in rows])
        for label in axes.get_yticklabels():
            label.set(parse_math=False, color=INK, fontsize=11.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("AUC", color=INK, fontsize=11.5, labelpad=6)
        said = "; ".join(f"{printable(row.name)} {estimate_text(row.estimates['auc'])}" for row in rows)
        return to_svg(figure, key=key, title="AUC of every membership attack", description=f"{said}.")


def _bar(axes: Any, y: float, estimate: Estimate, *, hollow: bool) -> None:
    """Draw a horizontal interval with its value as a mark: hollow and grey for the control."""
    if not _drawable(estimate):
        return
    color, fill = (CONTROL, PAPER) if hollow else (ACCENT, ACCENT)
    axes.plot(span(estimate), [y, y], color=color, linewidth=2, solid_capstyle="round")
    axes.plot(estimate.value, y, "o", color=color, markerfacecolor=fill, markersize=6, markeredgewidth=1.5)
