"""What an adversary who holds the weights computes of single records: gradient norms, and the loss after a step."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from sordino.attacks.frozen import frozen
from sordino.dp.engine import Clipper, Clipping
from sordino.errors import AuditError, DPError
from sordino.model import Model
from sordino.model.methods import OWN, own
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective

__all__ = ["Part", "gradient_norms", "one_step", "weights_of"]

Part = Literal["own", "tuned"]
"""Of which weights: a model's own, at which an adapter is a constant; or those that training changed."""

Tick = Callable[[int], None]
# Parts of names by which PEFT's parameters are known, and by which ours are.
_ADDED = (".lora_", ".ia3_", "prompt_encoder.", f"{OWN}.")
# Logits of a batch, and weights of all records that take a step at once, in bytes.
_LOGITS, _STEPPED = 128 << 20, 256 << 20


def weights_of(model: Model, part: Part) -> dict[str, torch.nn.Parameter]:
    """The parameters of `part` by name, as they are in use; raises `AuditError` where there are none."""
    module, method = model.module, model.method
    named = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    ours = own(module)
    if part == "own":
        found = {n: p for n, p in named.items() if not any(a in f".{n}" for a in _ADDED)}
    elif method is None or method.kind == "full":
        found = named
    elif ours is not None:
        places = {id(p) for p in ours.tensors(module).values()}
        found = {n: p for n, p in named.items() if id(p) in places}
    else:
        frozen = (".lora_A.", ".lora_embedding_A.") if method.variant == "ffa" else ()
        found = {n: p for n, p in named.items() if any(a in n for a in _ADDED) and not any(f in n for f in frozen)}
    if not found:
        raise AuditError("This model has no weights that a gradient could be taken of.", "Leave that attack out.")
    return found


