"""A private training step against a plain one, Opacus, and one example at a time.

    python benchmarks/clipping.py           prints a table; --quick for the small models only

A: the plain loop: one backward pass and fused AdamW.
B: Sordino: book-keeping, noise, the same AdamW.
C: one example at a time (plain backward passes, clipped and summed), noise, the same AdamW.
D, E: Opacus with hooks, and with ghost clipping.
All see the same B=16 sequences of random tokens and take their steps in turns in one process; the table has medians of
ratios of the process's CPU time, step by step. Memory is the peak of a process of its own above what it had before the
first step. What a library cannot run says so.
"""

import argparse
import copy
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sordino.config import MethodConfig, ModelConfig
from sordino.dp.engine import Clipper, Clipping
from sordino.dp.noise import Noise
from sordino.model import Model, attach, load_tokenizer

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


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2 10M tied": lambda: _gpt2(320, 6),
    "Llama 10M untied": lambda: _llama(256, 6),
    "GPT-2 40M tied": lambda: _gpt2(640, 7),
    "Llama 40M untied": lambda: _llama(512, 10),
}
METHODS = {"LoRA": MethodConfig(kind="lora", rank=8, alpha=16.0), "full": MethodConfig(kind="full")}


def build(name: str, method: str, checkpointing: bool) -> nn.Module:
    """The model of a row, ready to be trained."""
    torch.manual_seed(0)
    config = ModelConfig()
    model = Model(module=MODELS[name](), tokenizer=load_tokenizer(config), config=config)
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


def _ids(length: int) -> Tensor:
    return torch.randint(0, 8192, (B, length), generator=torch.Generator().manual_seed(1))


def time_row(name: str, method: str, length: int, checkpointing: bool, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step of each way that runs, taken in turns."""
    base, ids = build(name, method, checkpointing), _ids(length)
    steps: dict[str, Step] = {}
    for way, make in WAYS.items():
        try:
            step = make(copy.deepcopy(base), ids)
            step()
            steps[way] = step
        except Exception as error:  # a library that cannot do this row says so in the table
            print(f"{name} {method}: {way} fails: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    found: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            started = time.process_time()
            step()
            found[way].append(time.process_time() - started)
    return found


def peak(name: str, method: str, length: int, checkpointing: bool, way: str) -> float:
    """The peak of this process above what it had before the first step, in bytes."""
    module, ids = build(name, method, checkpointing), _ids(length)
    step = WAYS[way](module, ids)
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


def _peak_apart(arguments: tuple[Any, ...]) -> float | None:
    command = [sys.executable, __file__, "--peak", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--only", default="", help="a part of a model's name")
    parser.add_argument("--quick", action="store_true", help="the small models only, 2 rounds")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.peak:
        print(peak(*json.loads(arguments.peak)))
        return
    rounds = 2 if arguments.quick else arguments.rounds
    print(f"B = {B}, T = {arguments.length}, {torch.get_num_threads()} threads, {rounds} rounds of interleaved steps\n")
    print(f"| model | method | {' | '.join(f'{way}: time, memory' for way in WAYS)} |")
    print("|---|---|" + "---|" * len(WAYS))
    for name in MODELS:
        if arguments.only not in name or (arguments.quick and "40M" in name):
            continue
        for method in METHODS:
            for checkpointing in (False, True):
                row = (name, method, arguments.length, checkpointing)
                spent = time_row(*row, rounds)
                memory = {way: _peak_apart((*row, way)) for way in spent}
                cells = []
                for way in WAYS:
                    if way not in spent:
                        cells.append("cannot")
                    elif way == "plain":
                        cells.append(f"{np.median(spent[way]):.2f} s, {(memory[way] or 0) / 2**20:.0f} MiB")
                    else:
                        ratio = np.median(np.array(spent[way]) / np.array(spent["plain"]))
                        more = memory[way] and memory["plain"] and f"{memory[way] / memory['plain']:.2f}×"  # type: ignore[operator]
                        cells.append(f"{ratio:.2f}×, {more or '?'}")
                label = f"{method}{' + checkpointing' if checkpointing else ''}"
                print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
