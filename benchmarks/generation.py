"""Generation by requests against `model.generate` of transformers: in a loop, and batched with left padding.

    python benchmarks/generation.py         prints a table; --quick for a short one

stories260k writes 50 tokens after the beginnings of answers of TOFU and of TinyStories (all from $SORDINO_DATA,
default: ../shared), 10 to 60 tokens long. greedy: 256 beginnings. sampled: the same, with top-k 40, and the end token
ends a text; as the model hardly ever ends one so early, the full stop stands for it, for all alike. samples: 64 after
each of 8 beginnings.
A: `sordino.generate`. B: `model.generate` request by request, on every eighth of them, times eight. C: `model.generate`
on batches in the order of length, padded on the left; the better of 16 and 64 rows. Rounds are interleaved (A B C A B C
…); the table has medians of the ratios of each round, of CPU time and of wall time.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from sordino.config import ModelConfig
from sordino.decoding import Decoding
from sordino.generate import Request, generate
from sordino.model import Model, load

DATA = Path(os.environ.get("SORDINO_DATA", Path(__file__).resolve().parents[2] / "shared"))
LENGTH, TOP_K, SHARE, SIZES = 50, 40, 8, (16, 64)
Spent = tuple[float, float]


def beginnings(model: Model, count: int) -> list[np.ndarray]:
    """The first 10 to 60 tokens of `count` texts, half of them answers of TOFU, half paragraphs of TinyStories."""
    with (DATA / "data/tofu/full.json").open(encoding="utf-8") as file:
        texts = [json.loads(line)["answer"] for line in itertools.islice(file, count)]
    with (DATA / "data/text/tinystories_a.txt").open(encoding="utf-8") as file:
        texts += [line.strip() for line in itertools.islice((x for x in file if len(x) > 300), count)]
    rng = np.random.default_rng(0)
    encoded = [np.array(model.tokenizer(text)["input_ids"], dtype=np.int32) for text in texts]
    long = [ids[: int(size)] for ids, size in zip(encoded, rng.integers(10, 61, len(encoded)), strict=True)]
    return [long[i] for i in rng.permutation(len(long))[:count]]


def workloads(model: Model, few: bool) -> dict[str, tuple[Model, list[Request]]]:
    """The three lists of requests, each with the model whose tokenizer says which token ends a text."""
    prefixes = beginnings(model, 32 if few else 256)
    greedy = [Request(prefix=p, length=LENGTH) for p in prefixes]
    drawn = [replace(r, decoding=Decoding(top_k=TOP_K), seed=i) for i, r in enumerate(greedy)]
    stop = model.tokenizer.convert_tokens_to_ids(".")
    ending = SimpleNamespace(eos_token_id=stop, decode=model.tokenizer.decode)
    samples = 8 if few else 64
    shared = [
        replace(drawn[0], prefix=p, seed=i * samples + k) for i, p in enumerate(prefixes[:8]) for k in range(samples)
    ]
    return {
        "greedy": (model, greedy),
        "sampled, with ends": (replace(model, tokenizer=ending), [replace(r, end=True) for r in drawn]),
        f"{samples} samples after each of 8": (model, shared),
    }


def by_transformers(model: Model, requests: Sequence[Request], size: int) -> list[list[int]]:
    """`model.generate` on batches of `size`, in the order of length and padded on the left."""
    made: list[list[int]] = [[]] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prefix))
    own = requests[0]
    settings = {"do_sample": own.decodings[0].temperature > 0, "max_new_tokens": LENGTH, "pad_token_id": 0}
    settings |= {"eos_token_id": model.tokenizer.eos_token_id if own.end else None}
    if settings["do_sample"]:
        settings |= {"top_k": TOP_K, "temperature": 1.0, "top_p": 1.0}
    with torch.inference_mode():
        for begun in range(0, len(order), size):
            chosen = order[begun : begun + size]
            width = max(len(requests[i].prefix) for i in chosen)
            ids = torch.zeros((len(chosen), width), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                prefix = torch.from_numpy(requests[i].prefix.astype(np.int64))
                ids[row, width - len(prefix) :], mask[row, width - len(prefix) :] = prefix, 1
            text = model.module.generate(input_ids=ids, attention_mask=mask, **settings)
            for row, i in enumerate(chosen):
                made[i] = text[row, width:].tolist()
    return made


def spent(work: Callable[[], object]) -> Spent:
    """CPU and wall seconds."""
    before = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - before[0], time.perf_counter() - before[1]


def measure(model: Model, requests: list[Request], rounds: int) -> tuple[float, list[float], int]:
    """Median CPU seconds of A; medians of B/A and C/A in CPU time, then in wall time; rows of the best C."""
    some = requests[::SHARE]
    found: list[tuple[Spent, Spent, dict[int, Spent]]] = []
    for number in range(rounds + 1):
        ours = spent(lambda: generate(model, requests))
        loop = spent(lambda: by_transformers(model, some, 1))
        batched = {size: spent(lambda size=size: by_transformers(model, requests, size)) for size in SIZES}
        if number:  # the first round is not counted
            found.append((ours, loop, batched))
    best = min(SIZES, key=lambda size: statistics.median(batched[size][0] for _, _, batched in found))
    parts = len(requests) / len(some)
    ratios = []
    for clock in (0, 1):
        ratios.append(statistics.median(parts * loop[clock] / ours[clock] for ours, loop, _ in found))
        ratios.append(statistics.median(batched[best][clock] / ours[clock] for ours, _, batched in found))
    return statistics.median(ours[0] for ours, _, _ in found), ratios, best


def agreement(model: Model, requests: Sequence[Request]) -> str:
    """How many greedy texts are word for word those of `model.generate`; sampled ones have other random numbers."""
    if requests[0].decodings[0].temperature > 0:
        return "drawn"
    pairs = zip(generate(model, requests), by_transformers(model, requests, 1), strict=True)
    return f"{sum(one.ids.tolist() == other for one, other in pairs)} of {len(requests)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of a workload's name")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = load(ModelConfig(path=str(DATA / "models/stories260k"), device="cpu"))
    # No end but the one that is asked for.
    model.module.generation_config.eos_token_id = None
    rounds = 1 if arguments.quick else arguments.rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} interleaved rounds, medians\n")
    print("| requests | CPU seconds | loop / Sordino: CPU | batched / Sordino: CPU | loop: wall | batched: wall | "
          "rows of the batches | same texts |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name, (one, requests) in workloads(model, arguments.quick).items():
        if arguments.only not in name:
            continue
        seconds, ratios, best = measure(one, requests, rounds)
        told = " | ".join(f"{ratio:.1f}×" for ratio in ratios)
        print(f"| {name}: {len(requests)} | {seconds:.2f} | {told} | {best} | {agreement(one, requests)} |", flush=True)


if __name__ == "__main__":
    main()
