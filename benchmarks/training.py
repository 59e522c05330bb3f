"""A training step of Sordino against a loop written by hand, and against transformers.Trainer.

    python benchmarks/training.py           prints a table; --quick for a short one

A: Sordino's loop, with its loss log, its checks and its events, as `sordino train` runs it.
B: a bare PyTorch loop: the same model, batches, rates and fused AdamW; the model's own loss; nothing is written.
C: transformers.Trainer with equal settings and the same optimizer.
All see the same batches, padded to the longest record in them, on fresh copies of one model, and take their steps
in turns (A B C A B C …): the machine changes its speed from second to second. The table has medians, over all steps
but the first of each run, of the ratio of two steps on one batch: of the process's CPU time and of wall time.
"""

import argparse
import copy
import math
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.model import Model, attach, load, load_tokenizer
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.train import loop
from sordino.train.collate import epoch_batches

BATCH, RATE = 8, 1e-4


def _ten_million() -> Model:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=704,
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model(module=LlamaForCausalLM(config), tokenizer=load_tokenizer(ModelConfig()), config=ModelConfig())


MODELS: dict[str, tuple[Callable[[], Model], int]] = {
    "sordino-tiny 1M": (lambda: load(ModelConfig(device="cpu")), 24),
    "Llama 8M": (_ten_million, 8),
}
METHODS = {"full": MethodConfig(kind="full"), "LoRA": MethodConfig()}


def _tokens(steps: int, vocabulary: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    made = []
    for size in rng.integers(40, 129, steps * BATCH):
        target = np.ones(size, dtype=bool)
        target[0] = False
        made.append(Tokens(ids=rng.integers(3, vocabulary, size).astype(np.int32), target=target, text=""))
    return made


def _pad(tokens: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    width = max(map(len, tokens))
    ids = torch.full((len(tokens), width), 2)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, item in enumerate(tokens):
        values = torch.from_numpy(item.ids.astype(np.int64))
        ids[row, : len(item)] = values
        labels[row, : len(item)] = values
        mask[row, : len(item)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _batches(tokens: Sequence[Tokens]) -> list[list[int]]:
    return epoch_batches([len(t) for t in tokens], BATCH, 0, 0)


def _config() -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, schedule="constant", warmup=0.0)


class Turns:
    """Lets threads take their steps in turns, so that a step of each meets the machine in the same state."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.now = list(names), 0
        self.change = threading.Condition()
        self.failure: BaseException | None = None

    def wait(self, name: str) -> None:
        """Return when it is the turn of `name`."""
        with self.change:
            self.change.wait_for(lambda: self.failure or self.names[self.now] == name)
        if self.failure:
            raise SystemExit

    def over(self, name: str, *, leaves: bool = False, failure: BaseException | None = None) -> None:
        """Hand the turn of `name` to the next."""
        with self.change:
            self.failure = self.failure or failure
            place = self.names.index(name)
            if leaves:
                self.names.remove(name)
            if self.names:
                self.now = (place if leaves else place + 1) % len(self.names)
            self.change.notify_all()


class Clock:
    """CPU and wall seconds of each step of `name`."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name, self.turns = name, turns
        self.steps: list[tuple[float, float]] = []

    def start(self) -> None:
        """Wait for a turn; the step begins with it."""
        self.turns.wait(self.name)
        self.began = time.process_time(), time.perf_counter()

    def step(self) -> None:
        """To be called when a step has ended; returns when the next may begin."""
        self.steps.append((time.process_time() - self.began[0], time.perf_counter() - self.began[1]))
        self.turns.over(self.name)
        self.start()

    def run(self, work: Callable[[], object]) -> None:
        """Do all of `work` in turns."""
        self.start()
        failure = None
        try:
            work()
        except BaseException as error:  # the other threads must not wait for ever
            failure = error
        self.turns.over(self.name, leaves=True, failure=failure)


def ours(model: Model, tokens: list[Tokens], folder: Path, clock: Clock) -> Callable[[], object]:
    """A, without the checkpoint at the end: the others write none either."""
    run = Run.create(folder, "bench", "0000")
    loop.save_checkpoint = lambda *arguments: None
    return lambda: loop.train(run, model, (tokens, []), _config(), seed=0, monitor=lambda *_: clock.step())


def bare(model: Model, tokens: list[Tokens], folder: Path, clock: Clock) -> Callable[[], object]:
    """B."""
    config, module, batches = _config(), model.module, _batches(tokens)

    def work() -> None:
        module.train()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
        for number, indices in enumerate(batches):
            loss = module(**_pad([tokens[i] for i in indices]), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if not math.isfinite(loss.item()):
                raise RuntimeError("no number")
            for group in optimizer.param_groups:
                group["lr"] = loop.learning_rate(number, len(batches), config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.step()

    return work


class _Given(Trainer):
    """Trainer on the batches of the other two."""

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        tokens: Any = self.train_dataset
        return torch.utils.data.DataLoader(tokens, batch_sampler=_batches(tokens), collate_fn=self.data_collator)


class _Timed(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: object, **__: object) -> None:
        self.clock.step()


def trainer(model: Model, tokens: list[Tokens], folder: Path, clock: Clock) -> Callable[[], object]:
    """C."""
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
        save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True, seed=0,
        remove_unused_columns=False,
    )  # fmt: skip
    made = _Given(model=model.module, args=arguments, train_dataset=tokens, data_collator=_pad)
    made.remove_callback(PrinterCallback)
    made.add_callback(_Timed(clock))
    return made.train


def measure(name: str, method: MethodConfig, rounds: int) -> dict[str, np.ndarray]:
    """The CPU and wall seconds (steps, 2) of A, B and C; row i is the same batch in each."""
    make, steps = MODELS[name]
    base = make()
    tokens = _tokens(steps, base.module.config.vocab_size)
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in WAYS}
    for _ in range(rounds):
        turns = Turns(list(WAYS))
        with tempfile.TemporaryDirectory() as folder:
            clocks, threads = {label: Clock(label, turns) for label in WAYS}, []
            for label, way in WAYS.items():
                model = attach(Model(copy.deepcopy(base.module), base.tokenizer, base.config), method, 0)
                work = way(model, tokens, Path(folder) / label, clocks[label])
                threads.append(threading.Thread(target=clocks[label].run, args=(work,)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if turns.failure:
            raise turns.failure
        for label, clock in clocks.items():
            found[label] += clock.steps[1:steps]
    return {label: np.array(values) for label, values in found.items()}


WAYS = {"A": ours, "B": bare, "C": trainer}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="a part of a model's name")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rounds = 2 if arguments.quick else arguments.rounds
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds of interleaved steps, medians\n"
    )
    print("| model | method | ms a step | Sordino / bare loop: CPU | wall | Sordino / Trainer: CPU | wall |")
    print("|---|---|---|---|---|---|---|")
    for name in MODELS:
        if arguments.only and arguments.only not in name:
            continue
        for label, method in METHODS.items():
            found = measure(name, method, rounds)
            ratios = [x for other in "BC" for x in np.median(found["A"] / found[other], axis=0)]
            step = 1000 * np.median(found["A"][:, 0])
            print(f"| {name} | {label} | {step:.1f} | {' | '.join(f'{x:.2f}×' for x in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
