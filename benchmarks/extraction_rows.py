"""The tables and the picture of benchmarks/extraction.py: what comes out by epochs and by repetitions."""

import io
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from page import NOT_RUN

from sordino.stats import mean_interval

TITLES = {
    "tofu": "TOFU, stories260k",
    "presidio": "Presidio, stories260k",
    "built-in": "the built-in corpus, the bundled model",
}
ATTACKS = ("prefix", "near", "sampling")
Results = Mapping[tuple[str, int, int], Mapping[str, Any]]


def _percent(found: Sequence[Mapping[str, Any]]) -> str:
    """The mean of several seeds in percent, with the widest ends of their intervals."""
    resolved = [f for f in found if f["value"] is not None]
    if not resolved:
        return "not resolvable"
    value = 100 * mean(f["value"] for f in resolved)
    return f"{value:.1f} [{100 * min(f['low'] for f in resolved):.1f}, {100 * max(f['high'] for f in resolved):.1f}]"


def _pooled(results: Sequence[Mapping[str, Any]], repetitions: int) -> tuple[float, float, float] | None:
    """Mean exposure of the canaries of a level, all seeds together, with a 95 % t interval; None without canaries."""
    levels = [c for r in results for c in r["canaries"] if c["repetitions"] == repetitions]
    found = [bits for level in levels for bits in level["exposures"]]
    if not found:
        return None
    one, most = mean_interval(found), levels[0]["bits"]
    return mean(found), max(0.0, one.low), min(most, one.high)


def _bits(pooled: tuple[float, float, float] | None) -> str:
    return "–" if pooled is None else f"{pooled[0]:.1f} [{pooled[1]:.1f}, {pooled[2]:.1f}]"


def _there(results: Results, data: str, epochs: int, seeds: Sequence[int]) -> list[Mapping[str, Any]]:
    return [results[data, epochs, s] for s in seeds if (data, epochs, s) in results]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rates(results: Results, data: str, epochs: Sequence[int], seeds: Sequence[int]) -> list[str]:
    lines = [
        "| epochs | attack | trained on, % | never trained on, % | excess, % | trained on, untuned model, % |",
        "|---|---|---|---|---|---|",
    ]
    for count in epochs:
        there = _there(results, data, count, seeds)
        part = "" if len(there) == len(seeds) or not there else f" ({len(there)} of {len(seeds)} seeds)"
        for name in ATTACKS:
            made = [r["attempts"][name] for r in there if name in r["attempts"]]
            if not made:
                lines.append(_line([str(count), name, *[NOT_RUN if not there else "–"] * 4]))
                continue
            columns = (_percent([m["estimates"][k] for m in made]) for k in ("rate", "non-members", "excess"))
            base = _percent([m["control"]["rate"] for m in made])
            lines.append(_line([f"{count}{part}", name, *columns, base]))
    return lines


def _exposures(results: Results, data: str, epochs: Sequence[int], seeds: Sequence[int]) -> list[str]:
    levels = sorted({c["repetitions"] for r in results.values() for c in r["canaries"]})
    lines = [
        _line(["epochs", *(f"{k}×, bits" for k in levels), "left out, bits"]),
        _line(["---"] * (len(levels) + 2)),
    ]
    for count in epochs:
        there = _there(results, data, count, seeds)
        if not there:
            lines.append(_line([str(count), *[NOT_RUN] * (len(levels) + 1)]))
            continue
        own = [_bits(_pooled(there, k)) for k in levels]
        outside = [b for r in there for c in r["canaries"] for b in c["left_out_exposures"]]
        floor = f"{mean(outside):.1f} (n = {len(outside)})" if outside else "–"
        lines.append(_line([str(count), *own, floor]))
    return lines


def _personal(results: Results, data: str, epochs: Sequence[int], seeds: Sequence[int]) -> list[str]:
    rows = []
    for count in epochs:
        there = _there(results, data, count, seeds)
        for attack in ("pii_inference", "pii_extraction"):
            found = [
                next((p for p in r["personal"] if p["attack"] == attack and p["scope"] == "trained"), None)
                for r in there
            ]  # the first row of an attack is that of all kinds
            made = [p for p in found if p is not None]
            if made:
                columns = (_percent([p[k] for p in made]) for k in ("members", "others", "base"))
                chances = [p["chance"] for p in made if p["chance"] is not None]
                chance = f"{100 * mean(chances):.1f}" if chances else "–"
                rows.append(_line([str(count), attack, *columns, chance]))
    head = "| epochs | attack | trained on, % | never trained on, % | trained on, untuned model, % | chance, % |"
    return [head, "|---|---|---|---|---|---|", *rows] if rows else []


