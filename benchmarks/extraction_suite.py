"""The extraction attacks of an audit on 2,000 records, against a loop over records as public tools have it.

    python benchmarks/extraction_suite.py   prints two tables; --quick for 200 records and one round

stories260k is tuned in full on answers of TOFU (both from $SORDINO_DATA, default: ../shared). A: what `sordino audit`
does for `prefix`, `near` and `sampling` of the records judged, from an empty store: the pass that tells signals and
five decodings, of the tuned and the untuned model, every window of every record, and the decoding of what they find.
B: the same questions about one window a record, the first, record by record with transformers, under both models: one
`model.generate(do_sample=False)`, which serves word for word and nearly alike, and one forward a record and decoding
through the sampler's own logits processors. That is the cheaper of the two usual ways to (n, p): drawing even ten
continuations a record and decoding would cost B several times as much. B is made on a random subset of the records
(100) and its time scaled up in proportion, which is right for a loop. Rounds are interleaved (A B A B …), on new
subsets; ratios are medians of the rounds'. All probabilities of B are checked against those of A.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from sordino.attacks.base import discover
from sordino.attacks.passages import passages
from sordino.audit.choosing import Chosen
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import Evidence
from sordino.audit.extracting import Extracted, extract
from sordino.audit.inputs import Context, Pair, provide
from sordino.audit.inputs.drawn import along
from sordino.config import load
from sordino.model import Model
from sordino.records.store import load as load_split
from sordino.results import Decoding
from sordino.run import Run
from sordino.similarity import rouge_l
from sordino.train.flow import create, prepare, train_run

DATA = Path(os.environ.get("SORDINO_DATA", Path(__file__).resolve().parents[2] / "shared"))
ATTACKS = ("prefix", "near", "sampling")
# What a run keeps of an audit, so that the next need not compute it.
KEPT = ("signals", "passages")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One window: the record's tokens up to its end, and where the passage begins."""

    record: int
    ids: np.ndarray
    start: int


@dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU and wall seconds."""

    cpu: float
    wall: float


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def spent(self) -> Spent:
        """How many there are by now."""
        return Spent(cpu=time.process_time() - self._cpu, wall=time.perf_counter() - self._wall)


def trained(folder: Path, judged: int) -> Run:
    """A run whose audit judges `judged` answers of TOFU."""
    folder.mkdir()
    with (DATA / "data/tofu/full.json").open(encoding="utf-8") as file:
        (folder / "some.jsonl").write_text("".join(islice(file, 2 * judged)), encoding="utf-8")
    values = {
        "data": {"path": str(folder / "some.jsonl"), "text": "answer"}, "out": str(folder),
        "model": {"path": str(DATA / "models/stories260k"), "device": "cpu"}, "method": {"kind": "full"},
        "split": {"candidates": 0.5, "validation": 0.1, "near_duplicates": 0}, "canaries": {"per_level": 0},
        "train": {
            "epochs": 3, "batch_size": 16, "max_length": 256, "learning_rate": 1e-3, "schedule": "constant",
        },
    }  # fmt: skip
    config = load(values=values, environment={})
    run = create(config, prepare(config))
    train_run(run)
    return run


def context_of(run: Run) -> Context:
    """A fresh start: nothing is in memory or in the store."""
    for kept in KEPT:
        shutil.rmtree(run.private / kept, ignore_errors=True)
    collector, placed = Collector(run), load_split(run.records)
    return Context(collector=collector, examples=list(placed.candidates), known=[], plan=collector.card.plan, seed=0)


def ours(context: Context) -> tuple[Extracted, Pair]:
    """A: as `sordino.audit.flow` does it."""
    known = discover("extraction")
    chosen = Chosen(membership={}, extraction={n: known[n] for n in ATTACKS}, asking={}, personal={}, left_out=())
    own = context.collector.signals(context.examples, {}, along(context))
    pair = provide({n for a in chosen.extraction.values() for n in a.inputs}, context, own)
    return extract(context, chosen, pair, Evidence.of(context.examples, 0)), pair


def windows(context: Context, pair: Pair) -> list[Asked]:
    """The first window of each record that is long enough."""
    plan, found = context.plan, []
    for one in passages(pair[0], plan.prefix_tokens, plan.suffix_tokens):
        if len(one.first):
            start = int(pair[0].statistics.position[one.rows][one.first[0]])
            ids = context.collector.encode(context.examples[one.record]).ids[: start + one.length]
            found.append(Asked(record=one.record, ids=ids, start=start))
    return found


def _warpers(decoding: Decoding) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if decoding.temperature != 1:
        made.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k is not None:
        made.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        made.append(TopPLogitsWarper(decoding.top_p))
    return made


def loop(
    model: Model, asked: Sequence[Asked], decodings: Sequence[Decoding]
) -> tuple[list[bool], list[bool], np.ndarray]:
    """B, of one model: what comes word for word, what nearly, and ln p of each passage (records, decodings)."""
    exact, alike, logs = [], [], np.zeros((len(asked), len(decodings)))
    with torch.inference_mode(), model.active() as module:
        for row, one in enumerate(asked):
            ids = torch.from_numpy(one.ids.astype(np.int64))[None]
            length = len(one.ids) - one.start
            text = module.generate(
                input_ids=ids[:, : one.start], attention_mask=torch.ones_like(ids[:, : one.start]),
                do_sample=False, max_new_tokens=length, min_new_tokens=length, pad_token_id=0,
            )[0, one.start :]  # fmt: skip
            exact.append(text.tolist() == ids[0, one.start :].tolist())
            pair = [model.tokenizer.decode(t, skip_special_tokens=True) for t in (text, ids[0, one.start :])]
            alike.append(bool(rouge_l(pair[:1], pair[1:]).f1[0] >= 0.75))
            for column, decoding in enumerate(decodings):
                scores = module(input_ids=ids).logits[0, one.start - 1 : -1]
                scores = _warpers(decoding)(ids, scores).log_softmax(-1)
                logs[row, column] = float(scores.gather(1, ids[0, one.start :, None]).double().sum())
    return exact, alike, logs


def distance(pair: Pair, asked: Sequence[Asked], logs: np.ndarray) -> float:
    """The largest difference of ln p to what A has of the same windows, where either gives a passage at all."""
    signals, worst = pair[0], 0.0
    for one, row in zip(asked, logs, strict=True):
        s = signals.statistics
        rows = np.arange(s.offsets[one.record], s.offsets[one.record + 1])
        rows = rows[np.asarray(s.position[rows]) >= one.start][: len(one.ids) - one.start]
        own = np.asarray(signals.sampled.logprob[rows], dtype=np.float64).sum(axis=0)
        given = np.isfinite(own) | np.isfinite(row)
        worst = max(worst, float(np.abs(own[given] - row[given]).max(initial=0.0)))
    return worst


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=2_000)
    parser.add_argument("--subset", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    records, subset = (200, 20) if arguments.quick else (arguments.records, arguments.subset)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder) / "runs", records)
        context = context_of(run)
        found, pair = ours(context)  # what is compiled or loaded once is not counted
        every, decodings = windows(context, pair), context.plan.sampling.decodings
        rounds: list[tuple[Spent, Spent]] = []
        hits, worst = np.zeros(2, dtype=int), 0.0
        for _ in range(1 if arguments.quick else arguments.rounds):
            context = context_of(run)
            models = (context.collector.tuned, context.collector.reader.untuned)  # loading counts for neither
            watch = Watch()
            found, pair = ours(context)
            mine = watch.spent()
            asked = [every[i] for i in rng.permutation(len(every))[:subset].tolist()]
            watch = Watch()
            exact, alike, logs = loop(models[0], asked, decodings)
            loop(models[1], asked, decodings)
            rounds.append((mine, watch.spent()))
            hits += np.array([sum(exact), sum(alike)])
            worst = max(worst, distance(pair, asked, logs))
    parts, asked_all = len(every) / len(asked), len(asked) * len(rounds)
    print(
        f"{len(context.examples):,} records judged, {len(every):,} long enough; {len(asked)} of them in each loop, "
        f"its time scaled by {parts:.1f}; {len(decodings)} decodings; {len(rounds)} interleaved rounds.\n"
    )
    print("| | Sordino, s | loop over records, s (scaled) | loop / Sordino |\n|---|---|---|---|")
    for clock in ("cpu", "wall"):
        pairs = [(getattr(a, clock), parts * getattr(b, clock)) for a, b in rounds]
        own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {'CPU' if clock == 'cpu' else 'wall'} | {own:.1f} | {other:,.0f} | {ratio:.1f} |")
    tried = sum(len(one.first) for one in passages(pair[0], context.plan.prefix_tokens, context.plan.suffix_tokens))
    rates = {a.name: a for a in found.attempts}
    print("\n| | windows tried | records out word for word | nearly |\n|---|---|---|---|")
    both = [_percent(rates[n]) for n in ("prefix", "near")]
    print(f"| Sordino | {tried:,} (all), under each model | {both[0]} | {both[1]} |")
    shares = [f"{100 * h / asked_all:.1f} %" for h in hits.tolist()]
    print(f"| loop | {len(every):,} (the first of each record) | {shares[0]} | {shares[1]} (ROUGE-L) |")
    print(f"\nLargest difference of ln p between the two on the same windows: {worst:.1e}.")


def _percent(attempt: object) -> str:
    """The share of trained-on records that come out."""
    return f"{100 * (attempt.estimates['rate'].value or 0.0):.1f} %"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
