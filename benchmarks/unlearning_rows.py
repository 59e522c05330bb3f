"""The tables of benchmarks/unlearning.py: a line a method; of forgetting, and of what is kept, robustness and cost."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any

import msgspec
from page import NOT_RUN

from sordino.results import Estimate, Scores
from sordino.unlearn.measuring.measures import leak_against, metrics_of
from sordino.unlearn.measuring.tofu import DEFINITIONS, Tofu

Result = Mapping[str, Any]
Results = Mapping[tuple[str, str, str, int], Result]

TITLES = {"lora": "LoRA", "full": "all weights"}
NAMES = {"probability": "Prob", "rouge_l": "ROUGE-L"}
FORGETTING = (
    "Prob", "ROUGE-L", "truth ratio", "forget quality, p", "ES", "EM", "VerbMem", "KnowMem",
    "AUC against never-trained", "PrivLeak, %",
)  # fmt: skip
KEEPING = (
    "model utility", "validation loss", "relearned, ΔAUC", "int8, ΔAUC", "both checkpoints, AUC",
    "tokens, % of retraining", "CPU, % of retraining",
)  # fmt: skip


def spread(found: Sequence[Estimate | None], digits: int = 3) -> str:
    """The mean over seeds, and the widest ends of their intervals; "–" where none was resolved."""
    there = [e for e in found if e is not None and e.value is not None]
    if not there:
        return "–"
    middle = mean(e.value for e in there if e.value is not None)
    low, high = min(e.low for e in there), max(e.high for e in there)
    return f"{middle:.{digits}g} [{low:.3g}, {high:.3g}]"


def estimate(found: Mapping[str, Any] | None) -> Estimate | None:
    """An estimate that was kept."""
    return None if found is None or "missing" in found else msgspec.convert(found, Estimate)


class Judged:
    """A result with what is computed from it: figures of questions, metrics of records."""

    def __init__(self, result: Result, retrained: "Judged | None") -> None:
        """`retrained` is the result of training anew, of the same seed, where there is one."""
        self.result, self.retrained = result, retrained
        self.tofu = msgspec.convert(result["tofu"], Tofu)
        self.scores = msgspec.convert(result["scores"], Scores)
        self.figures = self.tofu.figures()
        self.metrics = metrics_of(self.scores)

    @property
    def quality(self) -> float | None:
        """The p-value of forget quality."""
        return None if self.retrained is None else self.tofu.quality(self.retrained.tofu).p_value

    @property
    def leak(self) -> Estimate | None:
        """PrivLeak."""
        return None if self.retrained is None else leak_against(self.scores, self.retrained.scores)

    def robust(self, name: str) -> Estimate | None:
        """What a way to bring it back found."""
        found = self.result["robustness"][name]
        return None if "missing" in found else estimate(found["estimate"])

    @property
    def read(self) -> float:
        """Tokens read, in equivalents of one forwards and backwards: forwards alone is a third."""
        return float(self.result["cost"]["tokens"] + self.result["cost"]["forwards"] / 3)

    @property
    def cpu(self) -> float:
        """CPU seconds of forgetting."""
        return float(self.result["cpu_seconds"]["forgetting"])


def forgetting(there: Sequence[Judged]) -> list[str]:
    """The fields of what is left of the forgotten."""

    def figures(name: str) -> str:
        return spread([j.figures[name] for j in there])

    def metrics(name: str) -> str:
        return spread([j.metrics.get(name) for j in there])

    def muse(name: str) -> str:
        return spread([estimate(j.result["muse"][name]) for j in there])

    p = [j.quality for j in there if j.quality is not None]
    quality = f"{median(p):.2g} ({min(p):.1g} to {max(p):.1g})" if p else "–"
    return [
        figures("forget_probability"), figures("forget_rouge_l"), figures("forget_truth_ratio"), quality,
        metrics("extraction_strength"), metrics("exact_memorisation"), muse("verbatim_forget"),
        muse("knowledge_forget"), metrics("auc"), spread([j.leak for j in there]),
    ]  # fmt: skip


def keeping(there: Sequence[Judged]) -> list[str]:
    """The fields of what is kept, how robust the forgetting is, and what it cost."""
    tokens = [j.read / j.retrained.read for j in there if j.retrained is not None and j.retrained.read > 0]
    cpu = [j.cpu / j.retrained.cpu for j in there if j.retrained is not None and j.retrained.cpu > 0]
    return [
        spread([j.figures["model_utility"] for j in there]), spread([j.metrics["validation_loss"] for j in there]),
        *(spread([j.robust(name) for j in there], 2) for name in ("relearning", "quantised", "two_checkpoints")),
        f"{100 * mean(tokens):.3g}" if tokens else "–", f"{100 * mean(cpu):.3g}" if cpu else "–",
    ]  # fmt: skip


def table(
    judged: Mapping[tuple[str, int], Judged],
    methods: Sequence[str],
    seeds: Sequence[int],
    fields: Callable[[Sequence[Judged]], list[str]],
    names: Sequence[str],
) -> list[str]:
    """A line a method; with how many seeds, where some were not run."""
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method in methods:
        there = [judged[method, s] for s in seeds if (method, s) in judged]
        if not there:
            lines.append(f"| {method} | {NOT_RUN}{' |' * len(names)}")
            continue
        some = "" if len(there) == len(seeds) else f" ({len(there)} of {len(seeds)} seeds)"
        lines.append(f"| {method}{some} | {' | '.join(fields(there))} |")
    return [*lines, ""]


def counted(there: Mapping[tuple[str, int], Judged]) -> str:
    """How many records and questions stand behind the figures, by seed."""
    said = []
    for seed in dict.fromkeys(s for _, s in there):
        one = next(j for (_, s), j in there.items() if s == seed)
        counts, sets = one.result["counts"], one.result["tofu"]["sets"]
        authors = len(set(one.scores.forget["subject"]))
        asked = "/".join(str(len(columns["subject"])) for columns in sets.values())
        said.append(
            f"seed {seed}: {authors} authors with {counts['forget']} records to forget, {counts['never']} records "
            f"never trained on ({len(one.scores.never['loss'])} scored), {asked} questions"
        )
    return f"{'; '.join(said)} (forget/retain/real authors/world facts)."


def used(judged: Mapping[tuple[str, int], Judged], methods: Sequence[str]) -> list[str]:
    """The settings of each method that was run."""
    lines = ["<details><summary>Settings</summary>", ""]
    for method in methods:
        found = next((j.result["settings"] for (m, _), j in judged.items() if m == method), None)
        if found:
            lines.append(f"- {method}: {', '.join(f'{name} {value}' for name, value in found.items())}")
    return [*lines, "", "</details>", ""]


def missing(judged: Mapping[tuple[str, int], Judged]) -> list[str]:
    """Why robustness was not tried, where it was not."""
    why = [
        f"- {name}: {found['missing']}"
        for j in judged.values() for name, found in j.result["robustness"].items() if "missing" in found
    ]  # fmt: skip
    return [*dict.fromkeys(why), ""] if why else []


def tables(results: Results, columns: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> str:
    """The figures of all sets as Markdown."""
    lines = [f"- **{NAMES.get(name, name.replace('_', ' '))}**: {text}." for name, text in DEFINITIONS.items()]
    lines += [
        "- **both checkpoints**, **relearned**, **int8**: as in the text above; ΔAUC is the AUC of forgotten against "
        "never-trained records that it brings back.",
        "",
        f"Means over the seeds {', '.join(map(str, seeds))} of the training, with the widest ends of their 95 % "
        "intervals (of forget quality: the median, the lowest and the highest p-value).",
        "",
    ]
    for forget in dict.fromkeys(["forget01", "forget10", *(key[0] for key in results)]):
        for kind, methods in columns.items():
            lines += [f"### {forget}, {TITLES[kind]}", ""]
            made = {(m, s): r for (f, k, m, s), r in results.items() if (f, k) == (forget, kind)}
            if not made:
                lines += [f"{NOT_RUN.capitalize()}.", ""]
                continue
            anew = {s: Judged(r, None) for (m, s), r in made.items() if m == "retrain"}
            judged = {(m, s): Judged(r, anew.get(s)) for (m, s), r in made.items()}
            lines += [counted(judged).capitalize(), ""]
            lines += table(judged, methods, seeds, forgetting, FORGETTING)
            lines += table(judged, methods, seeds, keeping, KEEPING)
            lines += missing(judged) + used(judged, methods)
    return "\n".join(lines)
