"""A private training step against a plain one, Opacus, and one example at a time.

    python benchmarks/clipping.py                run what has no result yet, then print the tables
    python benchmarks/clipping.py --only 10M     a part of the grid
    python benchmarks/clipping.py --print        only print: what was not run says so

plain: one backward pass and fused AdamW. book-keeping, two-backward, one by one: Sordino's three ways, with noise and
the same AdamW. Opacus: with hooks, and with ghost clipping. All see the same B=16 sequences and take their
steps in turns in one process; the tables have medians of ratios of the process's CPU time, step by step. Memory is the
peak of a process of its own above what it had before the first step. What a library cannot run says so. A cell of the
grid is a row of a table; its result is kept as JSON under --out, and what is there is not run again.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sordino.config import MethodConfig, ModelConfig
from sordino.dp import engine
from sordino.dp.engine import Clipper, Clipping
from sordino.dp.noise import Noise
from sordino.model import Model, attach, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = "not run"
B = 16
Step = Callable[[], None]


def _gpt2(width: int, layers: int, *, tied: bool = True) -> nn.Module:
    config = GPT2Config(
        vocab_size=8192, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=512, tie_word_embeddings=tied,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _llama(width: int, layers: int, *, tied: bool = False) -> nn.Module:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 128 or 1, intermediate_size=width * 8 // 3 // 64 * 64, tie_word_embeddings=tied,
        max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _stories() -> nn.Module:
    folder = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared")) / "models" / "stories260k"
    return LlamaForCausalLM.from_pretrained(folder)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "stories260k": _stories,
    "GPT-2 10M tied": lambda: _gpt2(320, 6),
    "GPT-2 10M untied": lambda: _gpt2(320, 6, tied=False),
    "Llama 10M tied": lambda: _llama(256, 6, tied=True),
    "Llama 10M untied": lambda: _llama(256, 6),
    "GPT-2 40M tied": lambda: _gpt2(640, 7),
    "GPT-2 40M untied": lambda: _gpt2(640, 7, tied=False),
    "Llama 40M tied": lambda: _llama(512, 10, tied=True),
    "Llama 40M untied": lambda: _llama(512, 10),
}
# In the order in which they are run.
FIRST = ("stories260k", "GPT-2 10M tied", "Llama 10M untied", "GPT-2 40M tied", "Llama 40M untied")
METHODS = {"LoRA": MethodConfig(kind="lora", rank=8, alpha=16.0), "full": MethodConfig(kind="full")}


def build(name: str, method: str, checkpointing: bool) -> nn.Module:
    """The model of a row, ready to be trained."""
    torch.manual_seed(0)
    config = ModelConfig()
    made = MODELS[name]()
    model = Model(module=made, tokenizer=load_tokenizer(config), config=config)
    module: Any = attach(model, METHODS[method], 0).module.train()
    if checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module


def row_losses(module: nn.Module, ids: Tensor) -> Tensor:
    """The mean NLL of each row."""
    logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(dim=1)


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=True)


def plain(module: nn.Module, ids: Tensor) -> Step:
    """A."""
    optimizer = _optimizer(module)

    def step() -> None:
        row_losses(module, ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _private(module: nn.Module, ids: Tensor, mode: Any) -> Step:
    optimizer, noise = _optimizer(module), Noise(b"benchmark" * 4)
    clipper, size, steps = Clipper(module, Clipping(), mode=mode), 1 if mode == "one-by-one" else len(ids), [0]

    def add(name: str, total: Tensor) -> None:
        noise.add_(total, 1.0, step=steps[0], name=name)

    def step() -> None:
        with clipper:
            for part in ids.split(size):
                clipper.add(lambda part=part: row_losses(module, part), units=len(part))
        clipper.finish(add, len(ids))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps[0] += 1

    return step


def book_keeping(module: nn.Module, ids: Tensor) -> Step:
    """B."""
    return _private(module, ids, "book-keeping")


def two_backward(module: nn.Module, ids: Tensor) -> Step:
    """B, in the mode that saves memory."""
    return _private(module, ids, "two-backward")


def one_by_one(module: nn.Module, ids: Tensor) -> Step:
    """C."""
    return _private(module, ids, "one-by-one")


def opacus_hooks(module: nn.Module, ids: Tensor) -> Step:
    """D."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        _optimizer(wrapped), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=len(ids), loss_reduction="sum"
    )

    def step() -> None:
        row_losses(wrapped, ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def opacus_ghost(module: nn.Module, ids: Tensor) -> Step:
    """E."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(
        module, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        _optimizer(wrapped), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=len(ids), loss_reduction="sum"
    )

    def step() -> None:
        losses = row_losses(wrapped, ids)
        optimizer.zero_grad()
        losses.sum().backward(retain_graph=True)
        factors = wrapped.get_clipping_coef().detach()
        optimizer.zero_grad()
        wrapped.disable_hooks()
        (losses * factors).sum().backward()
        wrapped.enable_hooks()
        optimizer.accumulate()
        optimizer.step()

    return step


WAYS: dict[str, Callable[[nn.Module, Tensor], Step]] = {
    "plain": plain, "book-keeping": book_keeping, "two-backward": two_backward, "one by one": one_by_one,
    "Opacus hooks": opacus_hooks, "Opacus ghost": opacus_ghost,
}  # fmt: skip


def _ids(name: str, length: int) -> Tensor:
    words = 512 if name == "stories260k" else 8192
    return torch.randint(0, words, (B, length), generator=torch.Generator().manual_seed(1))


def ready(cell: "Cell", way: str) -> Step:
    """A step of a model of its own."""
    return WAYS[way](build(cell.model, cell.method, cell.checkpointing), _ids(cell.model, cell.length))


def times(cell: "Cell") -> dict[str, list[float] | str]:
    """CPU seconds of each step of each way, taken in turns; of a way that cannot, why."""
    steps: dict[str, Step] = {}
    found: dict[str, list[float] | str] = {}
    for way in WAYS:
        try:
            step = ready(cell, way)
            step()
            steps[way], found[way] = step, []
        except Exception as error:  # a library that cannot do this row says so in the table
            found[way] = (str(error).splitlines() or [type(error).__name__])[0][:200]
    for _ in range(cell.rounds):
        for way, step in steps.items():
            started = time.process_time()
            step()
            found[way].append(time.process_time() - started)  # type: ignore[union-attr]
    return found


def parts(cell: "Cell") -> dict[str, float]:
    """CPU seconds of what a book-keeping step does beside forward and backward, the least of each over the rounds."""
    spent: dict[str, float] = {}
    best: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - started

        return wrapped

    with (
        patch.object(engine, "combined", timed("forming", engine.combined)),
        patch.object(engine, "squared_norms", timed("norms", engine.squared_norms)),
        patch.object(engine, "contribute", timed("sums", engine.contribute)),
        patch.object(Noise, "add_", timed("noise", Noise.add_)),
    ):
        step = ready(cell, "book-keeping")
        step()
        for _ in range(cell.rounds):
            spent.clear()
            step()
            best = {name: min(best.get(name, value), value) for name, value in spent.items()}
    return best


def peak(cell: "Cell", way: str) -> float:
    """The peak of this process above what it had before the first step, in bytes."""
    step = ready(cell, way)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    for _ in range(2):
        step()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) * 1024 for line in file if line.startswith(key))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a table."""

    model: str
    method: str
    length: int
    checkpointing: bool

    @property
    def rounds(self) -> int:
        """Of steps in turns."""
        return 3 if "40M" in self.model or self.length > 128 else 7

    @property
    def name(self) -> str:
        """Of its file."""
        words = (self.model, self.method, str(self.length), *(["checkpointing"] if self.checkpointing else []))
        return "-".join(words).replace(" ", "-")


def grid() -> list[Cell]:
    """All rows, those that say most first."""
    models = [*FIRST, *(name for name in MODELS if name not in FIRST)]
    cells = [
        Cell(model=model, method=method, length=length, checkpointing=checkpointing)
        for model in models
        for length in (128, 512)
        for method in ("full", "LoRA")
        for checkpointing in (False, True)
    ]
    return sorted(cells, key=lambda c: (c.length, c.model not in FIRST, "40M" in c.model))


def run(cell: Cell, out: Path) -> None:
    """Measure one row and keep it, in processes of its own."""
    path = out / f"{cell.name}.json"
    if path.exists():
        return
    result: dict[str, Any] = {"cell": asdict(cell), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for what in ("times", "parts"):
        result[what] = _apart(cell, what)
    ran = [way for way, found in result["times"].items() if isinstance(found, list)]
    result["peaks"] = {way: _apart(cell, way) for way in ran}
    path.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".part").replace(path)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def _apart(cell: Cell, what: str) -> Any:
    command = [sys.executable, __file__, "--measure", json.dumps([asdict(cell), what])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def measure(settings: dict[str, Any], what: str) -> None:
    """What `_apart` asks for, as JSON."""
    warnings.filterwarnings("ignore")
    cell = Cell(**settings)
    print(json.dumps({"times": times, "parts": parts}[what](cell) if what in ("times", "parts") else peak(cell, what)))


def _field(result: dict[str, Any], way: str) -> str:
    spent, peaks = result["times"], result["peaks"]
    if isinstance(spent[way], str):
        return "cannot"
    if way == "plain":
        return f"{np.median(spent[way]):.3g} s, {peaks[way] / 2**20:.0f} MiB"
    ratio = np.median(np.array(spent[way]) / np.array(spent["plain"]))
    return f"{ratio:.2f}×, {peaks[way] / peaks['plain']:.2f}×"


def tables(out: Path) -> str:
    """The rows as Markdown, and where the time of a book-keeping step goes."""
    lines = [f"| model | T | method | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 3) + "|"]
    costs = ["| model | T | method | forming | norms | sums | noise | plain step |", "|---" * 8 + "|"]
    threads, why = set(), {}
    for cell in grid():
        method = f"{cell.method}, checkpointing" if cell.checkpointing else cell.method
        head, path = f"| {cell.model} | {cell.length} | {method}", out / f"{cell.name}.json"
        if not path.exists():
            lines.append(f"{head} | {' | '.join([NOT_RUN] * len(WAYS))} |")
            continue
        result = json.loads(path.read_text())
        threads.add(result["threads"])
        why |= {f"{way}: {said}": None for way, said in result["times"].items() if isinstance(said, str)}
        lines.append(f"{head} | {' | '.join(_field(result, way) for way in WAYS)} |")
        if cell.method == "full" and not cell.checkpointing:
            plain = min(result["times"]["plain"])
            shares = (result["parts"].get(name, 0.0) / plain for name in ("forming", "norms", "sums", "noise"))
            costs.append(f"{head} | {' | '.join(f'{share:.1%}' for share in shares)} | {plain:.3g} s |")
    said = f"B = {B}; threads: {', '.join(map(str, sorted(threads))) or NOT_RUN}; time, peak memory."
    note = (
        "Of a plain step's CPU time; forming and sums together take the place of the weights' gradients in a plain "
        "backward pass, norms and noise come on top:"
    )
    cannot = "\n".join(["What cannot, and why:", "", *(f"- {text}" for text in why)]) if why else ""
    return "\n\n".join(part for part in (said, "\n".join(lines), note, "\n".join(costs), cannot) if part)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "clipping")
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--minutes", type=float, default=80, help="begin no cell after so many")
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