@contextmanager
def _differentiable(model: Model, part: Part) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The weights of `part`, which alone require gradients meanwhile; in evaluation mode, tuned or not."""
    with frozen(model) as module:
        try:
            chosen = weights_of(model, part)
            for parameter in chosen.values():
                parameter.requires_grad_(True)
            yield chosen
        finally:
            for parameter in module.parameters():
                parameter.grad = None


def gradient_norms(
    model: Model, tokens: Sequence[Tokens], part: Part, tick: Tick = lambda done: None
) -> Float[np.ndarray, " records"]:
    """‖∇ℓ‖₂ of each record's ℓ, the mean NLL a token, over the weights of `part`; NaN where nothing is scored.

    One backward pass a batch: norms of single records by book-keeping (Bu et al. 2022, arXiv:2210.00038), or one record
    at a time where no rule fits the model. Records longer than the context are read in pieces, as in training.
    """
    norms = np.full(len(tokens), np.nan)
    # Made first: it tries the model with its own switch for the tuning.
    objective = Objective(model, picks=False)
    tick(sum(not t.target[1:].any() for t in tokens))
    with _differentiable(model, part):
        clipper: Clipper | None = _clipper(model)
        for batch in _batches(tokens, model):
            found = None
            if clipper is not None:
                try:
                    with clipper:
                        found = _norms(clipper, objective, model, [tokens[i] for i in batch])
                except DPError:
                    clipper = None  # no rule fits: one at a time from here on
            if found is None:
                alone = Clipper(model.module, Clipping(), mode="one-by-one")
                found = torch.cat([_norms(alone, objective, model, [tokens[i]]) for i in batch])
            norms[batch] = found.double().cpu().numpy()
            tick(len(batch))
    return norms


def _clipper(model: Model) -> Clipper | None:
    try:
        return Clipper(model.module, Clipping())
    except DPError:
        return None


def _norms(clipper: Clipper, objective: Objective, model: Model, records: Sequence[Tokens]) -> Tensor:
    """The norms (records) of records that have as many pieces each."""
    rows = [piece for t in records for piece in t.pieces(model.context)]
    counts = np.repeat([t.target[1:].sum() for t in records], len(rows) // len(records))
    weights = torch.from_numpy((1 / counts).astype(np.float32)).to(model.device)
    batch = collate(rows, model.tokenizer.pad_token_id, model.device)

    def losses() -> Tensor:
        values = objective.rows(batch)
        return values * weights.to(values.dtype)

    return clipper.norms(losses, units=len(records))


def _batches(tokens: Sequence[Tokens], model: Model, most: int | None = None) -> Iterator[list[int]]:
    """Records with something to score, those of similar length together, with as many pieces each."""
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    budget, context = min(4096, _LOGITS // (4 * vocabulary)), model.context

    def pieces(i: int) -> int:
        return max(1, -(-(len(tokens[i]) - 1) // (context - 1)))

    scored = [i for i, t in enumerate(tokens) if t.target[1:].any()]
    for _, same in groupby(sorted(scored, key=lambda i: (pieces(i), len(tokens[i]))), pieces):
        batch: list[int] = []
        for i in same:
            full = len(tokens[i]) * (len(batch) + 1) > budget or len(batch) == most
            if batch and full:
                yield batch
                batch = []
            batch.append(i)
        yield batch


def one_step(
    model: Model, tokens: Sequence[Tokens], rate: float, tick: Tick = lambda done: None
) -> Float[np.ndarray, "records 2"]:
    """ℓ of each record before and after one step of gradient descent, of what was tuned, on that record alone.

    θ' = θ − `rate` · ∇ℓ(x; θ), and ℓ(x; θ') by another forward pass, not to first order (Wang et al. 2024,
    arXiv:2402.17012). Each record begins at θ. Of a record that is longer than the context its first piece counts.
    """
    losses = np.full((len(tokens), 2), np.nan)
    causal = Objective(model).causal
    tick(sum(not t.target[1:].any() for t in tokens))
    cut = [next(iter(t.pieces(model.context))) for t in tokens]
    with _differentiable(model, "tuned") as chosen, warnings.catch_warnings():
        # Attention on a CPU has no rule for many models at once, and is done one by one inside.
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        weights = {name: p.detach() for name, p in chosen.items()}
        size = sum(w.numel() for w in weights.values())
        most = max(1, _STEPPED // (12 * size)) if causal else 1
        for batch in _batches(cut, model, most):
            found = _stepped(model, weights, [cut[i] for i in batch], rate) if most > 1 else None
            if found is None:
                most = 1  # this architecture cannot compute with many weights at once
                found = torch.cat([_alone(model, weights, cut[i], rate) for i in batch])
            losses[batch] = found.double().cpu().numpy()
            tick(len(batch))
    return losses


def _loss(module: Any, weights: dict[str, Tensor], ids: Tensor, scored: Tensor) -> Tensor:
    """The mean NLL of one padded record, `ids` (T) and which of them are `scored` (T), under `weights`."""
    logits = functional_call(module, weights, (), {"input_ids": ids[None], "use_cache": False}).logits[0]
    each = cross_entropy(logits[-len(ids) :][:-1].float(), ids[1:], reduction="none")
    return (each * scored[1:]).sum() / scored[1:].sum()


def _stepped(model: Model, weights: dict[str, Tensor], records: Sequence[Tokens], rate: float) -> Tensor | None:
    """(records, 2) with weights of its own for each record; None where the model cannot, or not rightly."""
    width = max(map(len, records))
    ids = torch.full((len(records), width), int(model.tokenizer.pad_token_id))
    scored = torch.zeros(len(records), width)
    for row, item in enumerate(records):
        ids[row, : len(item)] = torch.from_numpy(item.ids.astype(np.int64))
        scored[row, : len(item)] = torch.from_numpy(item.target.astype(np.float32))
    ids, scored = ids.to(model.device), scored.to(model.device)

    def loss(own: dict[str, Tensor], ids: Tensor, scored: Tensor) -> Tensor:
        return _loss(model.module, own, ids, scored)

    try:
        gradients, before = vmap(grad_and_value(loss), (None, 0, 0), randomness="error")(weights, ids, scored)
        with torch.no_grad():
            stepped = {name: weights[name] - rate * gradients[name] for name in weights}
            after = vmap(loss, randomness="error")(stepped, ids, scored)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None
    found = torch.stack([before, after], dim=1).detach()
    single = _alone(model, weights, records[0], rate)
    return found if torch.allclose(found[:1], single, rtol=1e-3, atol=1e-5) else None


def _alone(model: Model, weights: dict[str, Tensor], record: Tokens, rate: float) -> Tensor:
    """(1, 2): the same of one record, by a plain backward pass."""
    ids = torch.from_numpy(record.ids.astype(np.int64)).to(model.device)
    scored = torch.from_numpy(record.target.astype(np.float32)).to(model.device)
    own = {name: w.detach().requires_grad_(True) for name, w in weights.items()}
    with torch.enable_grad():
        before = _loss(model.module, own, ids, scored)
        # What takes no part in the loss, such as the last layer's unused key, stays as it is.
        found: Sequence[Tensor | None] = torch.autograd.grad(before, list(own.values()), allow_unused=True)
    with torch.no_grad():
        pairs = zip(own.items(), found, strict=True)
        stepped = {name: w if g is None else w - rate * g for (name, w), g in pairs}
        after = _loss(model.module, stepped, ids, scored)
    return torch.stack([before.detach(), after])[None]
