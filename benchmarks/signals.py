"""All membership scores together, against the plain passes they cannot avoid, and against one forward each.

    python benchmarks/signals.py            prints a table; --quick for a short one

A: Sordino's fused pass, three times (tuned, base, lower-cased), then every membership score.
B: the plain batched passes: the same batches, `model(...).logits` computed in all and thrown away.
C: one forward per attack and record, as common benchmarks do it, with each score from its own logits.
Rounds are interleaved (A B A B …); the table gives the median of the ratios A/B of each round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sordino.attacks.base import discover
from sordino.attacks.complexity import compressed_sizes
from sordino.collect import _BATCH_TOKENS, _batches, _pad, _windows, collect
from sordino.config import ModelConfig
from sordino.model import Model, load_tokenizer
from sordino.serialize import Tokens
from sordino.signals import Signals


def _llama(vocabulary: int, width: int, layers: int) -> torch.nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(4, width // 64),
            intermediate_size=int(width * 2.75),
            max_position_embeddings=512,
        )
    )


def _gpt2(layers: int) -> torch.nn.Module:
    # The vocabulary and width of GPT-2; fewer layers make the head weigh more, not less.
    return GPT2LMHeadModel(GPT2Config(n_layer=layers, bos_token_id=1, eos_token_id=2))


SETTINGS: dict[str, tuple[Callable[[], torch.nn.Module], int, int]] = {
    "V=2,048 Llama 1M": (lambda: _llama(2048, 128, 4), 256, 128),
    "V=4,096 Llama 4M": (lambda: _llama(4096, 256, 4), 192, 128),
    "V=50,257 GPT-2 124M": (lambda: _gpt2(12), 16, 128),
    "V=50,257 Llama 26M": (lambda: _llama(50257, 256, 4), 48, 128),
}


def _tokens(count: int, length: int, vocabulary: int, rng: np.random.Generator) -> list[Tokens]:
    out = []
    for size in rng.integers(length // 2, length + 1, count):
        target = np.ones(size, dtype=bool)
        target[0] = False
        ids = rng.integers(3, vocabulary, size).astype(np.int32)
        out.append(Tokens(ids=ids, target=target, text=" ".join(map(str, ids))))
    return out


def fused(models: Sequence[Model], views: Sequence[list[Tokens]]) -> dict[str, np.ndarray]:
    """A: three fused passes and every score."""
    tuned, base, lower = (collect(m, t) for m, t in zip(models, views, strict=True))
    names, texts = [str(i) for i in range(len(views[0]))], [t.text for t in views[0]]
    sizes = {"compressed": compressed_sizes(texts)}
    plain = Signals(record_ids=names, texts=texts, statistics=base, measured=sizes)
    signals = Signals(
        record_ids=names,
        texts=texts,
        statistics=tuned,
        base=plain,
        views={"lowercase": Signals(record_ids=names, texts=texts, statistics=lower)},
        measured=sizes,
    )
    # Those that read nothing but statistics and texts.
    own = {n: a for n, a in discover("membership").items() if a.inputs <= {"compressed"} and "samples" not in a.needs}
    return {name: attack(signals) for name, attack in own.items() if "causal-lm" in attack.tasks}


def plain(models: Sequence[Model], views: Sequence[list[Tokens]]) -> None:
    """B: the passes that nobody can avoid, on the same batches."""
    for model, tokens in zip(models, views, strict=True):
        windows = list(_windows(tokens, model.context))
        with model.active() as module:
            for batch in _batches(windows, _BATCH_TOKENS["cpu"]):
                ids, mask, _ = _pad([windows[i] for i in batch], tokens, 0)
                module(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False).logits  # noqa: B018


def apart(models: Sequence[Model], views: Sequence[list[Tokens]]) -> None:
    """C: one forward per attack and record, each score's pass its own."""
    tuned, base, lower = models
    needs = {
        "zlib": [tuned],
        "loss": [tuned],
        "min_k": [tuned],
        "min_k_plus_plus": [tuned],
        "lowercase": [tuned, lower],
    }
    needs |= {name: [tuned, base] for name in ("reference", "reference_ratio", "error_zone", "windows")}
    for passes in needs.values():
        for number, model in enumerate(passes):
            with model.active() as module:
                for item in views[number]:
                    ids = torch.from_numpy(item.ids.astype(np.int64))[None]
                    torch.log_softmax(module(input_ids=ids, use_cache=False).logits.float(), dim=-1)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name: str, rounds: int, *, against_apart: bool) -> tuple[float, float, float | None, int]:
    """Median seconds of A, median ratio A/B, median ratio C/A (or None), and tokens in one pass."""
    make, count, length = SETTINGS[name]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = load_tokenizer(ModelConfig())
    models = [Model(module=make(), tokenizer=tokenizer, config=ModelConfig()) for _ in range(1)] * 3
    vocabulary = models[0].module.config.vocab_size
    views = [_tokens(count, length, vocabulary, rng)] * 3
    fused(models, views), plain(models, views)
    pairs = [(_time(lambda: fused(models, views)), _time(lambda: plain(models, views))) for _ in range(rounds)]
    slow = None
    if against_apart:
        few = [v[: max(4, count // 8)] for v in views]
        slow = statistics.median(
            _time(lambda: apart(models, few)) / _time(lambda: fused(models, few)) for _ in range(max(3, rounds // 3))
        )
    seconds = statistics.median(a for a, _ in pairs)
    return seconds, statistics.median(a / b for a, b in pairs), slow, sum(len(t) for t in views[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="a part of a setting's name")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} interleaved rounds, medians\n")
    print("| setting | tokens a pass | seconds | fused and 9 scores / plain passes | one by one / fused |")
    print("|---|---|---|---|---|")
    for name in SETTINGS:
        if arguments.only and arguments.only not in name:
            continue
        seconds, ratio, slow, tokens = measure(name, rounds, against_apart=not arguments.quick)
        last = "not run" if slow is None else f"{slow:.1f}×"
        print(f"| {name} | {tokens:,} | {seconds:.2f} | {ratio:.2f}× | {last} |", flush=True)


if __name__ == "__main__":
    main()
