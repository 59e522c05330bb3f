"""Neighbours of records by a masked language model: parts of the text hidden, and written anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sordino.audit.inputs.context import Context
from sordino.audit.neighbouring import LIKELY, generator, replaced_places
from sordino.config import ModelConfig
from sordino.deployed import fetch
from sordino.errors import ModelError
from sordino.evidence import digest
from sordino.model import pick_device, weights_digest
from sordino.model.loading import loading
from sordino.records import Record
from sordino.results import InputPlan
from sordino.serialize import TARGETS, Tokens

__all__ = ["MaskedModel", "load_masked", "masked_identity", "rewritten"]

# Tokens in a batch: the head of a masked model makes a row of logits of each.
_BATCH = 2048
# What marks a token that begins a word, or one that goes on with it, depending on the tokenizer.
_BEGINS, _GOES_ON = ("Ġ", "▁"), ("##",)


def masked_identity(path: str) -> str:
    """A digest of the masked language model's weights; fetches it where it is a hub id."""
    folder = fetch(ModelConfig(path=path))
    return digest(weights_digest(folder), str(LIKELY))


@dataclass(frozen=True)
class MaskedModel:
    """A masked language model and its tokenizer."""

    module: Any
    tokenizer: Any

    @property
    def length(self) -> int:
        """How many tokens it reads at once, beside those that frame a text."""
        known = int(getattr(self.module.config, "max_position_embeddings", 512))
        # RoBERTa's kin count positions from behind the padding token's.
        behind = int(self.tokenizer.pad_token_id or 0) + 1 if self.module.config.model_type != "bert" else 0
        return known - behind - len(self.frame[0]) - len(self.frame[1])

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens before and after a text."""
        framed = self.tokenizer("a", return_special_tokens_mask=True)
        text = [i for i, special in enumerate(framed["special_tokens_mask"]) if not special]
        return list(framed["input_ids"][: text[0]]), list(framed["input_ids"][text[-1] + 1 :])

    @cached_property
    def kinds(self) -> np.ndarray:
        """What each token of the vocabulary is: −1 never to be written, else a word, what goes on with it, or a sign.

        A sign in place of a word, or the other way round, would run together with what stands beside it.
        """
        words = [str(w) for w in self.tokenizer.convert_ids_to_tokens(list(range(self.module.config.vocab_size)))]
        written = [self.written(i) for i in range(len(words))]
        place = [1 if w.startswith(_BEGINS) else 2 if w.startswith(_GOES_ON) else 0 for w in words]
        sign = [not any(c.isalnum() for c in text) for text in written]
        kinds = np.array(place) + 3 * np.array(sign, dtype=np.int64)
        bare = [i for i, text in enumerate(written) if not text]
        kinds[[*bare, *(i for i in self.tokenizer.all_special_ids if i < len(kinds))]] = -1
        return kinds

    def written(self, token: int) -> str:
        """The characters of a token."""
        return str(self.tokenizer.decode([token])).strip().removeprefix("##")

    def chances(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Logits (places, V) of `rows` of masked ids and the places that are masked in each."""
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(ids)
        for row, (one, _) in enumerate(rows):
            ids[row, : len(one)], mask[row, : len(one)] = torch.from_numpy(one), 1
        on = self.module.device
        with torch.inference_mode():
            logits = self.module(input_ids=ids.to(on), attention_mask=mask.to(on)).logits
        return [logits[row, places].float().cpu().numpy() for row, (_, places) in enumerate(rows)]


def load_masked(path: str, device: str) -> MaskedModel:
    """The masked language model in a folder, or of a hub id; raises `ModelError` where it is none."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    config = ModelConfig(path=path, device=device)
    folder = str(fetch(config))
    with loading(config, "The masked language model"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        module = AutoModelForMaskedLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    if tokenizer.mask_token_id is None or not tokenizer.is_fast:
        what = "no mask token" if tokenizer.mask_token_id is None else "no character offsets"
        raise ModelError(f"The tokenizer of {path!r} has {what}.", "Give a masked language model, such as BERT's kin.")
    return MaskedModel(module.to(pick_device(device)).eval(), tokenizer)


def rewritten(context: Context) -> list[Tokens]:
    """The neighbours of all examples, `settings.neighbours` of each in a row, as the audited model's tokens."""
    collector, plan = context.collector, context.settings
    assert plan.masked_lm is not None  # asked for only where there is one
    model = load_masked(plan.masked_lm, str(collector.card.config["model"].get("device", "auto")))
    tick = collector.ticker("neighbours written", len(context.examples))
    made = []
    for example in context.examples:
        rng = generator(context, example)
        made += [collector.serializer.encode(r) for r in _neighbours(model, example.record, plan, rng)]
        tick(1)
    return made


