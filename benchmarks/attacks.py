"""Scoring from an existing store: tokens a second of each attack that is arithmetic on what was kept.

    python benchmarks/attacks.py            prints a table; --quick for a tenth of the tokens

A store of 10⁷ scored tokens in 50,000 records (lengths log-normal around 200, words by Zipf's law, texts of 4
characters a token) is written once and read memory-mapped, as an audit reads it. Each round times a sum of one
column of it by NumPy (what memory gives), then the attack; tables give medians over rounds. Memory is the
highest sum of what lives beside the signals, as `tracemalloc` counts it, in a round of its own.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sordino.attacks.base import Attack, discover, offered
from sordino.attacks.complexity import compressed_sizes
from sordino.signals import STATISTICS, Known, Shadows, Signals, Statistics, Store

TOKENS, LENGTH, SHADOWS, KNOWN = 10_000_000, 200, 16, 2_000
# What an attack may read that this store holds; those that read more (gradients, samples) have no part in this.
HELD = {"units", "shadows", "known", "scores", "compressed"}


def _columns(rng: np.random.Generator, offsets: np.ndarray, gained: float) -> Statistics:
    """Statistics of tokens that are about as surprising as those of a small model are."""
    total, counts = int(offsets[-1]), np.diff(offsets)
    logprob = -rng.gamma(0.6, 3.0, total).astype(np.float32) + np.float32(gained)
    np.minimum(logprob, np.float32(-1e-4), out=logprob)
    rank = np.floor(np.exp(np.minimum(-logprob, 9)) * rng.random(total, dtype=np.float32) ** 2).astype(np.int32)
    return Statistics(
        offsets=offsets,
        position=(np.arange(total) - np.repeat(offsets[:-1], counts) + 1).astype(np.int32),
        token=np.minimum(rng.zipf(1.2, total), 4095).astype(np.int32),
        logprob=logprob,
        mean=-rng.gamma(4.0, 0.6, total).astype(np.float32),
        variance=rng.gamma(4.0, 0.8, total).astype(np.float32),
        rank=rank,
        top=np.minimum(rng.zipf(1.2, total), 4095).astype(np.int32),
        others=-rng.random(total, dtype=np.float32),
    )


def _texts(rng: np.random.Generator, counts: np.ndarray) -> tuple[str, ...]:
    """Words by Zipf's law out of 20,000, cut to 4 characters a token."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 10, 20_000)])
    return tuple(" ".join(words[np.minimum(rng.zipf(1.3, n), 20_000) - 1])[: 4 * n] for n in counts)


def _shadows(rng: np.random.Generator, nll: np.ndarray) -> Shadows:
    included = rng.random((SHADOWS, len(nll))) < 0.5
    return Shadows(nll=nll + 0.1 * rng.normal(size=included.shape) - 0.1 * included, included=included)


def make(folder: Path, tokens: int) -> Signals:
    """Signals of `tokens` tokens, all of whose statistics lie in files."""
    rng, store = np.random.default_rng(0), Store(folder)
    counts = np.maximum(8, rng.lognormal(np.log(LENGTH) - 0.18, 0.6, tokens // LENGTH).astype(np.int64))
    names, units = tuple(map(str, range(len(counts)))), tuple(str(i // 5) for i in range(len(counts)))
    offsets, texts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), _texts(rng, counts)

    def kept(key: str, gained: float) -> Signals:
        store.put(key, _columns(rng, offsets, gained), {})
        found = store.get(key)
        assert found is not None
        return Signals(record_ids=names, texts=texts, statistics=found, units=units)

    tuned, base = kept("tuned", 0.1), kept("base", 0.0)
    started = time.process_time()
    sizes = compressed_sizes(texts)
    spent, held = time.process_time() - started, sum(len(t) for t in texts) / 1e6
    rate = offsets[-1] / spent
    print(f"Compressing the {held:.0f} MB of texts, once: {spent:.2f} s of CPU time, {rate:.2g} tokens a second.\n")
    seen = {"compressed": sizes.astype(np.float64), "scores": rng.normal(size=(len(counts), 12))}
    tuned, base = (replace(s, shadows=_shadows(rng, s.nll), measured=seen) for s in (tuned, base))
    few = range(KNOWN)
    told = Signals(record_ids=names[:KNOWN], texts=texts[:KNOWN], statistics=base.statistics.select(few),
                   shadows=_shadows(rng, base.nll[:KNOWN]), measured={n: x[:KNOWN] for n, x in seen.items()},
                   base=replace(base, statistics=base.statistics.select(few), shadows=None, units=()))  # fmt: skip
    known = Known(signals=told, member=rng.random(KNOWN) < 0.5)
    views = {"lowercase": replace(base, shadows=None, units=())}
    return replace(tuned, base=base, views=views, known=known)


def arithmetic() -> dict[str, Attack]:
    """Attacks whose numbers are all in the store."""
    held = {n: a for n, a in discover("membership").items() if a.inputs <= HELD and a.needs <= set(STATISTICS)}
    return {n: a for n, a in held.items() if set(a.views) <= {"lowercase"}}


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - spent


def measure(attack: Attack, signals: Signals, rounds: int) -> tuple[float, float, float, float]:
    """Median seconds of the clock and of the processor, median ratio to a plain sum, and bytes beside the signals."""
    seen, column = offered(attack, signals), signals.statistics.logprob
    attack(seen)
    plain, made = [], []
    for _ in range(rounds):
        plain.append(_time(lambda: column.sum(dtype=np.float64)))
        made.append(_time(lambda: attack(seen)))
    tracemalloc.start()
    attack(seen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratio = statistics.median(a[1] / max(b[1], 1e-9) for a, b in zip(made, plain, strict=True))
    clock, spent = (statistics.median(times) for times in zip(*made, strict=True))
    return clock, spent, ratio, float(peak)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names of attacks, with commas")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        signals = make(Path(folder), TOKENS // 10 if arguments.quick else TOKENS)
        total = int(signals.statistics.offsets[-1])
        print(f"{total:,} tokens of {len(signals):,} records, {arguments.rounds} interleaved rounds, medians.\n")
        print("| attack | tokens a second | of CPU time | times a plain sum | MB beside the signals |")
        print("|---|---|---|---|---|")
        for name, attack in arithmetic().items():
            if arguments.only and name not in arguments.only.split(","):
                continue
            clock, spent, ratio, peak = measure(attack, signals, arguments.rounds)
            print(
                f"| {name} | {total / clock:.2g} | {total / spent:.2g} | {ratio:.1f} | {peak / 1e6:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
