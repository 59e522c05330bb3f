"""How often bounds on ε reject a mechanism that leaks nothing: ours, and what public implementations do.

python benchmarks/null_audits.py [--audits 2000] [--write docs/auditing.md]

Every variant sees the same scores and coins. What others do is written anew here and described by what it does;
`tests/unit/null_audits.py` has ours and draws the audits. Five minutes on one core; what is in --state is not
done again, so delete that folder after a change.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial import ConvexHull
from scipy.special import betaincinv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "unit"))

import null_audits as ours  # noqa: E402

from sordino.stats import roc  # noqa: E402

MARK = ("<!-- null-audits:begin -->", "<!-- null-audits:end -->")
SIZES = (1_000, 10_000)
GRID = (0.001, 0.005, 0.01, 0.05, 0.1)

Audit = Callable[[np.ndarray, np.ndarray], float]


def limits(hits: np.ndarray, n: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Clopper–Pearson limits of many counts at once, each with `tail` beyond it."""
    low = np.where(hits == 0, 0.0, betaincinv(np.maximum(hits, 1), n - hits + 1, tail))
    high = np.where(hits == n, 1.0, betaincinv(hits + 1, np.maximum(n - hits, 1), 1 - tail))
    return low, high


def greatest(tp: np.ndarray, n_in: int, fp: np.ndarray, n_out: int, tail: float) -> float:
    """The greatest of the two-sided bounds at several thresholds."""
    low, high = limits(tp, n_in, tail)[0], limits(fp, n_out, tail)[1]
    ratios = np.maximum((low - ours.DELTA) / high, (1 - high - ours.DELTA) / (1 - low))
    return max(0.0, math.log(max(1.0, float(ratios.max()))))


def curve(scores: np.ndarray, coins: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    fpr, tpr = roc(scores, coins)
    n_in, n_out = int(coins.sum()), int((~coins).sum())
    return np.rint(tpr * n_in).astype(int), np.rint(fpr * n_out).astype(int), n_in, n_out


def hull(scores: np.ndarray, coins: np.ndarray, tail: float = 0.025) -> float:
    """Every corner of the ROC's convex hull is tried at full level, and the greatest bound told."""
    tp, fp, n_in, n_out = curve(scores, coins)
    kept = ConvexHull(np.column_stack([fp / n_out, tp / n_in])).vertices
    return greatest(tp[kept], n_in, fp[kept], n_out, tail)


def every_threshold(scores: np.ndarray, coins: np.ndarray) -> float:
    """Two hundred thresholds are tried, limits one-sided at the full 5 % each."""
    tp, fp, n_in, n_out = curve(scores, coins)
    some = np.linspace(0, tp.size - 1, 200).astype(int)
    return greatest(tp[some], n_in, fp[some], n_out, 0.05)


def nearest(scores: np.ndarray, coins: np.ndarray) -> float:
    """The thresholds whose FPR on the evaluated coins comes nearest to five rates; the greatest bound told."""
    tp, fp, n_in, n_out = curve(scores, coins)
    chosen = [int(np.argmin(np.abs(fp / n_out - rate))) for rate in GRID]
    return greatest(tp[chosen], n_in, fp[chosen], n_out, 0.025)


def one_sided(scores: np.ndarray, coins: np.ndarray) -> float:
    """One threshold from a disjoint half, but both limits at the full 5 %."""
    tp, n_in, fp, n_out = ours._halves(scores, coins)
    return greatest(np.array([tp]), n_in, np.array([fp]), n_out, 0.05)


OURS: dict[str, Audit] = {
    "one-run, a fifth of the coins guessed, fixed in advance": ours.one_run,
    "f-DP one-run, the same": ours.f_dp,
    "two-sided Clopper–Pearson, threshold from a disjoint half": ours.two_sided,
    "GDP at such a threshold": ours.gdp,
}
THEIRS: dict[str, Audit] = {
    "one-run, best of ten guess budgets": partial(ours.best_of_budgets, ours.one_run_bound),
    "f-DP one-run, best of ten guess budgets": partial(ours.best_of_budgets, ours.f_dp_bound),
    "two-sided, every corner of the ROC's convex hull": hull,
    "two-sided, thresholds nearest to five FPRs": nearest,
    "two hundred thresholds, limits one-sided at full α": every_threshold,
    "one threshold, limits one-sided at full α": one_sided,
}


def kept(state: Path, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `make` gives, computed once: a part that is in `state` is not made again."""
    path = state / f"{key}.json"
    if not path.exists():
        state.mkdir(parents=True, exist_ok=True)
        found = make()
        path.write_text(json.dumps(found), encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def rows(audits: int, state: Path) -> list[str]:
    everything = OURS | THEIRS
    nothing = {name: (a, 0.0) for name, a in everything.items()}
    draw, true = ours.TRUTHS["response 4", "one-run"]
    gaussian = ours.TRUTHS["response 4", "GDP"][1]
    checks = {name: (a, gaussian if "DP" in name else true) for name, a in everything.items()}
    found = [kept(state, f"null-{m}-{audits}", partial(ours.above, ours.null, audits, m, nothing)) for m in SIZES]
    found.append(kept(state, f"response-{audits}", partial(ours.above, draw, audits, SIZES[0], checks)))
    head = [*(f"ε̂ > 0 under the null, m = {m:,}" for m in SIZES), f"ε̂ > ε = 4, m = {SIZES[0]:,}"]
    lines = ["| Bound | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for part, title in ((OURS, "**Sordino**"), (THEIRS, "**What others do**")):
        lines.append(f"| {title} |" + " |" * len(head))
        for name in part:
            lines.append(f"| {name} | " + " | ".join(rate(one[name], audits) for one in found) + " |")
    return lines


def rate(share: float, audits: int) -> str:
    twice = 2 * math.sqrt(max(share * (1 - share), 1 / audits) / audits)
    words = f"{share:.1%} ± {twice:.1%}"
    return f"**{words}**" if share > ours.limit(audits) else words


def headline_rows(audits: int, state: Path) -> list[str]:
    found = [kept(state, f"headline-{m}-{audits}", partial(ours.headline, audits, m)) for m in SIZES]
    lines = ["| Twelve attacks on nothing | " + " | ".join(f"m = {m:,}" for m in SIZES) + " |", "|---|---|---|"]
    names = {
        "max-T p < 0.05": "smallest max-T p-value below 0.05",
        "AUC interval without 1/2": "interval of the strongest attack's AUC without ½",
        "one-run bound above 0": "ε̂ of the strongest attack above 0, on coins that did not choose it",
    }
    return lines + [
        f"| {words} | " + " | ".join(rate(f[k], audits) for f in found) + " |" for k, words in names.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audits", type=int, default=2_000)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "sordino-null-audits")
    given = parser.parse_args()
    note = f"{given.audits:,} audits each, ± two standard errors; bold: above 5 % and two standard errors."
    text = "\n".join([note, "", *rows(given.audits, given.state), "", *headline_rows(given.audits, given.state)])
    print(text)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARK[0])
        _, _, after = rest.partition(MARK[1])
        given.write.write_text(f"{before}{MARK[0]}\n{text}\n{MARK[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
