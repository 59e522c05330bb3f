"""The tables of benchmarks/membership.py: a line an attack, a column a method, several seeds in a field."""

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from page import NOT_RUN

from sordino.stats import clopper_pearson

TITLES = {
    "tofu": "TOFU: answers about made-up authors, a record a unit",
    "presidio": "Presidio: sentences with made-up personal data",
    "mts": "MTS-Dialog: sections of doctors' notes",
    "authors": "TOFU, an author a unit: twenty answers each, one coin",
}
Results = Mapping[tuple[str, str, int], Mapping[str, Any]]


def area(found: Sequence[Mapping[str, Any]]) -> str:
    """The mean AUC of several seeds, and the widest ends of their intervals."""
    values = [f["value"] for f in found]
    return f"{mean(values):.3f} [{min(f['low'] for f in found):.2f}, {max(f['high'] for f in found):.2f}]"


def pooled(found: Mapping[str, Sequence[Mapping[str, int]]]) -> str:
    """TPR over all seeds, each with its own threshold, at the lowest FPR that is resolved; and the FPR that came out.

    Resolved is a rate by which ten of the non-members that judge it are false alarms.
    """
    for rate in sorted(found, key=float):
        total = {k: sum(f[k] for f in found[rate]) for k in ("hits", "members", "alarms", "non-members")}
        if total["non-members"] * float(rate) >= 10:
            tpr = clopper_pearson(total["hits"], total["members"])
            return (
                f"TPR {100 * (tpr.value or 0):.1f} % [{100 * tpr.low:.1f}, {100 * tpr.high:.1f}] at "
                f"{100 * float(rate):g} % ({100 * total['alarms'] / total['non-members']:.1f} %)"
            )
    return "TPR: not resolved"


def field(results: Results, data: str, method: str, seeds: Sequence[int], name: str) -> str:
    """What an attack found with a method, over the seeds that were run."""
    there = [results[data, method, s] for s in seeds if (data, method, s) in results]
    made = [r for r in there if name in r["attempts"]]
    if not made:
        return NOT_RUN if not there else "–"
    text = area([r["attempts"][name]["auc"] for r in made])
    rates = {rate: [r["rates"][rate][name] for r in made if name in r["rates"][rate]] for rate in made[0]["rates"]}
    if any(rates.values()) and data != "authors":
        text += f"<br>{pooled(rates)}"
    return text if len(made) == len(seeds) else f"{text}<br>({len(made)} of {len(seeds)} seeds)"


def controls(results: Results, data: str, name: str) -> str:
    """The lowest and the highest AUC of an attack on untuned models."""
    found = [r["attempts"][name]["control"] for k, r in results.items() if k[0] == data and name in r["attempts"]]
    values = [f["value"] for f in found if f is not None]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "none"


def cost(results: Results, data: str, name: str) -> str:
    """What an attack costs, in words, and the seconds its inputs took."""
    made = [r for k, r in results.items() if k[0] == data and name in r["attempts"]]
    words = made[0]["attempts"][name]["cost"]
    spent = [
        sum(r["seconds"].get(f"input {i}", 0.0) for i in r["attempts"][name]["inputs"]) for r in made
    ]  # fmt: skip
    return f"{words}; {median(spent):.0f} s" if median(spent) >= 0.5 else words


def tables(results: Results, columns: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> str:
    """The figures of all data sets as Markdown."""
    lines: list[str] = []
    for data, methods in columns.items():
        lines += [f"### {TITLES[data]}", ""]
        there = {k: r for k, r in results.items() if k[0] == data}
        if not there:
            lines += [f"{NOT_RUN.capitalize()}.", ""]
            continue
        counts = next(iter(there.values()))["counts"]
        inside, outside = counts["members"], counts["non-members"]
        lines += [f"Seed {min(k[2] for k in there)}: {inside:,} members and {outside:,} non-members are judged.", ""]
        names = dict.fromkeys(n for r in there.values() for n in r["attempts"])
        best = {n: mean(r["attempts"][n]["auc"]["value"] for r in there.values() if n in r["attempts"]) for n in names}
        lines += [
            f"| attack | {' | '.join(methods)} | untuned model | costs |",
            "|---" * (len(methods) + 3) + "|",
        ]
        for name in sorted(names, key=lambda n: -best[n]):
            fields = [field(results, data, m, seeds, name) for m in methods]
            lines.append(
                f"| {name} | {' | '.join(fields)} | {controls(results, data, name)} | {cost(results, data, name)} |"
            )
        blind = [g["finding"] for r in there.values() for g in r["gates"] if g["name"] == "blind"]
        lines += ["", f"Blind control of the first cell: {blind[0]}", ""]
        missing = dict.fromkeys(u for r in there.values() for u in r["untested"] if u.startswith("The attack"))
        lines += [f"- Not made: {text}" for text in missing] + ([""] if missing else [])
        spent = [r["cpu_seconds"]["audit"] for r in there.values()]
        lines += [f"A cell's audit took {median(spent):,.0f} s of CPU time (median).", ""]
    return "\n".join(lines)
