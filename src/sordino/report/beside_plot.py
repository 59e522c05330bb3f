"""The picture of several runs: how much each leaks against how useful it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.report.plots import name_axes, new_axes, span
from sordino.report.svg import ACCENT, CONTROL, INK, MUTED, PAPER, canvas, to_svg
from sordino.report.text import estimate_text
from sordino.results import Estimate

__all__ = ["Point", "beside_svg"]

HEIGHT, MARGINS = 300, (56, 14, 48, 24)
LETTER, ROW = 5.6, 14.0  # points of an average letter and of a line, at the size of the labels


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: usefulness across, the strongest attack's AUC upwards; `claim` in words, `private` if there is one."""

    name: str
    claim: str
    x: Estimate
    y: Estimate
    private: bool


@dataclass(frozen=True)
class _Box:
    """A rectangle in points of the page, from the lower left corner of the axes."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: "_Box") -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


def beside_svg(points: Sequence[Point], *, bases: Sequence[Estimate], useful: str, key: str) -> str:
    """Draw every run with its intervals and its name; "" where there are none.

    A dotted line is a coin toss; dashed ones are the `bases`, what the models were good for before tuning.
    A run that claims differential privacy has a square mark, any other a round one.
    """
    if not points:
        return ""
    better = "right" if useful == "accuracy" else "left"
    with canvas():
        figure, axes = new_axes(HEIGHT, MARGINS)
        _limits(axes, points, bases, useful)
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        for base in bases:
            axes.axvline(base.value, color=CONTROL, linewidth=1.4, linestyle=(0, (5, 2.5)))
        for point in points:
            _draw(axes, point)
        _name(axes, points, bases)
        name_axes(axes, f"Held-out {useful} ({better}: more useful)", "AUC, strongest attack (up: leaks more)")
        said = [f"{p.name} ({p.claim}): {useful} {estimate_text(p.x)}, AUC {estimate_text(p.y)}" for p in points]
        said += [f"before tuning: {useful} {estimate_text(base)}" for base in bases]
        return to_svg(figure, key=key, title="Leak against usefulness, a mark a run", description=f"{'; '.join(said)}.")


def _limits(axes: Any, points: Sequence[Point], bases: Sequence[Estimate], useful: str) -> None:
    across = [end for one in (*(p.x for p in points), *bases) for end in span(one)]
    low, high = min(across), max(across)
    pad = (high - low) * 0.12 or (1.0 if useful == "perplexity" else 0.1)
    floor = min(0.38, *(span(p.y)[0] - 0.06 for p in points))
    axes.set(xlim=(max(low - pad, 0), high + pad), ylim=(floor, 1.02))


def _draw(axes: Any, point: Point) -> None:
    x, y = point.x.value, point.y.value
    axes.plot(span(point.x), [y, y], color=ACCENT, linewidth=1.8, solid_capstyle="round")
    axes.plot([x, x], span(point.y), color=ACCENT, linewidth=1.8, solid_capstyle="round")
    shape, fill = ("s", ACCENT) if point.private else ("o", PAPER)
    axes.plot(x, y, shape, color=ACCENT, markerfacecolor=fill, markersize=9, markeredgewidth=1.8)


def _name(axes: Any, points: Sequence[Point], bases: Sequence[Estimate]) -> None:
    """Write every name where it covers no mark, no interval, no line and no other name, if there is such a place."""
    place = axes.transData.transform
    scale = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    origin = (frame.x0, frame.y0)

    def at(x: float, y: float) -> tuple[float, float]:
        found = place((x, y))
        return float((found[0] - origin[0]) * scale), float((found[1] - origin[1]) * scale)

    width, height = float(frame.width * scale), float(frame.height * scale)
    taken = [box for point in points for box in _crosses(point, at)]
    for base in bases:
        x, _ = at(base.value or 0.0, 0.5)
        ahead = x < width / 2
        _write(axes, (x + (5 if ahead else -5), height + 4), "before tuning", MUTED, "left" if ahead else "right")
        taken.append(_Box(x - 2, 0, x + 2, height))
    toss = at(0, 0.5)[1]
    # At the right end of its line, or before what crosses it there.
    end = min([width, *(x for base in bases if (x := at(base.value or 0.0, 0.5)[0]) > width - 10 * LETTER)])
    _write(axes, (end - 4, toss + 2), "coin toss", MUTED, "right")
    taken += [_Box(0, toss - 1, width, toss + 1), _Box(end - 10 * LETTER, toss, end, toss + ROW)]
    for point in points:
        words = (point.name, point.claim)
        mark, size = at(point.x.value or 0.0, point.y.value or 0.0), (max(map(len, words)) * LETTER, 2 * ROW)
        spots = list(_spots(mark, size))
        inside = [b for b in spots if b.left >= 0 and b.right <= width and b.low >= 0 and b.high <= height] or spots[:1]
        # The fewer it covers the better; of equals, the nearer.
        box = min(inside, key=lambda b: sum(b.meets(other) for other in taken))
        taken.append(box)
        if box not in spots[:4]:
            _lead(axes, mark, box)
        _write(axes, (box.left, box.low + ROW), words[0], INK, "left")
        _write(axes, (box.left, box.low), words[1], MUTED, "left")


def _crosses(point: Point, at: Any) -> list[_Box]:
    """What a run's mark and its two intervals cover."""
    (left, middle), (right, _) = at(span(point.x)[0], point.y.value), at(span(point.x)[1], point.y.value)
    (centre, low), (_, high) = at(point.x.value, span(point.y)[0]), at(point.x.value, span(point.y)[1])
    return [
        _Box(left - 1, middle - 2, right + 1, middle + 2),
        _Box(centre - 2, low - 1, centre + 2, high + 1),
        _Box(centre - 6, middle - 6, centre + 6, middle + 6),
    ]


def _spots(mark: tuple[float, float], size: tuple[float, float]) -> Iterator[_Box]:
    """Places for a label of `size` around `mark`, the nearest first."""
    (x, y), (width, height) = mark, size
    for far in (9.0, 22.0, 40.0, 64.0):
        lifts = [far / 2, -far / 2 - height]
        lifts += [] if far == 9.0 else [sign * far - height / 2 for sign in (2, -2, 3, -3)]
        for lift in lifts:
            for left in (x + far, x - far - width):
                yield _Box(left, y + lift, left + width, y + lift + height)


def _lead(axes: Any, mark: tuple[float, float], box: _Box) -> None:
    """Draw a thin line from `mark` to the nearest side of a label that had to go far."""
    end = (box.right + 2 if box.right < mark[0] else box.left - 2, (box.low + box.high) / 2)
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 8}
    to_data = axes.transData.inverted().transform
    frame, scale = axes.get_window_extent(), axes.figure.dpi / 72
    start, stop = (to_data((frame.x0 + x * scale, frame.y0 + y * scale)) for x, y in (end, mark))
    axes.annotate("", stop, start, arrowprops=line)


def _write(axes: Any, spot: tuple[float, float], words: str, color: str, side: str) -> None:
    found = axes.annotate(
        words, (0, 0), spot, xycoords="axes fraction", textcoords="offset points",
        color=color, fontsize=11, ha=side, va="bottom", annotation_clip=False,
    )  # fmt: skip
    found.set_parse_math(False)
