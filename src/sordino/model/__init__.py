"""The model handle: a causal language model with its tokenizer, tuned or as it was before tuning."""

from sordino.model.combined import save_combined
from sordino.model.handle import Model
from sordino.model.loading import (
    BUNDLED,
    load,
    load_tokenizer,
    pick_device,
    resolve,
    tokenizer_digest,
    tokenizer_digest_of,
    weights_digest,
)
from sordino.model.methods import head_of, unwrapped
from sordino.model.tuning import attach, count_parameters, on_adapter, restore, save, weightless

__all__ = [
    "BUNDLED",
    "Model",
    "attach",
    "count_parameters",
    "head_of",
    "load",
    "load_tokenizer",
    "on_adapter",
    "pick_device",
    "resolve",
    "restore",
    "save",
    "save_combined",
    "tokenizer_digest",
    "tokenizer_digest_of",
    "unwrapped",
    "weightless",
    "weights_digest",
]
