"""Make the built-in tokenizer and base model (`src/sordino/bundled/tiny`) from the public corpus.

    python scripts/make_base_model.py

A byte-level BPE of 2,048 tokens and a Llama of one million parameters, trained on the CPU with AdamW and a
cosine schedule. No text is seen twice. The held-out texts and the private ones that are measured at the end
come from other seeds than the training texts.
"""

import argparse
import hashlib
import itertools
import math
import random
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sordino.bundled import TINY
from sordino.bundled.corpus import private_corpus, public_corpus

TRAIN_SEED, HELD_OUT_SEED, PRIVATE_SEED = 1, 2, 3
VOCABULARY, CONTEXT = 2048, 512
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors")
FILES = (*MODEL_FILES, "tokenizer.json", "tokenizer_config.json")

CARD = """# The built-in base model

A Llama of 1.0 million parameters (4 layers of width 128, context 512, tied embeddings, float32) and a
byte-level BPE tokenizer of 2,048 tokens in which every digit is a token of its own. It has read nothing but
invented support tickets, so that everything it knows of a private corpus it was taught by fine-tuning.
It is for demonstrations and tests, and for nothing else.

| what | value |
|---|---|
| made by | `python scripts/make_base_model.py` |
| data | `public_corpus({train_seed})`, {texts:,} texts, {tokens:,} tokens, none seen twice |
| training | {steps}, AdamW, peak rate {arguments.rate:g}, cosine, seed {arguments.seed} |
| took | {minutes:.0f} minutes on {arguments.threads} CPU threads of a shared machine |
| versions | {versions} |
| perplexity per token, fresh public texts (`public_corpus({held_out_seed}, 2000)`) | {public:.3f} |
| perplexity per token, private texts (`private_corpus({private_seed}, 500)`) | {private:.3f} |
| licence | Apache-2.0; made for this project from its own grammar, with no third-party text or weights |

The tokenizer adds no special tokens by itself; a training text is `<s> text </s>`, padded at the right with
`<pad>`. Perplexity counts `</s>` and not `<s>`. Another processor or library version gives other weights of
the same quality.

| file | SHA-256 |
|---|---|
{table}
"""


def main() -> None:
    """Train the tokenizer and the model, measure them, and write the folder."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer = make_tokenizer(arguments.tokenizer_texts)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    tokens, seconds = train(model, tokenizer, arguments)
    figures = {
        "public": perplexity(model, tokenizer, list(public_corpus(HELD_OUT_SEED, 2000))),
        "private": perplexity(model, tokenizer, [ticket.text for ticket in private_corpus(PRIVATE_SEED, 500)]),
    }
    print(f"perplexity per token: {figures}")
    save(model, tokenizer, arguments.out)
    readme = describe(arguments, tokens, seconds, figures)
    (arguments.out / "README.md").write_text(readme, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the defaults are what the bundled files were made with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TINY, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batch order")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16, help="texts a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokenizer-texts", type=int, default=20_000)
    return parser.parse_args()


def make_tokenizer(texts: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own; it adds no special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(public_corpus(TRAIN_SEED, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build an untrained Llama of about one million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield (size, length) batches of `<s> text </s>`, padded, of texts of like length, in random order."""
    rng = random.Random(seed)
    while block := list(itertools.islice(texts, size * 50)):
        rows = sorted(tokenizer(block).input_ids, key=len)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        yield from (padded(tokenizer, group) for group in groups)


def padded(tokenizer: PreTrainedTokenizerFast, rows: list[list[int]]) -> torch.Tensor:
    """Frame rows of token ids by `<s>` and `</s>` and pad them at the right."""
    ids = torch.full((len(rows), max(map(len, rows)) + 2), tokenizer.pad_token_id)
    for row, tokens in zip(ids, rows, strict=True):
        framed = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
        row[: len(framed)] = torch.tensor(framed)
    return ids


def token_losses(model: LlamaForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy of the tokens after `<s>`, in nats, and their number."""
    # Padding is at the right, where the causal mask already hides it from every real token.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    labels = ids[:, 1:]
    pad = model.config.pad_token_id
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=pad, reduction="sum")
    return total, int((labels != pad).sum())


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: argparse.Namespace
) -> tuple[int, float]:
    """Train for one pass over fresh texts; return the tokens seen and the seconds taken."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = min(100, arguments.steps // 10)
    texts = public_corpus(TRAIN_SEED, arguments.steps * arguments.batch)
    seen, started, running = 0, time.monotonic(), 0.0
    model.train()
    for step, ids in enumerate(batches(tokenizer, iter(texts), arguments.batch, arguments.seed)):
        progress = (step - warmup) / (arguments.steps - warmup)
        scale = (step + 1) / warmup if step < warmup else 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * scale
        total, count = token_losses(model, ids)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += count
        loss = total.item() / count
        running = loss if step == 0 else 0.98 * running + 0.02 * loss
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1:6,}  loss {running:.3f}  {seen / seconds:,.0f} tokens/s  {seconds:,.0f} s",
                flush=True,
            )
    return seen, time.monotonic() - started


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Return exp of the mean loss per token of texts, `</s>` included and `<s>` not."""
    model.eval()
    losses = [token_losses(model, ids) for ids in batches(tokenizer, iter(texts), 64, 0)]
    return math.exp(sum(float(total) for total, _ in losses) / sum(count for _, count in losses))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, configuration and tokenizer in the formats of the ecosystem."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    for stray in (path for path in folder.iterdir() if path.name not in (*FILES, "README.md")):
        raise SystemExit(f"Unexpected file {stray.name} in the bundle: add it to FILES or remove it.")


def describe(arguments: argparse.Namespace, tokens: int, seconds: float, figures: dict[str, float]) -> str:
    """Write the model card of the folder."""
    digests = (hashlib.sha256((arguments.out / name).read_bytes()).hexdigest() for name in FILES)
    table = "\n".join(f"| {name} | `{digest}` |" for name, digest in zip(FILES, digests, strict=True))
    return CARD.format(
        arguments=arguments,
        train_seed=TRAIN_SEED,
        held_out_seed=HELD_OUT_SEED,
        private_seed=PRIVATE_SEED,
        steps=f"{arguments.steps:,} steps of {arguments.batch} texts",
        tokens=tokens,
        texts=arguments.steps * arguments.batch,
        minutes=seconds / 60,
        table=table,
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "faker")),
        **figures,
    )


if __name__ == "__main__":
    main()
