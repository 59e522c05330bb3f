"""What tests of generation share: models of more families, and one request answered by plain forward passes."""

from typing import Any

import numpy as np
import torch
import transformers

from sordino.config import ModelConfig
from sordino.generate import Request
from sordino.model import Model

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "gemma", "gemma2", "phi", "bloom", "mamba",
            "windowed")  # fmt: skip
# Whose cache cannot be edited row by row: positions that are no numbers, recurrent states, windows on attention.
STUBBORN = ("bloom", "mamba", "windowed")
_SIZES = {"vocab_size": 2048, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 1}


def family(make_model: Any, tokenizer: Any, name: str) -> Model:
    """A random model of two layers; `windowed` is a Mistral that sees 8 tokens back."""
    if name == "windowed":
        model: Model = make_model("mistral")
        model.module.config.sliding_window = 8
        return model
    if name not in ("phi", "bloom", "mamba"):
        return make_model(name)  # type: ignore[no-any-return]
    torch.manual_seed(0)
    if name == "phi":
        config: Any = transformers.PhiConfig(
            num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
            initializer_range=0.2, **_SIZES,
        )  # fmt: skip
        module: Any = transformers.PhiForCausalLM(config)
    elif name == "bloom":
        module = transformers.BloomForCausalLM(
            transformers.BloomConfig(n_layer=2, n_head=4, initializer_range=0.2, **_SIZES)
        )
    else:
        module = transformers.MambaForCausalLM(
            transformers.MambaConfig(num_hidden_layers=2, state_size=4, initializer_range=0.2, **_SIZES)
        )
    return Model(module=module.eval(), tokenizer=tokenizer, config=ModelConfig(device="cpu"))


def some_requests(count: int, seed: int = 0, **more: Any) -> list[Request]:
    """Random prefixes of 1 to 16 tokens, some of them twice, and lengths of 1 to 8."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        prefix = rng.integers(3, 2048, rng.integers(1, 17)).astype(np.int32)
        if number % 3 == 2:
            prefix = made[-1].prefix
        made.append(Request(prefix=prefix, length=int(rng.integers(1, 9)), seed=number, **more))
    return made


def by_forwards(model: Model, request: Request, seed: int = 0) -> tuple[list[int], list[float]]:
    """The tokens of `request` and their ln p, by a forward pass of everything for each and transformers' filters."""
    ids, uniform = request.prefix.tolist(), np.random.default_rng([seed, request.seed]).random(request.length)
    logs = []
    with model.active() as module:
        for step in range(request.length):
            logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            decoding = request.decodings[min(step, len(request.decodings) - 1)]
            if decoding.temperature == 0:
                edges = np.arange(len(logits)) >= int(logits.argmax())
            else:
                kept = logits[None].double() / decoding.temperature
                if decoding.top_k is not None:
                    kept = transformers.TopKLogitsWarper(decoding.top_k)(None, kept)
                if decoding.top_p < 1:
                    kept = transformers.TopPLogitsWarper(decoding.top_p)(None, kept)
                edges = np.cumsum(kept.softmax(-1)[0].numpy())
            ids.append(int(np.searchsorted(edges, uniform[step] * edges[-1], side="right")))
            logs.append(float(torch.log_softmax(logits.double(), -1)[ids[-1]]))
    return ids[len(request.prefix) :], logs