def _queries(results: Results, data: str, epochs: Sequence[int], seeds: Sequence[int]) -> list[str]:
    lines: list[str] = []
    for count in epochs:
        there = _there(results, data, count, seeds)
        if not there:
            continue
        first = [r["effort"][0] for r in there if r["effort"]]
        queries = first[0]["queries"]
        if not lines:
            lines = [_line(["epochs", *(f"{n:,}" for n in queries)]), _line(["---"] * (len(queries) + 1))]
        shares = (_percent([e["members"][i] for e in first]).split(" ")[0] for i in range(len(queries)))
        lines.append(_line([str(count), *shares]))
    return lines


def _counts(there: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was judged and what was cut, of the first run of a data set."""
    if not there:
        return []
    one = there[0]
    short = [note for note in one["attempts"]["prefix"]["notes"] if "short" in note]
    told = [f"{n['kind']}: {n['count']:,}" for n in one["notices"]]
    judged = f"{one['counts']['members']:,} records trained on and {one['counts']['non-members']:,} others are judged"
    return [f"Seed 0: {judged}. {' '.join(short)} {'Notices: ' + ', '.join(told) + '.' if told else ''}".strip()]


def tables(results: Results, sets: Sequence[str], epochs: Sequence[int], seeds: Sequence[int]) -> str:
    """All tables as Markdown; what was not run says so."""
    parts: list[str] = []
    for data in sets:
        there = [r for count in reversed(epochs) for r in _there(results, data, count, seeds)]
        parts += [f"### {TITLES[data][0].upper()}{TITLES[data][1:]}", "", *_counts(there), ""]
        parts += [*_rates(results, data, epochs, seeds), ""]
        if queries := _queries(results, data, epochs, seeds):
            parts += ["Records trained on that come out (%) by queries, at temperature 1:", "", *queries, ""]
        parts += ["Exposure of canaries by repetitions:", "", *_exposures(results, data, epochs, seeds), ""]
        if personal := _personal(results, data, epochs, seeds):
            parts += ["Personal data, all kinds together:", "", *personal, ""]
    spent = [r["cpu_seconds"] for r in results.values() if r["cpu_seconds"] is not None]
    if spent:
        parts.append(f"{len(results)} runs; {sum(spent) / 60:.0f} minutes of CPU time.")
    return "\n".join(parts)


def picture(results: Results, sets: Sequence[str], epochs: Sequence[int], seeds: Sequence[int]) -> str:
    """An SVG: on the left records out by epochs, on the right exposure by repetitions after the most epochs."""
    from matplotlib.figure import Figure

    from sordino.report.svg import canvas

    if not results:
        return ""
    colours = dict(zip(sets, ("#0b5d6f", "#b2182b", "#e08214"), strict=False))
    with canvas():
        figure = Figure(figsize=(9, 3.8), facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2)
        for data, colour in colours.items():
            if not any(data == key[0] for key in results):
                continue
            for kind, style in (("rate", "-"), ("non-members", "--")):
                points = [
                    (count, [r["attempts"]["prefix"]["estimates"][kind] for r in there])
                    for count in epochs
                    if (there := _there(results, data, count, seeds))
                ]
                xs, ys = [c for c, _ in points], [100 * mean(e["value"] or 0 for e in f) for _, f in points]
                left.plot(xs, ys, style, marker="o", color=colour, label=TITLES[data] if kind == "rate" else None)
                if kind == "rate":
                    ends = [(min(e["low"] for e in f), max(e["high"] for e in f)) for _, f in points]
                    left.fill_between(xs, *zip(*((100 * a, 100 * b) for a, b in ends), strict=True), color=colour,
                                      alpha=0.12, linewidth=0)  # fmt: skip
            there = _there(results, data, epochs[-1], seeds)
            levels = sorted({c["repetitions"] for r in there for c in r["canaries"]})
            shown = [(k, one) for k in levels if (one := _pooled(there, k)) is not None]
            # Beside each other, so that bars of several sets can be told apart.
            aside = 0.95 ** (1 - list(colours).index(data))
            right.errorbar(
                [k * aside for k, _ in shown], [one[0] for _, one in shown], fmt="-o", color=colour, capsize=3,
                yerr=[[one[0] - one[1] for _, one in shown], [one[2] - one[0] for _, one in shown]],
            )  # fmt: skip
            outside = [b for r in there for c in r["canaries"] for b in c["left_out_exposures"]]
            if outside:
                right.axhline(mean(outside), color=colour, linestyle="--", linewidth=1)
        left.set(xscale="log", xlabel="Epochs", ylabel="Records that repeat a passage (%)", ylim=(-2, 102))
        left.set_xticks(list(epochs), [str(e) for e in epochs])
        left.minorticks_off()
        right.set(
            xscale="log", xlabel=f"Repetitions, after {epochs[-1]} epochs", ylabel="Exposure (bits)", ylim=(0, None)
        )
        right.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        right.minorticks_off()
        left.plot([], [], "--", color="#555555", label="never trained on, left out")
        left.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
