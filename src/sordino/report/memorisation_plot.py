"""The picture of memorisation over time: canaries trained on against those left out, as training goes on."""

import math
from collections.abc import Sequence

from sordino.report.plots import name_axes, new_axes
from sordino.report.svg import ACCENT, CONTROL, INK, MUTED, canvas, to_svg
from sordino.report.text import figure_text
from sordino.results import Estimate, MemorisationLevel, MemorisationPoint

__all__ = ["memorisation_svg"]

_MOST = 200  # points of a line: finer than a printer shows


def memorisation_svg(points: Sequence[MemorisationPoint], *, key: str) -> str:
    """Draw the mean gain of canaries by step: a solid line a repetition level, dashed for those left out.

    A line's name stands at its end. Empty where canaries were scored fewer than twice.
    """
    if len(points) < 2:
        return ""
    shown = points[:: math.ceil(len(points) / _MOST)]
    shown = [*shown, *(points[-1:] if shown[-1] is not points[-1] else ())]
    lines = {_name(level): (level.kind, level.repetitions) for level in points[-1].levels}
    with canvas():
        figure, axes = new_axes(290, (52, 62, 48, 8))
        axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        ends: list[tuple[float, str]] = []
        for name, which in lines.items():
            inside, outside = (_line(shown, which, left_out=side) for side in (False, True))
            axes.plot(*outside, color=CONTROL, linewidth=1.2, linestyle=(0, (5, 2.5)))
            axes.plot(*inside, color=ACCENT, linewidth=1.8)
            ends += [(inside[1][-1], name)] if inside[1] else []
        for height, (_, name) in zip(_apart([y for y, _ in sorted(ends)], axes.get_ylim()), sorted(ends), strict=True):
            axes.annotate(
                name, (1.02, height), xycoords=axes.get_yaxis_transform(), color=INK, fontsize=10.5, va="center"
            )
        axes.set_xlim(0, points[-1].step)
        name_axes(axes, "Optimizer steps", "Gain on the secret (nats a token)")
        said = "; ".join(
            f"{_name(one)}: {_said(one.included)}, left out {_said(one.left_out)}" for one in points[-1].levels
        )
        title = f"Memorisation of canaries over {points[-1].step:,} steps"
        return to_svg(figure, key=key, title=title, description=f"After the last step: {said}.")


def _name(level: MemorisationLevel) -> str:
    return "audit" if level.kind == "audit" else f"{level.repetitions}×"


def _said(one: Estimate) -> str:
    return "none" if one.value is None else figure_text(one)


def _line(
    points: Sequence[MemorisationPoint], which: tuple[str, int], *, left_out: bool
) -> tuple[list[int], list[float]]:
    """Steps and mean gains of one level; what was not measured is left out."""
    found = [
        (point.step, (one.left_out if left_out else one.included).value)
        for point in points
        for one in point.levels
        if (one.kind, one.repetitions) == which
    ]
    kept = [(step, value) for step, value in found if value is not None and math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _apart(heights: Sequence[float], limits: tuple[float, float]) -> list[float]:
    """`heights`, ascending, moved up so that names at them do not overlap."""
    gap = (limits[1] - limits[0]) * 0.06
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed
