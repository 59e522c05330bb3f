"""DP-SGD (Abadi et al. 2016, arXiv:1607.00133) of many adapters at once: each with its plan, secret and units."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sordino.dp.engine import Clipper, Clipping, clip_factors
from sordino.dp.mechanism import rows_of, subkey
from sordino.dp.noise import Noise
from sordino.dp.plan import DPPlan
from sordino.dp.selftest import synthetic
from sordino.errors import ConfigError, DPError
from sordino.serialize import Tokens
from sordino.train.adapters import Adapters
from sordino.train.joint_batches import Corpus, Pass
from sordino.train.objective import Objective

__all__ = ["JointPrivacy", "PrivatePart"]

# What the gradients of single units may take: those of an adapter, unlike those of a whole model, are small.
_BYTES = 256 << 20
_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class PrivatePart:
    """The privacy of one adapter: its plan, a secret of 32 bytes, and its units.

    `members[u]` are places in the adapter's subset: the sequences of unit u.
    """

    plan: DPPlan
    secret: bytes = field(repr=False)
    members: Sequence[Sequence[int]]


class JointPrivacy:
    """Samples, clipped sums and noise of adapters, as `Mechanism` has them for one model.

    With the same plan, secret and units, adapter k becomes what a private training of its own makes of it. A step is
    a function of weights, secret and number, so that a training goes on by taking the interrupted step again; there
    is no journal and no ledger. That is for shadow models, which are the auditor's own: none may be released.
    Flat and automatic clipping only. Raises `ConfigError` for others, and for plans that do not fit.
    """

    def __init__(self, adapters: Adapters, parts: Sequence[PrivatePart]) -> None:
        self.adapters, self.parts = adapters, parts
        _check(parts)
        self.samplers = [part.plan.sampler(subkey(part.secret, "sampling")) for part in parts]
        self.noises = [Noise(subkey(part.secret, "noise"), secure=part.plan.settings.secure) for part in parts]
        self.keys = [subkey(part.secret, "rows") for part in parts]
        self.clippings = [_clipping(k, part) for k, part in enumerate(parts)]
        flat = adapters.flat
        self.most = max(1, _BYTES // (flat.shape[1] * flat.element_size()))

    @property
    def steps(self) -> list[int]:
        """How many steps the plan of each adapter has."""
        return [part.plan.steps for part in self.parts]

    def batch(self, k: int, step: int) -> list[list[int]]:
        """The units of `step` of adapter `k`, each the sequences that stand for it, as places in its subset."""
        part, most = self.parts[k], self.parts[k].plan.settings.records_per_unit
        found = []
        for unit in self.samplers[k].batch(step).tolist():
            own = part.members[unit]
            found.append([own[i] for i in rows_of(self.keys[k], step, unit, len(own), most=most)])
        return found

    def weights(self, one: Pass, targets: np.ndarray) -> np.ndarray:
        """What a target in each row counts: the loss of a unit is the mean over its targets, or their sum."""
        counts = np.where(one.rows >= 0, targets[one.rows], 0).sum(axis=2, keepdims=True)
        means = np.array([self.parts[k].plan.settings.loss == "mean" for k in one.chosen])
        shares = np.where(means[:, None, None], 1 / np.maximum(1, counts), 1.0)
        # In float32, as in a training alone.
        wide: np.ndarray = np.broadcast_to(shares, one.rows.shape).astype(np.float32)
        return wide.ravel()

    def room(self, units: int) -> Tensor:
        """A place for the gradients of `units` units (units, P)."""
        return self.adapters.flat.new_zeros(units, self.adapters.flat.shape[1])

    def add(self, chosen: Sequence[int], grads: Tensor) -> Tensor:
        """Clip `grads` (G·units, P) and add them to the sums of adapters `chosen` (G); returns norms (G, units).

        A unit whose gradient is no number adds nothing.
        """
        adapters = self.adapters
        each = grads[:, adapters.start :]
        norms: Tensor = torch.linalg.vector_norm(each, dim=1)
        finite = norms.isfinite()
        if not bool(finite.all()):
            grads[~finite] = 0  # 0 times no number would be none either
        norms = norms.view(len(chosen), -1)
        rows = [
            clip_factors(norm, self.clippings[k].norm, self.clippings[k].kind)
            for k, norm in zip(chosen, norms.nan_to_num(0.0, 0.0), strict=True)
        ]
        sums: Tensor = torch.bmm(torch.stack(rows)[:, None], grads.view(len(chosen), -1, grads.shape[1]))[:, 0]
        adapters.grads.index_add_(0, torch.tensor(chosen, device=grads.device), sums)
        return norms

    def release(self, step: int, chosen: Sequence[int]) -> None:
        """Noise once on the sum of each of `chosen`, and divide it by the expected batch."""
        for k in chosen:
            plan, noise, row = self.parts[k].plan, self.noises[k], self.adapters.grads[k : k + 1]
            std = plan.gradient_noise * self.clippings[k].norm
            for layer in self.adapters.layers:
                a, b = layer.factors(row)
                # Named as PEFT's parameters, so that each gets the noise it would get in a training of its own.
                if not layer.frozen_a:
                    noise.add_(a[0], std, step=step, name=f"{layer.name}.lora_A.default.weight")
                noise.add_(b[0], std, step=step, name=f"{layer.name}.lora_B.default.weight")
            row.div_(float(plan.batch))

    def check(self, objective: Objective) -> None:
        """Compare norms and clipped sums with one unit at a time by plain autograd, on synthetic tokens.

        Factors are random meanwhile: B begins at 0, where A has no gradient. Raises `DPError` where they differ.
        """
        adapters, k = self.adapters, len(self.adapters) - 1
        kept = adapters.flat.clone()
        generator = torch.Generator().manual_seed(20_221)
        vocabulary = int(adapters.model.module.config.get_text_config().vocab_size)
        ids, mask = synthetic(vocabulary, _LENGTH, 1, torch.device("cpu"))
        tokens = [_whole(row[: int(n)].numpy()) for row, n in zip(ids, mask.sum(dim=1), strict=True)]
        corpus = Corpus(tokens, adapters.model.tokenizer.pad_token_id, adapters.model.device)
        one = Pass((0, k), np.array([[[0], [1]], [[1], [0]]]), _LENGTH)
        try:
            with torch.no_grad():
                adapters.flat.copy_(0.1 * torch.randn(kept.shape, generator=generator, dtype=torch.float32))
            found = self._together(one, corpus, objective)
            for group in (0, 1):
                self._compare(one.chosen[group], one.rows[group], corpus, found[group])
        finally:
            with torch.no_grad():
                adapters.flat.copy_(kept)
            adapters.grads.zero_()

    def _together(self, one: Pass, corpus: Corpus, objective: Objective) -> Tensor:
        """Gradients (2, 2, P) of two units in each of two groups."""
        adapters, flat = self.adapters, one.rows.ravel()
        batch, owner = corpus.batch(flat, one.width)
        grads = self.room(4)
        with torch.enable_grad(), adapters.attached():
            adapters.select(one.chosen, len(flat), one.width, grads=grads)
            logp = objective.scores(batch).log_softmax(dim=-1).gather(1, batch.wanted[:, None])[:, 0]
            weights = torch.from_numpy((1 / corpus.targets)[flat][owner]).to(logp)
            (-logp * weights).sum().backward()  # type: ignore[no-untyped-call]
        return grads.view(2, 2, -1)

    def _compare(self, k: int, rows: np.ndarray, corpus: Corpus, found: Tensor) -> None:
        adapters = self.adapters
        limit = 1e-8 if adapters.flat.dtype == torch.float64 else 1e-3
        with adapters.wrapped(k) as tuned, torch.enable_grad():
            tuned.module.eval()
            objective = Objective(tuned)
            plain = Clipper(tuned.module, self.clippings[k], mode="one-by-one")
            for place, row in enumerate(rows[:, 0]):
                batch, _ = corpus.batch(np.array([row]), int(corpus.lengths[row]))
                norms = plain.add(lambda batch=batch: objective.rows(batch) / batch.targets, units=1)  # type: ignore[misc]
                factor = clip_factors(norms, self.clippings[k].norm, self.clippings[k].kind)
                plain.finish(None, 1.0)
                size = torch.linalg.vector_norm(found[place, adapters.start :])
                _agree("The norm", size[None] - norms, norms, limit)
                for layer in adapters.layers:
                    parts = zip("AB", layer.factors(found[place][None]), strict=True)
                    for letter, mine in parts:
                        if letter == "A" and layer.frozen_a:
                            continue
                        name = f"{layer.name}.lora_{letter}.default.weight"
                        wanted = plain.parameters[name].grad
                        assert wanted is not None  # `finish` sets all
                        _agree(name, mine[0] * factor - wanted, norms * factor, limit)


def _agree(name: str, difference: Tensor, size: Tensor, limit: float) -> None:
    relative = float(torch.linalg.vector_norm(difference) / size.clamp(min=1e-30).max())
    # Written so that NaN does not pass.
    if not relative <= limit:
        message = f"{name}: gradients of units of stacked adapters differ by {relative:.2g} from one at a time,"
        raise DPError(f"{message} of which {limit:g} is allowed.", "Train adapters of this model one by one.")


def _whole(ids: np.ndarray) -> Tokens:
    return Tokens(ids=ids.astype(np.int32), target=np.arange(len(ids)) > 0, text="")


def _clipping(k: int, part: PrivatePart) -> Clipping:
    kind = part.plan.settings.clipping
    if kind not in ("flat", "automatic"):
        message = f"dp.clipping of adapter {k} is {kind}, and adapters trained together are clipped flat or automatic."
        raise ConfigError(message, "Set clipping: flat, or train them one by one.")
    return Clipping(norm=part.plan.settings.clip_norm, kind=kind)


def _check(parts: Sequence[PrivatePart]) -> None:
    for k, part in enumerate(parts):
        if len(part.members) != part.plan.units:
            message = f"The plan of adapter {k} protects {part.plan.units} units, and {len(part.members)} are given."
            raise ConfigError(message, "Make the plan of the adapter's own units.")
        places = [i for unit in part.members for i in unit]
        if len(set(places)) < len(places) or not all(part.members):
            message = f"A record of adapter {k} is in two units, or a unit has none."
            raise ConfigError(message, "Each record belongs to one unit.")
    if len({part.secret for part in parts}) < len(parts):
        message = f"{len(parts)} adapters have {len({p.secret for p in parts})} secrets, and would share their noise."
        raise ConfigError(message, "Draw a secret of 32 bytes for each.")
