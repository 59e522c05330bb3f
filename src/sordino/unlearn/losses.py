"""Losses of approximate unlearning that need logits alone: what is minimised on records to forget, and on others.

All take `Logits` of a batch (N = T − 1 tokens of each sequence can be scored) and are means over its sequences or its
scored tokens; the total is γ · forget + α · retain. Only labelled tokens count, in every loss. Where a widely used
implementation does otherwise, `quirks` repeats that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from sordino.errors import ConfigError

__all__ = ["FORGET", "IGNORED", "RETAIN", "ForgetLoss", "Logits", "control_distance"]

IGNORED = -100
"""The label of a token that no loss counts."""

Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class Logits:
    """What a model says about a batch: `logits` (B, T, V) at t are of the token t + 1; `labels` (B, T).

    `reference` (B, T, V), without gradient, is the same of the model before unlearning, where a loss needs it. `better`
    is the batch with the answers that are wanted in place of these, of which preferences are told. Where a loss asks
    the reference for the ln p of scored tokens alone, `reference_logprob` (B, N) will do, 0 where none is scored.
    """

    logits: Float[Tensor, "B T V"]
    labels: Int[Tensor, "B T"]
    reference: Float[Tensor, "B T V"] | None = None
    better: "Logits | None" = None
    reference_logprob: Float[Tensor, "B N"] | None = None

    @cached_property
    def target(self) -> Bool[Tensor, "B N"]:
        """Which tokens, from the second on, are scored; raises `ConfigError` where a sequence has none."""
        found = self.labels[:, 1:] != IGNORED
        if not found.any(dim=1).all():
            none = [i for i, some in enumerate(found.any(dim=1).tolist()) if not some]
            message = f"Of the sequences {none} of a batch to unlearn no token is scored."
            raise ConfigError(message, "Are they masked whole, or cut before the answer? Leave them out.")
        return found

    @property
    def count(self) -> Float[Tensor, " B"]:
        """Scored tokens of each sequence."""
        return self.target.sum(dim=1).to(self.logits.dtype)

    @cached_property
    def token_logprob(self) -> Float[Tensor, "B N"]:
        """The ln p of each token, 0 where it is not scored."""
        return self._picked(self.logits)

    @cached_property
    def token_reference(self) -> Float[Tensor, "B N"]:
        """The same of the reference; raises `ConfigError` without one."""
        if self.reference_logprob is not None:
            return self.reference_logprob.detach()
        return self._picked(self.frozen)

    @property
    def frozen(self) -> Float[Tensor, "B T V"]:
        """The logits of the reference."""
        if self.reference is None:
            raise ConfigError("This loss needs the model as it was before.", "Give the logits of the reference.")
        return self.reference.detach()

    @property
    def nll(self) -> Float[Tensor, " B"]:
        """The summed −ln p of each sequence."""
        return -self.token_logprob.sum(dim=1)

    @property
    def nll_reference(self) -> Float[Tensor, " B"]:
        """The same of the reference."""
        return -self.token_reference.sum(dim=1)

    @property
    def wanted(self) -> "Logits":
        """The batch with better answers; raises `ConfigError` without one."""
        if self.better is None:
            raise ConfigError("This loss prefers other answers.", "Give the batch with the answers that are wanted.")
        return self.better

    def mean(self, values: Float[Tensor, "B N"]) -> Scalar:
        """The mean of `values` over all scored tokens of the batch."""
        return (values * self.target).sum() / self.target.sum()

    def _picked(self, logits: Tensor) -> Tensor:
        index = self.labels[:, 1:].clamp(min=0)[..., None]
        picked = log_softmax(logits[:, :-1], dim=-1).gather(-1, index)[..., 0]
        return torch.where(self.target, picked, torch.zeros_like(picked))


ForgetLoss = Callable[..., Scalar]
"""`(Logits, *, parameters)` to a scalar."""


def grad_ascent(batch: Logits) -> Scalar:
    """−CE: the likelihood of what is to be forgotten falls (Jang et al. 2022, arXiv:2210.01504)."""
    return batch.mean(batch.token_logprob)


def npo(batch: Logits, *, beta: float = 0.1) -> Scalar:
    """−(2/β) · mean ln σ(β (nll − nll_ref)): negative preference optimisation (Zhang et al. 2024, arXiv:2404.05868).

    It is 2 ln 2 / β where the model is the reference.
    """
    return -2 / beta * logsigmoid(beta * (batch.nll - batch.nll_reference)).mean()


def tnpo(batch: Logits, *, beta: float = 0.1) -> Scalar:
    """`npo` of each token by itself, the mean over tokens (Wang et al. 2025, arXiv:2502.19301)."""
    gap = batch.token_reference - batch.token_logprob
    return -2 / beta * batch.mean(logsigmoid(beta * gap))


def simnpo(batch: Logits, *, beta: float = 4.5, delta: float = 0.0) -> Scalar:
    """−(2/β) · mean ln σ(β (nll / L − δ)): NPO without a reference (Fan et al. 2024, arXiv:2410.07163)."""
    return -2 / beta * logsigmoid(beta * (batch.nll / batch.count - delta)).mean()


def dpo(batch: Logits, *, beta: float = 0.1) -> Scalar:
    """−(2/β) · mean ln σ(β [(nll_ref − nll) of the better answer − (nll_ref − nll) of this one]).

    Better answers are refusals ("I don't know": idk_dpo; Maini et al. 2024, arXiv:2401.06121) or made-up ones of the
    same kind (alt_po; Mekala et al. 2024, arXiv:2409.13474). Source: Rafailov et al. 2023, arXiv:2305.18290.
    """
    better = batch.wanted
    gap = (better.nll_reference - better.nll) - (batch.nll_reference - batch.nll)
    return -2 / beta * logsigmoid(beta * gap).mean()


def idk_nll(batch: Logits) -> Scalar:
    """CE of the better answers alone, refusals (Maini et al. 2024, arXiv:2401.06121)."""
    return nll(batch.wanted)


def undial(batch: Logits, *, beta: float = 10.0, quirks: bool = False) -> Scalar:
    """CE to softmax(z_ref − β · 1[y]), the reference with the true token's logit lowered.

    Source: Dong et al. 2024, arXiv:2402.10052.

    `quirks`: unscored positions count as well, and their label −100 lowers the logit V − 100.
    """
    index = batch.labels[:, 1:]
    index = index % batch.logits.shape[-1] if quirks else index.clamp(min=0)
    lowered = batch.frozen[:, :-1].scatter_add(
        -1, index[..., None], torch.full_like(batch.frozen[:, :-1, :1], -beta)
    )  # fmt: skip
    each = -(lowered.softmax(dim=-1) * log_softmax(batch.logits[:, :-1], dim=-1)).sum(dim=-1)
    return each.mean() if quirks else batch.mean(each)


def ce_u(batch: Logits, *, skipped: int = 1) -> Scalar:
    """CE to the model's own softmax without the true token, which takes no gradient (Yang 2025, arXiv:2503.01224).

    The first `skipped` tokens of each answer do not count.
    """
    logits, target = batch.logits[:, :-1], batch.target & (batch.target.cumsum(dim=1) > skipped)
    if not target.any():
        message = f"The first {skipped} tokens of each answer are skipped, and none has more."
        raise ConfigError(message, "Skip fewer.")
    index = batch.labels[:, 1:].clamp(min=0)[..., None]
    aim = logits.detach().scatter(-1, index, float("-inf")).softmax(dim=-1)
    each = -(aim * log_softmax(logits, dim=-1)).sum(dim=-1)
    return (each * target).sum() / target.sum()


def wga(batch: Logits, *, beta: float = 1.0) -> Scalar:
    """Gradient ascent, each token weighted with p^β (no gradient): weighted GA (Wang et al. 2025, arXiv:2502.19301)."""
    weight = batch.token_logprob.detach().mul(beta).exp()
    return batch.mean(weight * batch.token_logprob)


def satimp(batch: Logits, *, beta1: float = 5.0, beta2: float = 1.0) -> Scalar:
    """Gradient ascent, each token weighted with p^β₁ (1 − p)^β₂ (Yang et al. 2025, arXiv:2505.11953)."""
    p = batch.token_logprob.detach().exp()
    return batch.mean(p**beta1 * (1 - p) ** beta2 * batch.token_logprob)


def max_entropy(batch: Logits) -> Scalar:
    """KL(U ‖ m) of each scored token, U uniform over the vocabulary (Yuan et al. 2024, arXiv:2410.08109)."""
    log_p = log_softmax(batch.logits[:, :-1], dim=-1)
    return batch.mean(-log_p.mean(dim=-1) - torch.tensor(float(log_p.shape[-1]), dtype=log_p.dtype).log())


def nll(batch: Logits) -> Scalar:
    """CE, the mean over scored tokens."""
    return -batch.mean(batch.token_logprob)


def kl(batch: Logits, *, quirks: bool = False) -> Scalar:
    """KL(reference ‖ model), the mean over scored tokens; `quirks`: over all positions, prompts and padding too."""
    if quirks:
        ours, theirs = log_softmax(batch.logits, dim=-1), log_softmax(batch.frozen, dim=-1)
        return kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1).mean()
    ours, theirs = (log_softmax(z[:, :-1], dim=-1) for z in (batch.logits, batch.frozen))
    return batch.mean(kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1))


def answer_preservation(batch: Logits, *, beta: float = 0.1) -> Scalar:
    """−(1/β) · mean ln σ(β [ln p of this answer − ln p of the refusal]), on records that stay.

    It keeps a model that learns to refuse from refusing everything; with `idk_nll` this is IDK + AP
    (Yuan et al. 2024, arXiv:2410.08109).
    """
    return -1 / beta * logsigmoid(beta * (batch.wanted.nll - batch.nll)).mean()


def control_distance(
    hidden: Float[Tensor, "B T D"], control: Float[Tensor, " D"], scored: Bool[Tensor, "B T"], *, quirks: bool = False
) -> Scalar:
    """MSE of hidden states to a `control` vector: of each sequence over its `scored` tokens, then over sequences.

    Source: Li et al. 2024, arXiv:2403.03218 (RMU). `quirks`: each sequence's sum is divided by every sequence's count.
    """
    each = ((hidden - control) ** 2).mean(dim=-1)
    sums, counts = (each * scored).sum(dim=1), scored.sum(dim=1).to(each.dtype)
    return (sums[None, :] / counts[:, None]).mean() if quirks else (sums / counts).mean()


FORGET: Mapping[str, ForgetLoss] = {
    "grad_ascent": grad_ascent, "grad_diff": grad_ascent, "npo": npo, "tnpo": tnpo, "simnpo": simnpo, "dpo": dpo,
    "idk_dpo": dpo, "alt_po": dpo, "idk_nll": idk_nll, "undial": undial, "ce_u": ce_u, "wga": wga, "satimp": satimp,
    "max_entropy": max_entropy, "idk_ap": idk_nll,
}  # fmt: skip
"""Forget losses by the name of their method."""

RETAIN: Mapping[str, ForgetLoss] = {"nll": nll, "kl": kl, "answer_preservation": answer_preservation}
"""Losses on records that stay."""
