"""Where the fused pass spends its time: nanoseconds a logit, one thread, of the head and of each pass over logits.

python benchmarks/reduction.py
"""

import statistics
import time
from collections.abc import Callable

import torch

from sordino.collect import token_statistics

VOCABULARY, WIDTH, ROWS, ROUNDS = 2048, 128, 256, 30


def _nanoseconds(work: Callable[[], object]) -> float:
    work()
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) / (ROWS * VOCABULARY) * 1e9


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH) / 5
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    ones, scratch = torch.ones(VOCABULARY), torch.empty(ROWS, VOCABULARY)
    with torch.inference_mode():
        logits = torch.nn.functional.linear(hidden, weight)
        peak, at = logits.amax(-1, keepdim=True), logits.gather(1, targets[:, None])
        works: dict[str, Callable[[], object]] = {
            "the head itself": lambda: torch.nn.functional.linear(hidden, weight),
            "all statistics (with a copy of the logits)": lambda: token_statistics(logits.clone(), targets),
            "copy": logits.clone,
            "amax": lambda: logits.amax(-1, keepdim=True),
            "shift by the maximum": lambda: torch.sub(logits, peak, out=scratch),
            "compare into floats (twice)": lambda: torch.gt(logits, at, out=scratch),
            "exp": lambda: torch.exp(logits, out=scratch),
            "multiply (twice)": lambda: torch.mul(logits, scratch, out=scratch),
            "sum as a product with ones (five times)": lambda: logits.mv(ones),
            "not used: max with indices": lambda: logits.max(-1),
            "not used: sum of booleans": lambda: (logits > at).sum(-1),
        }
        print("| step | ns a logit |")
        print("|---|---|")
        for name, work in works.items():
            print(f"| {name} | {_nanoseconds(work):.2f} |")


if __name__ == "__main__":
    main()
