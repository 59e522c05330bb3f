"""The picture of what it takes to get records out: the share that has come out by the number of queries."""

from collections.abc import Sequence

from sordino.report.plots import name_axes, new_axes
from sordino.report.svg import ACCENT, CONTROL, MUTED, canvas, to_svg
from sordino.report.text import figure_text
from sordino.results import Effort, Estimate

__all__ = ["count_text", "effort_svg"]


def count_text(log10: float | None) -> str:
    """A number of queries from its log10, as people write it: `3`, `12,000`, `10^23`, `never`."""
    if log10 is None:
        return "never"
    if log10 >= 9:
        return f"10^{log10:.0f}"
    exact = 10**log10
    digits = max(0, len(f"{exact:.0f}") - 2)
    return f"{round(exact, -digits):,.0f}" if exact >= 10 else f"{exact:.1f}".removesuffix(".0")


def effort_svg(effort: Sequence[Effort], *, key: str) -> str:
    """Draw the share of records that have come out after n queries, a line a decoding; the first is the headline.

    Its interval is shaded; dashed are records that were not trained on, dotted those trained on under the untuned
    base. Empty where no more than one number of queries was looked at.
    """
    if not effort or len(effort[0].queries) < 2:
        return ""
    first = effort[0]
    with canvas():
        figure, axes = new_axes(290, (52, 12, 48, 8))
        axes.set_xscale("log")
        for row in effort[1:]:
            axes.plot(row.queries, _values(row.members), color=ACCENT, linewidth=1, alpha=0.45)
        low, high = ([100 * getattr(one, side) for one in first.members] for side in ("low", "high"))
        axes.fill_between(first.queries, low, high, color=ACCENT, alpha=0.15, linewidth=0)
        if first.base:
            axes.plot(first.queries, _values(first.base), color=MUTED, linewidth=1.4, linestyle=(0, (1, 2)))
        axes.plot(first.queries, _values(first.others), color=CONTROL, linewidth=1.6, linestyle=(0, (5, 2.5)))
        axes.plot(first.queries, _values(first.members), color=ACCENT, linewidth=2.2)
        axes.set(xlim=(first.queries[0], first.queries[-1]), ylim=(-2, 102))
        _plain_decades(axes, first.queries)
        name_axes(axes, "Queries a record", "Records that have come out (%)")
        said = "; ".join(
            f"{n:,}: {figure_text(one)}, never trained on {figure_text(other)}"
            for n, one, other in zip(first.queries, first.members, first.others, strict=True)
        )
        title = f"Share of trained-on records that come out by queries, {first.decoding}"
        return to_svg(figure, key=key, title=title, description=f"After so many queries: {said}.")


def _values(shares: Sequence[Estimate]) -> list[float]:
    return [float("nan") if one.value is None else 100 * one.value for one in shares]


def _short(count: int) -> str:
    """`1M` for a million: whole numbers of seven decades have no room."""
    units = {10**9: "G", 10**6: "M", 10**3: "k"}
    unit = next((u for u in units if count >= u), 1)
    return f"{count // unit:,}{units.get(unit, '')}"


def _plain_decades(axes: object, queries: Sequence[int]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    assert isinstance(axes, Axes)
    decades = [10**power for power in range(20) if queries[0] <= 10**power <= queries[-1]]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_major_formatter(FixedFormatter([_short(n) for n in decades]))
    axes.xaxis.set_minor_locator(NullLocator())
