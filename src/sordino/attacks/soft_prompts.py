"""Soft prompts: embeddings before a prompt, trained on known pairs with the model frozen, that make it tell the others.

It imports torch: attacks import it inside their functions, so that listing them does not.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from sordino.attacks.frozen import frozen
from sordino.errors import AuditError, ConfigError, ModelError
from sordino.model import Model, unwrapped

__all__ = ["Pair", "SoftPrompt", "continue_after", "logprobs_after", "shuffled", "suffix_loss", "train_soft_prompt"]

Pair = tuple[np.ndarray, np.ndarray]
"""Token ids of a prefix, which may be empty, and of the suffix (one or more) that is to come after it."""

Tick = Callable[[int], None]
# Logits of a batch, in bytes, and its rows at most.
_LOGITS, _ROWS = 128 << 20, 256


@dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """`vectors` (tokens, width of the embeddings) stand before the first token; `losses` (steps) are of training."""

    vectors: Float32[np.ndarray, "tokens width"]
    losses: tuple[float, ...] = ()

    def __len__(self) -> int:
        """The number of positions that it takes."""
        return len(self.vectors)


def train_soft_prompt(  # noqa: PLR0913 - how it is trained, each part of it
    model: Model,
    pairs: Sequence[Pair],
    *,
    tokens: int = 20,
    steps: int = 80,
    learning_rate: float = 1e-2,
    batch_size: int = 16,
    smoothing: float = 0.0,
    smoothing_tokens: int = 5,
    seed: int = 0,
    tick: Tick = lambda done: None,
) -> SoftPrompt:
    """A soft prompt of `tokens` embeddings under which `model`, frozen, gives the suffix of each pair after its prefix.

    `steps` of Adam at a rate that falls linearly from `learning_rate` to 0, over batches of `batch_size` pairs in
    shuffled order; the embeddings begin as those of tokens drawn from the pairs. The loss is `suffix_loss`. Where the
    model is untuned (`model.tuned` False) its tuning is off meanwhile. Nothing of the model changes. `tick` is told of
    every step. All that is drawn depends on `seed`.

    Soft prompts as attacks: ProPILE, Kim et al. 2023, arXiv:2307.01881; with smoothing: Ethicist, Zhang et al. 2023,
    arXiv:2307.04401, whose published code has 100 tokens, a rate of 1e-3, α = 0.7 and 5 tokens.
    Raises `ConfigError` for settings or pairs that cannot be trained on, `ModelError` where the model takes no
    embeddings or has no gradients, and `AuditError` where the loss is not finite.
    """
    _check_settings(tokens, steps, learning_rate, batch_size)
    _check_smoothing(smoothing, smoothing_tokens)
    _check_pairs(model, pairs, tokens)
    rng = np.random.default_rng([seed, 41])
    order = shuffled(len(pairs), min(batch_size, len(pairs)), rng)
    known = np.concatenate([ids for pair in pairs for ids in pair])
    losses = []
    with frozen(model) as module, torch.enable_grad():
        embed = _embeddings(module)
        start = embed(_on(rng.choice(known, size=tokens), model)).detach().float()
        vectors = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([vectors], lr=learning_rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            chosen = [pairs[i] for i in next(order)]
            loss = suffix_loss(_suffix_losses(model, module, vectors, chosen), smoothing, smoothing_tokens)
            if not loss.requires_grad:
                message = f"The numbers of {type(unwrapped(module)).__name__}'s weights have no gradients."
                raise ModelError(message, "Train soft prompts on the model as it was before it was quantised.")
            if not torch.isfinite(loss):
                message = f"The loss of the soft prompt is {float(loss.detach())} at step {step + 1} of {steps}."
                raise AuditError(
                    message, f"Lower the learning rate, which is {learning_rate:g}, or look at the weights."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            tick(1)
    return SoftPrompt(vectors=vectors.detach().float().cpu().numpy(), losses=tuple(losses))


def suffix_loss(each: Sequence[Tensor], smoothing: float = 0.0, smoothing_tokens: int = 5) -> Tensor:
    """The mean over suffixes of the mean loss of their tokens, and α = `smoothing` times that of the highest N.

    `each` holds the losses (T), in nats, of one suffix's tokens. N = `smoothing_tokens`, or all of a shorter suffix.
    The smoothing loss of Ethicist (Zhang et al. 2023, arXiv:2307.04401, as in its published code).
    """
    whole = torch.stack([losses.mean() for losses in each])
    if not smoothing:
        return whole.mean()
    highest = torch.stack([losses.topk(min(smoothing_tokens, len(losses))).values.mean() for losses in each])
    return whole.mean() + smoothing * highest.mean()


def logprobs_after(
    model: Model,
    soft: SoftPrompt,
    prefixes: Sequence[np.ndarray],
    suffixes: Sequence[np.ndarray],
    *,
    tick: Tick = lambda done: None,
) -> Float64[np.ndarray, " rows"]:
    """The summed ln p, in nats, of each suffix after `soft` and its prefix; `tick` is told how many are done.

    What suffixes with the same prefix share is read once, where the model's own cache gives the same.
    Raises as `train_soft_prompt` does for pairs that cannot be read.
    """
    if len(prefixes) != len(suffixes):
        raise ConfigError(f"{len(suffixes)} suffixes were given after {len(prefixes)} prefixes.", "Give one of each.")
    pairs = list(zip(prefixes, suffixes, strict=True))
    found = np.zeros(len(pairs))
    if not pairs:
        return found
    _check_pairs(model, pairs, len(soft))
    groups: dict[bytes, list[int]] = {}
    for number, prefix in enumerate(prefixes):
        groups.setdefault(prefix.astype(np.int64).tobytes(), []).append(number)
    # The longest first: a window on attention, say, shows as another likelihood there.
    ordered = sorted(groups.values(), key=lambda numbers: -max(sum(map(len, pairs[i])) for i in numbers))
    shares, tried = True, False
    with model.active() as module:
        vectors = torch.from_numpy(soft.vectors).to(model.device)
        for numbers in ordered:
            mine = [pairs[i] for i in numbers]
            cached = _shared(model, module, vectors, mine) if shares and len(mine) > 1 else None
            if cached is not None and not tried:
                shares, tried = _agrees(model, module, vectors, mine, cached), True
            shares = shares and (cached is not None or len(mine) == 1)
            found[numbers] = cached if cached is not None and shares else _whole(model, module, vectors, mine)
            tick(len(numbers))
    return found


def continue_after(
    model: Model,
    soft: SoftPrompt,
    prefixes: Sequence[np.ndarray],
    lengths: Sequence[int],
    *,
    tick: Tick = lambda done: None,
) -> list[np.ndarray]:
    """The `lengths[i]` tokens that greedy decoding puts after `soft` and `prefixes[i]`; the end token does not stop it.

    Prefixes of one length are read together, so none is padded. Raises as `train_soft_prompt` does for prefixes that
    cannot be read.
    """
    if len(prefixes) != len(lengths):
        raise ConfigError(f"{len(lengths)} lengths were given for {len(prefixes)} prefixes.", "Give one of each.")
    if any(length < 0 for length in lengths):
        raise ConfigError(f"A continuation of {min(lengths)} tokens was asked for.", "Lengths are 0 or more.")
    _check_inputs(model)
    room = [len(prefix) + length for prefix, length in zip(prefixes, lengths, strict=True)]
    _check_room(model, max(room, default=0), len(soft))
    alike: dict[int, list[int]] = {}
    for number, prefix in enumerate(prefixes):
        alike.setdefault(len(prefix), []).append(number)
    made: list[np.ndarray] = [np.zeros(0, dtype=np.int32)] * len(prefixes)
    with model.active() as module:
        vectors = torch.from_numpy(soft.vectors).to(model.device)
        for numbers in alike.values():
            for start in range(0, len(numbers), _rows(module, 1)):
                batch = numbers[start : start + _rows(module, 1)]
                rows = _decoded(model, module, vectors, [prefixes[i] for i in batch], max(lengths[i] for i in batch))
                for number, row in zip(batch, rows, strict=True):
                    made[number] = row[: lengths[number]]
                tick(len(batch))
    return made


def _check_settings(tokens: int, steps: int, learning_rate: float, batch_size: int) -> None:
    rules = (("tokens", tokens), ("steps", steps), ("batch_size", batch_size))
    for name, value in rules:
        if value < 1:
            raise ConfigError(f"{name} of a soft prompt is {value}.", "Allowed: at least 1.")
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning_rate of a soft prompt is {learning_rate}.", "Allowed: above 0.")


def _check_smoothing(smoothing: float, smoothing_tokens: int) -> None:
    if not 0 <= smoothing < float("inf"):
        raise ConfigError(f"smoothing of a soft prompt is {smoothing}.", "Allowed: 0 (none) or more.")
    if smoothing_tokens < 1:
        raise ConfigError(f"smoothing_tokens of a soft prompt is {smoothing_tokens}.", "Allowed: at least 1.")


def _check_inputs(model: Model) -> None:
    inner = unwrapped(model.module)
    if model.classes is not None or "inputs_embeds" not in signature(inner.forward).parameters:
        what = "is a classifier" if model.classes is not None else "takes no embeddings (inputs_embeds)"
        message = f"{type(inner).__name__} {what}, so nothing soft can stand before a prompt."
        raise ModelError(message, "Leave out attacks by soft prompts.")


def _check_room(model: Model, longest: int, tokens: int) -> None:
    if longest + tokens > model.context:
        message = f"A soft prompt of {tokens} tokens and {longest} more do not fit into {model.context}."
        raise ConfigError(message, "Shorten the soft prompt or what stands after it.")


def _check_pairs(model: Model, pairs: Sequence[Pair], tokens: int) -> None:
    _check_inputs(model)
    if not pairs:
        raise ConfigError("There are no pairs of a prefix and a suffix.", "Give at least one.")
    empty = sum(not len(suffix) for _, suffix in pairs)
    if empty:
        raise ConfigError(f"{empty} of {len(pairs)} suffixes are empty.", "Give suffixes of one token or more.")
    _check_room(model, max(len(prefix) + len(suffix) for prefix, suffix in pairs), tokens)


def shuffled(count: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches without end, of `size` each: all of `count` come before one comes again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(count).tolist()
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


def _embeddings(module: Any) -> Any:
    return unwrapped(module).get_input_embeddings()


def _on(ids: np.ndarray, model: Model) -> Tensor:
    return torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(model.device)


def _rows(module: Any, width: int) -> int:
    """How many rows of `width` logits are read at once."""
    vocabulary = int(module.config.get_text_config().vocab_size)
    return max(1, min(_ROWS, _LOGITS // (4 * vocabulary * max(1, width))))


def _batch(model: Model, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest), padded on the right, and the mask (1 for what was given)."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), int(model.tokenizer.pad_token_id or 0)), np.zeros((len(rows), width))
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return _on(ids, model), _on(mask, model)


def _logits(module: Any, vectors: Tensor, ids: Tensor, mask: Tensor, **more: Any) -> Any:
    """What the model gives of `vectors` and then each row of `ids`."""
    after = _embeddings(module)(ids)
    both = torch.cat([vectors.to(after.dtype).expand(len(ids), -1, -1), after], dim=1)
    front = torch.ones((len(ids), len(vectors)), dtype=mask.dtype, device=mask.device)
    return module(inputs_embeds=both, attention_mask=torch.cat([front, mask], dim=1), **more)


def _suffix_losses(model: Model, module: Any, vectors: Tensor, pairs: Sequence[Pair]) -> list[Tensor]:
    """The losses (T), in nats, of the tokens of each suffix, by one pass over whole rows."""
    ids, mask = _batch(model, [np.concatenate(pair) for pair in pairs])
    # Of the position before each token; before the first token of a row it is the soft prompt's last.
    logits = _logits(module, vectors, ids, mask, use_cache=False).logits[:, len(vectors) - 1 : -1]
    found = []
    for number, (prefix, suffix) in enumerate(pairs):
        here = slice(len(prefix), len(prefix) + len(suffix))
        found.append(cross_entropy(logits[number, here].float(), ids[number, here], reduction="none"))
    return found


def _whole(model: Model, module: Any, vectors: Tensor, pairs: Sequence[Pair]) -> np.ndarray:
    """Summed ln p of each suffix, nothing shared."""
    found = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    longest = max(len(prefix) + len(suffix) for prefix, suffix in pairs) + len(vectors)
    size = _rows(module, longest)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        losses = _suffix_losses(model, module, vectors, [pairs[i] for i in batch])
        found[batch] = [-float(each.double().sum()) for each in losses]
    return found


def _agrees(model: Model, module: Any, vectors: Tensor, pairs: Sequence[Pair], cached: np.ndarray) -> bool:
    """Whether the longest two of `pairs`, read whole, are as likely as they were `cached`."""
    longest = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))[:2]
    whole = _whole(model, module, vectors, [pairs[i] for i in longest])
    # In half precision, logits of 20 are a tenth apart; a wrong place or mask is further off than that.
    close = 1e-3 if unwrapped(module).dtype == torch.float32 else 0.25
    return bool(np.allclose(cached[longest], whole, rtol=close, atol=close))


def _read(
    model: Model, module: Any, vectors: Tensor, prefixes: Sequence[np.ndarray]
) -> tuple[Float[Tensor, "B V"], Any]:
    """The logits after `vectors` and prefixes of one length, and the cache of them, None where it cannot be copied."""
    ids = _on(np.stack(prefixes), model)
    read = _logits(module, vectors, ids, torch.ones_like(ids), use_cache=True)
    cache = getattr(read, "past_key_values", None)
    return read.logits[:, -1].float(), cache if hasattr(cache, "batch_repeat_interleave") else None


def _shared(model: Model, module: Any, vectors: Tensor, pairs: Sequence[Pair]) -> np.ndarray | None:
    """Summed ln p of suffixes after one prefix, which is read once; None where the model has no such cache."""
    first, cache = _read(model, module, vectors, [pairs[0][0]])
    if cache is None:
        return None
    begin = torch.log_softmax(first[0], dim=-1)
    inner, before = unwrapped(module), int(cache.get_seq_length())
    found = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
    size = _rows(module, max(len(suffix) for _, suffix in pairs))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        ids, mask = _batch(model, [pairs[i][1] for i in batch])
        sums = begin[ids[:, 0]].double()
        if ids.shape[1] > 1:
            mine = copy.deepcopy(cache)
            mine.batch_repeat_interleave(len(batch))
            seen = torch.cat([torch.ones((len(batch), before), dtype=mask.dtype, device=mask.device), mask[:, :-1]], 1)
            try:
                logits = inner(
                    input_ids=ids[:, :-1], attention_mask=seen, past_key_values=mine, use_cache=True
                ).logits  # fmt: skip
            except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
                return None
            own = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]
            sums = sums + (own.double() * mask[:, 1:]).sum(dim=1)
        found[batch] = sums.cpu().numpy()
    return found


def _decoded(
    model: Model, module: Any, vectors: Tensor, prefixes: Sequence[np.ndarray], length: int
) -> list[np.ndarray]:
    """`length` tokens, each the likeliest, after prefixes of one length."""
    logits, cache = _read(model, module, vectors, prefixes)
    inner, rows = unwrapped(module), np.stack(prefixes).astype(np.int64)
    for step in range(length):
        token = logits.argmax(dim=-1)
        rows = np.concatenate([rows, token.cpu().numpy()[:, None]], axis=1)
        if step == length - 1:
            break
        if cache is None:
            logits, _ = _read(model, module, vectors, list(rows))
        else:
            read = inner(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            logits, cache = read.logits[:, -1].float(), read.past_key_values
    return [row[len(prefixes[0]) :].astype(np.int32) for row in rows]
