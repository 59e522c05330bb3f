"""The picture of benchmarks/privacy.py: what leaks against what is learned, a mark a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from sordino.report.svg import canvas

# Colour by guard, mark by method; both also told apart in black and white.
COLOURS = {
    "eps1": "#1b7837", "eps8": "#5aae61", "inf": "#b2182b",
    "early": "#2166ac", "dropout": "#67a9cf", "goldfish": "#e08214",
}  # fmt: skip
MARKS = {"full": "o", "lora": "s", "prefix": "^", "bitfit": "D"}


def tradeoff(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """An SVG: perplexity on the x-axis (log), AUC of the strongest attack with its interval on the y-axis."""
    import io

    drawn = [r for r in results if (r["metrics"].get("membership.auc") or {}).get("value") is not None]
    if not drawn:
        return ""
    with canvas():
        figure = Figure(figsize=(7, 4.2), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for result in drawn:
            cell, auc = result["cell"], result["metrics"]["membership.auc"]
            x, colour = result["metrics"]["utility.perplexity"]["value"], COLOURS[cell["guard"]]
            axes.plot([x, x], [auc["low"], auc["high"]], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(x, auc["value"], MARKS[cell["method"]], color=colour, markersize=7, markeredgecolor="white")
        axes.axhline(0.5, color="#888888", linewidth=1, linestyle=(0, (1, 3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([5, 7, 10, 15, 20, 30, 40, 60, 80, 100]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="Perplexity on validation records", ylabel="AUC of the strongest attack")
        _legend(axes, drawn, names)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _legend(axes: Any, drawn: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    there = [{r["cell"][key] for r in drawn} for key in ("guard", "method")]
    for guard, colour in COLOURS.items():
        if guard in there[0]:
            axes.plot([], [], "o", color=colour, label=names[guard])
    for method, mark in MARKS.items():
        if method in there[1]:
            axes.plot([], [], mark, color="#555555", label=method)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
