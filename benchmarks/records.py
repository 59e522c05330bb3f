"""Reading, splitting, fingerprinting and saving up to a million short records, each size in its own process.

python benchmarks/records.py            the declared grid, as a Markdown table
python benchmarks/records.py KIND SIZE  one cell of it, as JSON
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

GRID = (("unlike", 10_000), ("unlike", 100_000), ("unlike", 1_000_000), ("copies", 50_000))
STEPS = ("read", "split and clusters", "fingerprint", "save", "load and count")
MOST = 2.0  # GB at the peak, for a million records
KINDS = {
    "unlike": "15 to 30 words of a vocabulary of 20,000, one in 50 a copy of its predecessor with a word changed",
    "copies": "one text of 60 words with up to 3 words changed, taken away or added",
}


def texts(kind: str, size: int) -> Iterator[str]:
    """The texts of a cell."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in ("a", "ei", "o", "u") for c in range(460)][:20_000]
    base = rng.choices(words, k=60 if kind == "copies" else 20)
    for _ in range(size):
        chosen = list(base) if kind == "copies" or rng.random() < 0.02 else rng.choices(words, k=rng.randint(15, 30))
        for _ in range(rng.randint(0, 3) if kind == "copies" else 1):
            at = rng.randrange(len(chosen))
            chosen[at : at + 1] = rng.choice(([rng.choice(words)], [], [chosen[at], rng.choice(words)]))
        base = base if kind == "copies" else chosen
        yield " ".join(chosen)


def measure(kind: str, size: int, folder: Path) -> dict[str, object]:
    """Seconds of each step and the peak of memory, in this process."""
    from sordino.records import DataConfig, SplitConfig, load, read, save, split

    data = folder / "data.jsonl"
    with data.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(kind, size))
    times = [time.monotonic()]
    dataset = read(DataConfig(path=str(data)))
    times.append(time.monotonic())
    # Forms of one text are too few coins for an audit.
    made = split(dataset, SplitConfig(candidates=0.4 if kind == "unlike" else 0), 1)
    times.append(time.monotonic())
    assert dataset.fingerprint
    times.append(time.monotonic())
    save(made, folder / "split.parquet")
    times.append(time.monotonic())
    loaded = load(folder / "split.parquet")
    assert len(loaded.training) + len(loaded.nonmembers) <= len(loaded.examples)
    times.append(time.monotonic())
    seconds = [round(b - a, 1) for a, b in pairwise(times)]
    groups = len(set(made.examples.column("group").to_pylist()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "records": len(dataset.records), "groups": groups, "peak": round(peak, 2)}


def main() -> None:
    """Measure one cell, or all in fresh processes."""
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), Path(folder))))
        return
    print("| texts | records | groups | " + " | ".join(f"{step}, s" for step in STEPS) + " | peak GB |")
    print("|---" * (len(STEPS) + 4) + "|")
    for kind, size in GRID:
        command = [sys.executable, __file__, kind, str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        row = (kind, f"{found['records']:,}", f"{found['groups']:,}", *found["seconds"], found["peak"])
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        assert found["peak"] < MOST, f"{size:,} records took {found['peak']} GB"
    print()
    print("\n".join(f"*{kind}*: {words}." for kind, words in KINDS.items()))


if __name__ == "__main__":
    main()
