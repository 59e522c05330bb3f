"""What the statistics of a logit cost beside making it: nanoseconds a logit, medians of interleaved rounds.

python benchmarks/reduction.py
"""

import statistics
import time
from collections.abc import Callable

import torch

from sordino.reduction import _by_operations, token_statistics

ROUNDS = 15
SETTINGS = ((2048, 128, 1024), (4096, 256, 512), (50257, 768, 64))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads\n")
    print("| vocabulary, width | the head itself | statistics, one compiled pass | statistics, torch operations |")
    print("|---|---|---|---|")
    for vocabulary, width, rows in SETTINGS:
        hidden, weight = torch.randn(rows, width), torch.randn(vocabulary, width) / width**0.5
        targets = torch.randint(0, vocabulary, (rows,))
        with torch.inference_mode():
            logits = torch.nn.functional.linear(hidden, weight)
            works: list[Callable[[], object]] = [
                lambda h=hidden, w=weight: torch.nn.functional.linear(h, w),
                lambda x=logits, t=targets: token_statistics(x, t),
                lambda x=logits, t=targets: _by_operations(x, t),
            ]
            for work in works:
                work()
            spent = [[_seconds(work) for work in works] for _ in range(ROUNDS)]
        columns = (statistics.median(column) / (rows * vocabulary) * 1e9 for column in zip(*spent, strict=True))
        print(f"| {vocabulary:,}, {width} | " + " | ".join(f"{ns:.2f} ns" for ns in columns) + " |")


if __name__ == "__main__":
    main()