def _neighbours(model: MaskedModel, record: Record, plan: InputPlan, rng: np.random.Generator) -> list[Record]:
    found = [list(record.messages) for _ in range(plan.neighbours)]
    for place, message in enumerate(record.messages):
        if message.role in TARGETS and message.content:
            for messages, text in zip(found, rewrite(model, message.content, plan, rng), strict=True):
                messages[place] = replace(message, content=text)
    return [replace(record, messages=tuple(messages)) for messages in found]


def rewrite(model: MaskedModel, text: str, plan: InputPlan, rng: np.random.Generator) -> list[str]:
    """`plan.neighbours` texts, in each of which other parts of `text` are written anew; all else is kept as it is."""
    encoded = model.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids, offsets = np.array(encoded["input_ids"], dtype=np.int64), encoded["offset_mapping"]
    free = np.flatnonzero(model.kinds[ids] >= 0) if len(ids) else ids
    if not len(free):
        return [text] * plan.neighbours
    chosen = [free[replaced_places(len(free), plan.replaced, plan.span, rng)] for _ in range(plan.neighbours)]
    drawn = _drawn(model, ids, chosen, rng)
    return [_spliced(model, text, offsets, *pair) for pair in zip(chosen, drawn, strict=True)]


def _drawn(
    model: MaskedModel, ids: np.ndarray, chosen: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """What is drawn in place of the tokens `chosen` of each neighbour."""
    before, after = model.frame
    out = [ids[places] for places in chosen]
    rows = []
    for number, places in enumerate(chosen):
        hidden = ids.copy()
        hidden[places] = model.tokenizer.mask_token_id
        for start in range(0, len(ids), model.length):
            some = np.flatnonzero((places >= start) & (places < start + model.length))
            if len(some):
                framed = np.array([*before, *hidden[start : start + model.length], *after])
                rows.append((number, some, framed, places[some] - start + len(before)))
    size = max(1, _BATCH // max(len(framed) for _, _, framed, _ in rows))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        logits = model.chances([(framed, where) for _, _, framed, where in batch])
        for (number, some, _, _), chances in zip(batch, logits, strict=True):
            out[number][some] = _one_each(model, ids[chosen[number][some]], chances, rng)
    return out


def _one_each(model: MaskedModel, own: np.ndarray, logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A token of the same kind as each of `own`, but another one, drawn from the likeliest by `logits`."""
    allowed = (model.kinds[None] == model.kinds[own][:, None]) & (np.arange(logits.shape[1]) != own[:, None])
    chances = np.where(allowed, logits, -np.inf)
    count = min(LIKELY, chances.shape[1])
    best = np.argpartition(-chances, count - 1, axis=1)[:, :count]
    noisy = np.take_along_axis(chances, best, axis=1) + rng.gumbel(size=best.shape)
    drawn = np.take_along_axis(best, noisy.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(allowed.any(axis=1), drawn, own)


def _spliced(
    model: MaskedModel, text: str, offsets: Sequence[tuple[int, int]], places: np.ndarray, drawn: np.ndarray
) -> str:
    """`text` with the characters of the tokens at `places` replaced by those of the tokens `drawn`."""
    parts, done = [], 0
    for place, token in zip(places.tolist(), drawn.tolist(), strict=True):
        start, stop = offsets[place]
        # Some tokenizers count the blank before a word as part of it.
        start += len(text[start:stop]) - len(text[start:stop].lstrip())
        parts += [text[done:start], model.written(token)]
        done = stop
    return "".join([*parts, text[done:]])
