"""K LoRA adapters trained together against K trained one after another.

    python benchmarks/shadows.py                 run what has no result yet, then print the tables
    python benchmarks/shadows.py --only 260k     a part of the grid
    python benchmarks/shadows.py --print         only print: what was not run says so

together: `train_joint` on K adapters. PEFT: transformers, peft and fused AdamW in a plain loop, one adapter. Sordino:
`train` on one adapter. Each adapter has a random half of the records, whose lengths are 60 to 100 % of the longest, so
that together there is padding. All are in one process and take their steps in turns (A B C A B C …): the machine
changes its speed from second to second. A ratio is the median over steps of K steps of one adapter by one step of all,
in wall time; making adapters ready is not counted, which costs the runs one after another more. Memory is the peak of
a process of its own. Where adapters are in the last block alone, all blocks computed at each step are compared with the
lower ones computed once. A cell of the grid is kept as JSON under --out, and what is there is not run again.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import Clock, Turns
from transformers import LlamaConfig, LlamaForCausalLM

from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.model import Model, attach, load_tokenizer
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.train import joint, loop
from sordino.train.adapters import Adapters
from sordino.train.collate import epoch_batches

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = "not run"
LONGEST, STEPS, RATE = 128, 6, 1e-4
TOKENS, COUNTS = (32, 128, 512, 2048), (16, 4, 64)


def _llama() -> Any:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=704,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def _stories() -> Any:
    folder = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared")) / "models" / "stories260k"
    return LlamaForCausalLM.from_pretrained(folder)


MODELS: dict[str, Callable[[], Any]] = {"stories260k": _stories, "Llama 10M": _llama}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a table: `tokens` at most a step of each of `count` adapters; in all blocks, or the last alone."""

    model: str
    count: int
    tokens: int
    upper: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}-K{self.count}-{self.tokens}{'-trunk' if self.upper else ''}".replace(" ", "-")

    @property
    def ways(self) -> tuple[str, ...]:
        """What takes turns."""
        return ("together", "all blocks") if self.upper else ("together", "PEFT", "Sordino")

    @property
    def batch(self) -> int:
        """Records a step."""
        return max(1, self.tokens // LONGEST)


class Bench:
    """The model, records and settings of a cell."""

    def __init__(self, cell: Cell, steps: int) -> None:
        self.cell = cell
        module = MODELS[cell.model]().eval()
        self.model = Model(module=module, tokenizer=load_tokenizer(ModelConfig()), config=ModelConfig(device="cpu"))
        targets: Any = "all-linear"
        if cell.upper:
            last = module.config.num_hidden_layers - 1
            targets = tuple(f"layers.{last}.{n}" for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))
        self.method = MethodConfig(rank=8, alpha=16.0, targets=targets)
        self.config = TrainConfig(epochs=1, batch_size=cell.batch, learning_rate=RATE, schedule="constant", warmup=0.0)
        rng, size = np.random.default_rng(0), steps * cell.batch
        width = min(cell.tokens, LONGEST)
        self.tokens = [self._record(rng, width) for _ in range(2 * size)]
        self.subsets = [rng.choice(2 * size, size, replace=False).tolist() for _ in range(cell.count)]

    def _record(self, rng: np.random.Generator, width: int) -> Tokens:
        ids = rng.integers(3, self.model.module.config.vocab_size, rng.integers(0.6 * width, width + 1))
        return Tokens(ids=ids.astype(np.int32), target=np.arange(len(ids)) > 0, text="")

    def alone(self) -> Model:
        """A copy of the model with the first adapter."""
        return attach(Model(copy.deepcopy(self.model.module), self.model.tokenizer, self.model.config), self.method, 0)

    def work(self, way: str, folder: Path, told: Callable[..., None]) -> Callable[[], object]:
        """All steps of `way`; `told` is called after each."""
        own = [self.tokens[i] for i in self.subsets[0]]
        if way in ("together", "all blocks"):
            base = Model(copy.deepcopy(self.model.module), self.model.tokenizer, self.model.config)
            adapters = Adapters(base, self.method, range(self.cell.count))
            options = joint.JointOptions(trunk="auto" if way == "together" else "off")
            return lambda: joint.train_joint(
                folder, adapters, self.tokens, self.subsets, self.config, monitor=told, options=options
            )
        tuned = self.alone()
        if way == "Sordino":
            run = Run.create(folder, "bench", "0000")
            return lambda: loop.train(run, tuned, (own, []), self.config, seed=0, monitor=told)
        return lambda: _plain(tuned, own, self.config.batch_size, told)


