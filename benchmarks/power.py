"""The picture in docs/auditing.md: how likely an audit shows what it should, by the number of its coins.

python benchmarks/power.py [--out docs/power.svg]

Closed forms of `sordino.stats.power`, which simulations confirm (tests/unit/test_stats_power.py). Half a minute.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from sordino.report.svg import canvas
from sordino.stats.power import Goal, bound_power, gaussian_accuracy, gdp_from_epsilon, records_for_auc

TRUTH, DELTA = 8.0, 1e-5
GOALS = {1.0: "#2166ac", 2.0: "#1b7837", 4.0: "#b2182b"}
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
SIZES = np.unique(np.geomspace(20, 60_000, 61).astype(int) // 2 * 2)


def best(goal: Goal, m: int, mu: float) -> float:
    """The power of m coins at the share of guesses that suits them best."""
    return max(bound_power(goal, m, share, gaussian_accuracy(mu, share)) for share in SHARES)


def bounds(axes: Any) -> None:
    mu = gdp_from_epsilon(TRUTH, DELTA)
    for epsilon, colour in GOALS.items():
        for bound, style in (("one-run", "-"), ("f-dp", "--")):
            goal = Goal(epsilon=epsilon, delta=DELTA, bound=bound)
            power = np.maximum.accumulate([best(goal, int(m), mu) for m in SIZES])
            axes.plot(SIZES, power, style, color=colour, label=f"ε̂ ≥ {epsilon:g}, {bound}")
    axes.set(xlabel="Coins", ylabel="Power", title=f"Lower bound on ε, where Gaussian noise gives ε = {TRUTH:g}")


def areas(axes: Any) -> None:
    levels = np.linspace(0.05, 0.99, 40)
    for auc, colour in ((0.6, "#2166ac"), (0.55, "#1b7837"), (0.52, "#b2182b")):
        sizes = [2 * records_for_auc(auc, float(power)) for power in levels]
        axes.plot(sizes, levels, color=colour, label=f"AUC {auc:g}")
    axes.set(xlabel="Records, half of them members", title="AUC told from chance")


def picture() -> str:
    with canvas():
        figure = Figure(figsize=(10, 4.4), facecolor="white", layout="constrained")
        for axes, draw, ticks in zip(
            figure.subplots(1, 2, sharey=True),
            (bounds, areas),
            ([20, 100, 1_000, 10_000], [10, 100, 1_000, 10_000]),
            strict=True,
        ):
            draw(axes)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.axhline(0.8, color="#888888", linewidth=1, linestyle=(0, (1, 3)))
            axes.title.set_size(11)
            axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/power.svg"))
    given = parser.parse_args()
    given.out.write_text(picture(), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
