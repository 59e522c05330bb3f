"""A step of unlearning against the same step written as public implementations write it.

    python benchmarks/forgetting.py           prints a table; --quick for a short one

A: Sordino's steps: logits at scored positions alone, the reference read once where log-probabilities are enough and as
a second frozen adapter on the shared base where they are not.
B: a copy of the whole model as the reference, read in every step; logits of all positions of the padded batch.
Both have the same loss functions, batches, rates and fused AdamW, on fresh copies of one model, and take their steps in
turns (A B A B …). The table has medians of the ratio of two steps on one batch, in CPU time and on the wall; what A
reads once is part of its first step, and its share of an epoch is told apart.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sordino.config import MethodConfig, ModelConfig
from sordino.model import Model, attach, load
from sordino.serialize import Tokens
from sordino.train.checkpoint import trainable
from sordino.train.collate import Batch, collate
from sordino.train.objective import Objective
from sordino.unlearn.losses import FORGET, IGNORED, RETAIN, Logits
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.steps import Epochs, Item, Limit, LossSteps, Total

BATCH, RATE = 8, 1e-5
CASES = (("grad_diff", "nll"), ("npo", "nll"), ("npo", "kl"), ("undial", "nll"))
METHODS = {"LoRA": MethodConfig(), "full": MethodConfig(kind="full")}


def answers(count: int, vocabulary: int, seed: int) -> list[Tokens]:
    """Questions of 10 to 30 tokens with answers of 20 to 60, of which the answer is scored."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        asked, said = int(rng.integers(10, 31)), int(rng.integers(20, 61))
        target = np.arange(asked + said) >= asked
        made.append(Tokens(ids=rng.integers(3, vocabulary, asked + said).astype(np.int32), target=target, text=""))
    return made


def ours(model: Model, case: tuple[str, str], forget: list[Tokens], retain: list[Tokens]) -> Callable[[int], None]:
    """A: a function that takes step number i; what is read once is read in the first."""
    name, kept = case
    objective, optimizer = Objective(model), adam(model)
    made: list[LossSteps] = []

    def step(number: int) -> None:
        if not made:
            total = Total(
                forget=FORGET[name], retain=RETAIN[kept], gamma=1.0, alpha=1.0, once=name == "npo",
                forget_frozen=name == "undial", retain_frozen=kept == "kl",
            )  # fmt: skip
            epochs = Epochs(lengths=[len(t) for t in forget], epochs=100, batch_size=BATCH, seed=0)
            made.append(
                LossSteps(
                    model=model,
                    forget=[Item(tokens=t) for t in forget],
                    retained=Given(retain),
                    total=total,
                    epochs=epochs,
                    limit=Limit(),
                )
            )
        indices = next(made[0].batches(number))[1]
        for part, _ in made[0].parts(number, indices, objective):
            part.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class Given(Retained):
    """Sequences that stay, drawn in their order on both sides."""

    def __init__(self, tokens: list[Tokens]) -> None:
        self.tokens = tokens

    def take(self, start: int, count: int) -> list[Tokens]:
        return [self.tokens[i % len(self.tokens)] for i in range(start, start + count)]


def usual(model: Model, case: tuple[str, str], forget: list[Tokens], retain: list[Tokens]) -> Callable[[int], None]:
    """B: a function that takes step number i."""
    name, kept = case
    wanted = name in ("npo", "undial") or kept == "kl"
    reference = copy.deepcopy(model.module).eval().requires_grad_(False) if wanted else None
    optimizer, pad = adam(model), model.tokenizer.pad_token_id
    epochs = Epochs(lengths=[len(t) for t in forget], epochs=100, batch_size=BATCH, seed=0)
    drawn = Given(retain)

    def told(batch: Batch) -> Logits:
        labels = torch.full_like(batch.input_ids, IGNORED)
        # The label of a position is that of the token after it.
        labels.view(-1)[batch.positions + 1] = batch.wanted
        logits = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        known = None
        if reference is not None:
            with torch.no_grad():
                known = reference(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
        return Logits(logits, labels, known)

    def step(number: int) -> None:
        indices = next(epochs.batches(number))[1]
        stays = drawn.take(epochs.drawn(number), len(indices))
        first = told(collate([forget[i] for i in indices], pad, model.device))
        loss = FORGET[name](first) + RETAIN[kept](told(collate(stays, pad, model.device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def adam(model: Model) -> torch.optim.Optimizer:
    """The optimizer of both sides."""
    return torch.optim.AdamW(list(trainable(model.module).values()), lr=RATE, weight_decay=0.0, fused=True)


def turns(steps: int, *sides: Callable[[int], None]) -> Iterator[list[tuple[float, float]]]:
    """CPU and wall seconds of each side's step, in turns."""
    for number in range(steps):
        found = []
        for side in sides:
            cpu, wall = time.process_time(), time.perf_counter()
            side(number)
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
        yield found


def fresh(base: Model, method: MethodConfig) -> Model:
    """A copy of the model, ready to be tuned, its adapter away from 0 as after training."""
    model = attach(replace(base, module=copy.deepcopy(base.module)), method, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model.module).values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    steps = 12 if parser.parse_args().quick else 60
    torch.set_num_threads(1)
    base = load(ModelConfig(device="cpu"))
    vocabulary = int(base.module.config.vocab_size)
    forget, retain = answers(40, vocabulary, 1), answers(400, vocabulary, 2)
    print("| model | loss | retain | CPU, ours / usual | wall, ours / usual | usual, ms a step |")
    print("|---|---|---|---|---|---|")
    for label, method in METHODS.items():
        for case in CASES:
            pair = [fresh(base, method) for _ in range(2)]
            sides = (ours(pair[0], case, forget, retain), usual(pair[1], case, forget, retain))
            found: Any = np.array(list(turns(steps + 1, *sides)))[1:]
            ratio = np.median(found[:, 0] / found[:, 1], axis=0)
            usually = 1e3 * np.median(found[:, 1, 1])
            apart = largest(pair)
            assert apart < 1e-3, f"{case}: the two sides came to different weights ({apart})"
            print(f"| {label} | {case[0]} | {case[1]} | {ratio[0]:.2f} | {ratio[1]:.2f} | {usually:.1f} |", flush=True)


def largest(pair: list[Model]) -> float:
    """How far the weights of both sides are apart, at most."""
    sides = [trainable(model.module) for model in pair]
    return max(float((sides[0][n] - sides[1][n]).detach().abs().max()) for n in sides[0])


if __name__ == "__main__":
    main()
