"""Text classification: a model's trunk under a new head, and class logits that padding cannot change.

The head of a trunk that has none is drawn from the run's seed alone, so that the untuned model, the
control of every audit, can be had again and recognised by its digest.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sordino.config import ModelConfig
from sordino.errors import ModelError

__all__ = ["Classes", "class_logits", "head_names", "load_classifier", "prepare_shape", "unreported", "usable_context"]


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a classifier decides between: `labels` in the order of its logits; `seed` draws a new head."""

    labels: tuple[str, ...]
    seed: int


def prepare_shape(shape: Any, classes: Classes) -> Any:
    """A transformers configuration made that of a classifier of `classes`; raises `ModelError`."""
    if getattr(shape, "is_encoder_decoder", False):
        message = f"The model is an encoder-decoder ({shape.model_type}), which is not supported as a classifier."
        raise ModelError(message, "Use an encoder (BERT and its kin) or a causal language model.")
    shape.id2label = dict(enumerate(classes.labels))
    shape.label2id = {label: i for i, label in enumerate(classes.labels)}
    shape.problem_type = "single_label_classification"
    return shape


def load_classifier(config: ModelConfig, source: str, classes: Classes, *, pad: int | None, tuned: bool) -> nn.Module:
    """The classifier in `source` (a folder or hub id), safetensors only; `pad` is its tokenizer's.

    A head for exactly these labels is kept. Otherwise, unless the weights are `tuned` ones that must be
    whole, it is drawn anew: normal with the model's `initializer_range`, biases 0, from `classes.seed`.
    Raises `ModelError` where the trunk itself is incomplete.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    options = {"revision": config.revision, "trust_remote_code": config.remote_code}
    shape = AutoConfig.from_pretrained(source, **options)
    known = dict(getattr(shape, "label2id", None) or {})
    shape = prepare_shape(shape, classes)
    module, report = AutoModelForSequenceClassification.from_pretrained(
        source,
        config=shape,
        use_safetensors=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if known != shape.label2id:
        absent |= {n for n, _ in module.named_parameters() if n.split(".")[0] in head_names(module)}
    if tuned and absent:
        message = f"{source} lacks weights of the classifier it should hold, such as {min(absent)}."
        raise ModelError(message, "Restore the folder.")
    _refuse_bare(module, absent, source)
    draw_anew(module, absent, classes.seed)
    for holder in (module.config, module.config.get_text_config()):
        holder.pad_token_id = pad
    _check_padding(module, pad or 0, source)
    return module  # type: ignore[no-any-return]


@contextmanager
def unreported() -> Iterator[None]:
    """Without what transformers says below an error: a head is meant to be new, a table of it would only alarm."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_padding(module: nn.Module, pad: int, source: str) -> None:
    # Also with a text that ends in the padding token: see `class_logits`.
    text = [*(i for i in range(3) if i != pad), pad][-3:]
    with torch.inference_mode():
        alone = class_logits(module, torch.tensor([text]), torch.ones(1, 3, dtype=torch.long))
        mask = torch.tensor([[1, 1, 1, 0, 0]])
        padded = class_logits(module, torch.tensor([[*text, pad, pad]]), mask)
    if not torch.allclose(alone, padded, rtol=1e-4, atol=1e-4):
        kind = module.config.model_type  # type: ignore[union-attr]
        message = f"What {source} ({kind}) says of a text depends on the padding behind it."
        raise ModelError(message, "Use another architecture: BERT and its kin, GPT-2, Llama and theirs work.")


def _refuse_bare(module: nn.Module, absent: set[str], source: str) -> None:
    # A head is meant to be new, and some checkpoints lack the pooling layer below it; a trunk is not.
    new = ("pooler", *head_names(module))
    lost = sorted(n for n in absent if not any(part in new for part in n.split(".")))
    if lost:
        message = f"{source} lacks {len(lost)} weights of the model, such as {lost[0]}."
        raise ModelError(message, "Give a folder with all of its weights.")


def draw_anew(module: nn.Module, names: Iterable[str], seed: int) -> None:
    """Draw the named parameters from `seed`, in the order of their names."""
    spread = getattr(module.config, "initializer_range", None) or 0.02
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in sorted(set(names) & set(parameters)):
            values = parameters[name]
            if values.dim() > 1:
                values.copy_(torch.randn(values.shape, generator=generator) * spread)
            else:
                # One-dimensional: a bias, or the scale of a normalisation.
                values.fill_(0.0 if name.endswith("bias") else 1.0)


def head_names(module: Any) -> list[str]:
    """The modules above the trunk, such as `score` or `classifier`: what is always trained and saved."""
    above = [(name, child) for name, child in module.named_children() if name != module.base_model_prefix]
    return [name for name, child in above if next(child.parameters(), None) is not None]


def usable_context(module: nn.Module, length: int) -> int:
    """How many of a model's `length` positions a text may take: RoBERTa counts them from its padding on."""
    for name, inner in module.named_modules():
        if name.endswith("position_embeddings") and getattr(inner, "padding_idx", None) is not None:
            return length - int(inner.padding_idx) - 1
    return length


def class_logits(module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Class logits (B, C) of right-padded `input_ids` (B, T) under `attention_mask` (B, T).

    A decoder is read at each record's last token by the mask. Its own forward finds that token by what
    is not the padding token, and so misreads texts that end in one: where padding is the end-of-text or
    the unknown token, as it often is. An encoder reads its first token, which padding does not move; of a
    tuned prompt, that is the first virtual one, as PEFT reads it too.
    """
    bare = module.get_base_model() if hasattr(module, "get_base_model") else module
    # Decoders call their head `score` and apply it to every position; encoders apply theirs to one.
    head = getattr(bare, "score", None)
    if head is None:
        logits: Tensor = module(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits
    kept: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, args, output: kept.append(output))
    # Where virtual tokens make embeddings of the text, its own forward warns that it finds no padding.
    virtual = hasattr(module, "peft_config") and module.active_peft_config.is_prompt_learning
    try:
        with unreported() if virtual else nullcontext():
            module(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        handle.remove()
    scores = kept[0]
    # Tokens that a prompt-tuning method put before the text move its end.
    last = scores.shape[1] - input_ids.shape[1] + attention_mask.sum(dim=1) - 1
    return scores[torch.arange(len(scores), device=scores.device), last]
