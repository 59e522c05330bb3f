"""Forget losses that have no golden numbers, against loops over tokens; what a batch cannot be is refused."""

import numpy as np
import pytest
import torch

from sordino.errors import ConfigError
from sordino.unlearn.losses import (
    FORGET,
    RETAIN,
    Logits,
    answer_preservation,
    ce_u,
    idk_nll,
    kl,
    max_entropy,
    nll,
    npo,
    tnpo,
    undial,
)  # fmt: skip

V, T = 7, 6


def batch(seed=0, **more):
    rng = np.random.default_rng(seed)
    logits, reference = (torch.tensor(rng.normal(size=(3, T, V)), dtype=torch.float64) for _ in range(2))
    labels = torch.tensor(rng.integers(0, V, (3, T)))
    labels[0, :3] = labels[1, 4:] = labels[2, 1] = -100
    return Logits(logits, labels, reference, **more)


def tokens(b):
    """Of each scored token: its sequence, ln p, ln p of the reference, and ln p of all tokens."""
    for i in range(len(b.labels)):
        for t in range(1, T):
            if (y := int(b.labels[i, t])) != -100:
                log_p, log_r = (z[i, t - 1].log_softmax(-1) for z in (b.logits, b.reference))
                yield i, log_p[y].item(), log_r[y].item(), log_p, log_r


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def sums(b, column):
    found = np.zeros(len(b.labels))
    for row in tokens(b):
        found[row[0]] += row[column]
    return found


def test_each_token_is_a_preference_of_its_own():
    b = batch()
    each = [-2 / 0.1 * log_sigmoid(0.1 * (r - p)) for _, p, r, _, _ in tokens(b)]
    assert tnpo(b, beta=0.1).item() == pytest.approx(np.mean(each))


def test_entropy_is_maximal_where_all_tokens_are_as_likely():
    b = batch()
    each = [sum(1 / V * (np.log(1 / V) - q) for q in log_p.tolist()) for *_, log_p, _ in tokens(b)]
    assert max_entropy(b).item() == pytest.approx(np.mean(each))
    flat = Logits(torch.zeros_like(b.logits), b.labels)
    assert max_entropy(flat).item() == pytest.approx(0, abs=1e-12)


def test_answers_are_kept_against_refusals():
    refusal = batch(5)
    b = batch(better=refusal)
    gap = sums(b, 1) - sums(refusal, 1)
    assert answer_preservation(b, beta=0.3).item() == pytest.approx(np.mean(-1 / 0.3 * log_sigmoid(0.3 * gap)))
    assert idk_nll(b).item() == nll(refusal).item()


def test_what_is_kept_counts_answers_alone():
    b = batch()
    each = [(log_r.exp() * (log_r - log_p)).sum().item() for *_, log_p, log_r in tokens(b)]
    assert kl(b).item() == pytest.approx(np.mean(each))
    # Prompts and padding have no say: as the quirk has them, they do.
    other = b.logits.clone()
    other[0, 0] += torch.arange(V)
    assert kl(Logits(other, b.labels, b.reference)).item() == kl(b).item()
    assert kl(Logits(other, b.labels, b.reference), quirks=True).item() != kl(b, quirks=True).item()


@pytest.mark.parametrize("name", [*FORGET, *RETAIN])
def test_tokens_that_are_not_scored_change_nothing(name):
    loss, refusal = (FORGET | RETAIN)[name], batch(5)
    z = batch().logits.clone().requires_grad_()
    b = Logits(z, batch().labels, batch().reference, refusal)
    made = loss(b)
    if name in ("idk_nll", "idk_ap"):
        assert not made.requires_grad  # the answers to be forgotten have no part in it
        return
    [gradient] = torch.autograd.grad(made, [z])
    unscored = torch.ones(3, T, dtype=torch.bool)
    unscored[:, :-1] = b.labels[:, 1:] == -100
    assert gradient[unscored].abs().max() == 0 and gradient.abs().max() > 0


def test_at_the_reference_the_loss_is_the_published_constant():
    b = batch()
    same = Logits(b.reference, b.labels, b.reference)
    assert npo(same, beta=0.1).item() == pytest.approx(2 * np.log(2) / 0.1)


def test_what_a_loss_cannot_do_without_is_asked_for():
    b = batch()
    bare = Logits(b.logits, b.labels)
    with pytest.raises(ConfigError, match="needs the model as it was before"):
        npo(bare)
    with pytest.raises(ConfigError, match="prefers other answers"):
        answer_preservation(bare)
    masked = b.labels.clone()
    masked[1] = -100
    with pytest.raises(ConfigError, match=r"Of the sequences \[1\] of a batch to unlearn no token is scored"):
        undial(Logits(b.logits, masked, b.reference))
    with pytest.raises(ConfigError, match="The first 9 tokens of each answer are skipped"):
        ce_u(b, skipped=9)