def _plain(tuned: Model, tokens: list[Tokens], size: int, told: Callable[..., None]) -> None:
    module = tuned.module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    for indices in epoch_batches([len(t) for t in tokens], size, 0, 0):
        width = max(len(tokens[i]) for i in indices)
        ids = torch.full((len(indices), width), 2)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, i in enumerate(indices):
            values = torch.from_numpy(tokens[i].ids.astype(np.int64))
            ids[row, : len(values)], labels[row, : len(values)], mask[row, : len(values)] = values, values, 1
        loss = module(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told()


def times(cell: Cell) -> dict[str, list[float]]:
    """Wall seconds of each step but the first of each way."""
    bench, turns = Bench(cell, STEPS), Turns(list(cell.ways))
    with tempfile.TemporaryDirectory() as folder:
        clocks, threads = {way: Clock(way, turns) for way in cell.ways}, []
        for way, clock in clocks.items():
            work = bench.work(way, Path(folder) / way, lambda *_, clock=clock: clock.step())
            threads.append(threading.Thread(target=clock.run, args=(work,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if turns.failure:
        raise turns.failure
    return {way: [wall for _, wall in clock.steps[1:STEPS]] for way, clock in clocks.items()}


def peak(cell: Cell, way: str) -> float:
    """The peak of this process over two steps, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        Bench(cell, 2).work(way, Path(folder) / "run", lambda *_: None)()
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def grid() -> list[Cell]:
    """All rows, those that say most first."""
    cells = [Cell(model=m, count=k, tokens=t) for k in COUNTS for m in MODELS for t in TOKENS]
    return cells + [Cell(model=m, count=16, tokens=t, upper=True) for m in MODELS for t in (128, 512)]


def run(cell: Cell, out: Path) -> None:
    """Measure one row and keep it, in processes of its own."""
    path = out / f"{cell.name}.json"
    if path.exists():
        return
    result: dict[str, Any] = {"cell": asdict(cell), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result["times"] = _apart(cell, "times")
    result["peaks"] = {way: _apart(cell, way) for way in cell.ways}
    path.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".part").replace(path)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def _apart(cell: Cell, what: str) -> Any:
    command = [sys.executable, __file__, "--measure", json.dumps([asdict(cell), what])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])


def measure(settings: dict[str, Any], what: str) -> None:
    """What `_apart` asks for, as JSON."""
    warnings.filterwarnings("ignore")
    cell = Cell(**settings)
    loop.save_checkpoint = joint.save_checkpoint = lambda *arguments: None  # type: ignore[assignment]
    print(json.dumps(times(cell) if what == "times" else peak(cell, what)))


def _row(cell: Cell, out: Path) -> tuple[str, int | None]:
    path, wide = out / f"{cell.name}.json", 3 if cell.upper else 5
    head = f"| {cell.model} | {cell.count} | {cell.tokens} | "
    if not path.exists():
        return head + " | ".join([NOT_RUN] * wide) + " |", None
    result = json.loads(path.read_text())
    spent = {way: np.array(values) for way, values in result["times"].items()}
    peaks = {way: f"{value / 2**20:.0f} MiB" for way, value in result["peaks"].items()}
    fields = [f"{1000 * np.median(spent['together']):.0f} ms"]
    for way in cell.ways[1:]:
        times_one = 1 if cell.upper else cell.count
        fields.append(f"{np.median(times_one * spent[way] / spent['together']):.2f}×")
    fields.append(", ".join(peaks[way] for way in cell.ways if way != "Sordino"))
    if not cell.upper:
        fields.append(peaks["Sordino"])
    return head + " | ".join(fields) + " |", int(result["threads"])


def tables(out: Path) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | K | tokens a step | a step of all | K steps of PEFT / it | K of Sordino's `train` / it "
        "| peak: together, PEFT | peak: `train` |",
        "|---" * 8 + "|",
    ]
    upper = ["| model | K | tokens a step | a step of all | all blocks / it | peak: lower blocks once, all blocks |"]
    upper.append("|---" * 6 + "|")
    threads = set()
    for cell in grid():
        row, used = _row(cell, out)
        threads |= set() if used is None else {used}
        (upper if cell.upper else lines).append(row)
    said = f"torch {torch.__version__}; threads: {', '.join(map(str, sorted(threads))) or NOT_RUN}; rank 8."
    between = "Adapters in the last block alone:"
    return "\n\n".join((said, "\n".join(lines), between, "\n".join(upper)))


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "shadows")
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--minutes", type=float, default=60, help="begin no cell after so many")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*json.loads(options.measure))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for cell in grid():
        if not options.print and options.only in cell.name and time.monotonic() - started < 60 * options.minutes:
            run(cell, options.out)
    print(tables(options.out))


if __name__ == "__main__":
    main()
