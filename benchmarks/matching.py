"""Matching of text: the longest common substring against other ways, and a suffix array over many records.

    python benchmarks/matching.py           prints two tables; --quick for one round

First table. A: `longest_common_substring`. B: the table of all pairs of ends, in plain Python. C: difflib without its
junk, which is exact. Texts are English-like words with a passage in common, a half of the shorter one's length. Rounds
are interleaved (A B C A B C …), and so is the ratio of each round of which the median is given; A is repeated within a
round until it takes 20 ms.

Second table: building `SuffixIndex` over token ids, and asking it for the matching statistics of texts of 256 tokens, a
half of each copied from a record.
"""

import argparse
import difflib
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from sordino.matching import SuffixIndex, longest_common_substring

LENGTHS = (100, 800, 3_200)
RECORDS = (1_000, 10_000)
WORDS = ["the", "of", "house", "door", "green", "seven", "was", "they", "opened", "Monday", "letter", "paid", "river"]


def pair(length: int, seed: int) -> tuple[str, str]:
    """Two texts of `length` characters that share a passage of half of that."""
    rng = random.Random(seed)

    def some(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))[:count]

    shared, rest = some(length // 2), length - length // 2
    return some(rest) + shared, shared + some(rest)


def naive(a: str, b: str) -> int:
    """The length of the longest common substring by the table of all pairs of ends."""
    best, before = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0] * (len(b) + 1)
        for j, y in enumerate(b):
            if x == y:
                row[j + 1] = before[j] + 1
                best = max(best, row[j + 1])
        before = row
    return best


def seconds(work: Callable[[], object], least: float = 0.0) -> float:
    """Seconds of the processor that `work` takes, repeated until `least` are spent."""
    started, count = time.process_time(), 0
    while count == 0 or time.process_time() - started < least:
        work()
        count += 1
    return (time.process_time() - started) / count


def common(rounds: int) -> None:
    """Print the first table."""
    print("| characters | Sordino | table in Python | difflib, no junk | table / Sordino | difflib / Sordino |")
    print("|---|---|---|---|---|---|")
    for length in LENGTHS:
        times = []
        for number in range(rounds):
            a, b = pair(length, number)
            plain = difflib.SequenceMatcher(None, a, b, autojunk=False)
            assert longest_common_substring(a, b).length == naive(a, b) == plain.find_longest_match().size
            times.append(
                (
                    seconds(lambda a=a, b=b: longest_common_substring(a, b), 0.02),
                    seconds(lambda a=a, b=b: naive(a, b)),
                    seconds(lambda a=a, b=b: difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match()),
                )
            )
        ours, table, other = (statistics.median(column) for column in zip(*times, strict=True))
        first, second = (statistics.median(row[i] / row[0] for row in times) for i in (1, 2))
        print(
            f"| {length:,} | {ours * 1e3:.2f} ms | {table * 1e3:.1f} ms | {other * 1e3:.1f} ms | "
            f"{first:,.0f} | {second:,.0f} |"
        )


def index(rounds: int) -> None:
    """Print the second table."""
    print("\n| records of 200 tokens | building | tokens a second | one query of 256 tokens |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for count in RECORDS:
        records = [rng.zipf(1.3, 200).clip(max=50_000) for _ in range(count)]
        queries = [np.concatenate([rng.zipf(1.3, 128).clip(max=50_000), records[i][:128]]) for i in range(50)]
        built, asked = [], []
        for _ in range(rounds):
            built.append(seconds(lambda records=records: SuffixIndex(records)))
            made = SuffixIndex(records)
            asked.append(seconds(lambda made=made, queries=queries: [made.lengths(q) for q in queries]) / len(queries))
        build = statistics.median(built)
        print(f"| {count:,} | {build:.2f} s | {200 * count / build:,.0f} | {statistics.median(asked) * 1e3:.2f} ms |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    longest_common_substring("ab", "b")  # what is compiled or loaded once is not counted
    common(rounds)
    index(rounds)


if __name__ == "__main__":
    main()
