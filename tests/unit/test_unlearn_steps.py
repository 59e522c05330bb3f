"""Steps of unlearning against losses of whole logits, a reference that stays as it was, and draws that are pure."""

import copy

import numpy as np
import pytest
import torch
from train_fixtures import fresh, new_run, some_tokens, weights

from sordino.config import MethodConfig, TrainConfig
from sordino.errors import TrainingError, UnlearningError
from sordino.model import attach
from sordino.records import Example, Message, Record
from sordino.serialize import Serializer
from sordino.train.collate import collate
from sordino.train.loop import train
from sordino.train.objective import Objective
from sordino.unlearn.losses import FORGET, RETAIN, Logits
from sordino.unlearn.tuning.reference import Frozen, token_logprobs
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.steps import Epochs, Item, Limit, LossSteps, Total, packed

CPU = torch.device("cpu")


def tuned(make_model, method=None, scale=0.05):
    """A model whose method has moved it away from its base."""
    model = attach(fresh(make_model("llama")), method or MethodConfig(rank=2), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.module.parameters():
            if p.requires_grad:
                p += scale * torch.randn(p.shape, generator=generator)
    return model


def whole(model, tokens, reference=None, better=None):
    """Logits at all positions, prompts and padding too, by the model's own forward pass."""
    batch = collate(tokens, 2, CPU)
    labels = torch.full_like(batch.input_ids, -100)
    for row, item in enumerate(tokens):
        labels[row, : len(item)] = torch.where(torch.tensor(item.target), torch.tensor(item.ids).long(), -100)
    z = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    r = None if reference is None else reference.module(input_ids=batch.input_ids).logits.detach()
    return Logits(z, labels, r, better)


def gradients(model, loss):
    model.module.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*FORGET, *RETAIN])
def test_scored_positions_alone_give_the_loss_and_the_gradient_of_all(make_model, name):
    loss = (FORGET | RETAIN)[name]
    model, before = tuned(make_model), tuned(make_model, scale=0.1)
    tokens, others = some_tokens(5, prompt=True), some_tokens(5, 1, prompt=True)
    wanted = loss(whole(model, tokens, before, whole(model, others, before)))
    expected = gradients(model, wanted)
    objective, batches = Objective(model), [collate(t, 2, CPU) for t in (others, tokens)]
    made = None
    for batch in batches:
        with torch.no_grad():
            reference = Objective(before).scores(batch)
        found = packed(objective.scores(batch), batch, reference)
        made = Logits(found.logits, found.labels, found.reference, made)
    got = loss(made)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert found.logits.shape[1] < whole(model, tokens).logits.shape[1]
    for n, g in gradients(model, got).items():
        torch.testing.assert_close(g, expected[n], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "full", "ia3", "bitfit", "adapters", "head", "prefix", "prompt"])
def test_the_reference_is_the_model_as_it_was_and_takes_no_gradient(make_model, kind):
    model = tuned(make_model, MethodConfig(kind=kind))
    objective, batch = Objective(model), collate(some_tokens(3), 2, CPU)
    before = objective.scores(batch).detach()
    frozen = Frozen(model.module)
    kept = [p.clone() for _, _, p in frozen.places]
    optimizer = torch.optim.SGD([p for p in model.module.parameters() if p.requires_grad], lr=0.5)
    model.module.train()
    for _ in range(2):
        with frozen.active():
            assert not model.module.training
            reference = objective.scores(batch)
        (objective.scores(batch) - reference - 1).square().mean().backward()
        assert not reference.requires_grad and all(p.grad is None for _, _, p in frozen.places)
        optimizer.step()
    assert model.module.training
    assert all(torch.equal(a, b) for a, (_, _, b) in zip(kept, frozen.places, strict=True))
    with frozen.active():
        torch.testing.assert_close(objective.scores(batch), before)
    assert (objective.scores(batch) - before).abs().max() > 1e-3


def test_tied_weights_stay_tied_in_the_reference(make_model):
    model = attach(fresh(make_model("gpt2")), MethodConfig(kind="full"), 0)
    frozen = Frozen(model.module)
    count = sum(p.numel() for p in {id(p): p for _, _, p in frozen.places}.values())
    assert count == sum(p.numel() for p in model.module.parameters())


def test_tokens_are_read_once_as_they_are_read_alone(make_model):
    model, tokens = tuned(make_model), some_tokens(7, prompt=True)
    found = token_logprobs(model, tokens, Objective(model), 3)
    for item, values in zip(tokens, found, strict=True):
        with torch.no_grad():
            log_p = model.module(input_ids=torch.tensor(item.ids[None]).long()).logits[0].log_softmax(-1)
        wanted = [log_p[t - 1, item.ids[t]].item() for t in range(1, len(item)) if item.target[t]]
        assert values == pytest.approx(wanted, rel=1e-4)


def records(count):
    return [
        Example(
            record=Record(id=f"r{i}", unit=f"u{i}", messages=(Message("text", f"number {i} of all"),)),
            role="canary" if i % 7 == 3 else "train", included=True, group=f"u{i}",
        )
        for i in range(count)
    ]  # fmt: skip


def test_records_that_stay_come_once_before_any_comes_again(tokenizer):
    serializer = Serializer(tokenizer, 64)
    retained = Retained(records(20), serializer, 5, held=frozenset({0, 1}))
    drawn = retained.owners(0, 45)
    usable = {i for i in range(20) if i % 7 != 3} - {0, 1}
    size = len(usable)
    assert set(drawn[:size]) == set(drawn[size : 2 * size]) == usable and drawn[:size] != drawn[size : 2 * size]
    assert Retained(records(20), serializer, 5, held=frozenset({0, 1})).owners(11, 9) == drawn[11:20]
    assert Retained(records(20), serializer, 6, held=frozenset({0, 1})).owners(0, 45) != drawn
    wanted = serializer.encode(records(20)[drawn[2]].record).ids
    assert np.array_equal(retained.take(2, 1)[0].ids, wanted)
    with pytest.raises(UnlearningError, match="No record stays"):
        Retained(records(1), serializer, 5, held=frozenset({0})).take(0, 1)


def test_as_many_records_stay_as_go_in_each_step():
    epochs = Epochs(lengths=[3] * 7, epochs=3, batch_size=3, seed=1)
    sizes = [len(batch) for _, batch in epochs.batches(0)]
    assert sizes.count(3) == 6 and sizes.count(1) == 3
    assert [epochs.drawn(step) for step in range(9)] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert list(epochs.batches(4)) == list(epochs.batches(0))[4:]


@pytest.mark.parametrize(
    ("limit", "loss", "good"),
    [
        (Limit(before=2.0, tolerance=0.1), 2.2, True), (Limit(before=2.0, tolerance=0.1), 2.21, False),
        (Limit(before=2.0, tolerance=0.0), 2.0, True), (Limit(before=2.0, tolerance=0.0), 2.01, False),
        (Limit(before=2.0, tolerance=0.1), float("nan"), False), (Limit(before=None, tolerance=0.1), 2.0, False),
        (Limit(before=2.0, tolerance=0.1), None, False), (Limit(before=2.0), 50.0, True),
        (Limit(before=2.0), float("inf"), False), (Limit(), None, True),
    ],
)  # fmt: skip
def test_what_may_be_kept(limit, loss, good):
    assert limit.accepts(loss) is good


def steps_of(model, tokenizer, *, gamma=1.0, alpha=1.0, forget="grad_ascent", retain="nll", tolerance=None, **more):
    items = [Item(tokens=t) for t in some_tokens(6, prompt=True)]
    return LossSteps(
        model=model, forget=items, retained=Retained(records(20), Serializer(tokenizer, 64), 5),
        total=Total(forget=FORGET[forget], retain=RETAIN[retain], gamma=gamma, alpha=alpha, **more),
        epochs=Epochs(lengths=[len(i.tokens) for i in items], epochs=2, batch_size=4, seed=2),
        limit=Limit(before=1e-3, tolerance=tolerance),
    )  # fmt: skip


def test_a_weight_of_zero_is_zero(make_model, tokenizer):
    model = tuned(make_model)
    both = steps_of(model, tokenizer)
    found = {}
    for gamma, alpha in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        steps = steps_of(model, tokenizer, gamma=gamma, alpha=alpha)
        found[gamma, alpha] = [(loss.item(), n) for loss, n in steps.parts(1, [0, 2], Objective(model))]
    forget, retain = found[1.0, 1.0]
    assert found[1.0, 0.0] == [forget] and found[0.0, 1.0] == [retain]
    assert found[0.5, 2.0] == [(pytest.approx(0.5 * forget[0]), forget[1]), (pytest.approx(2 * retain[0]), retain[1])]
    assert forget[1] == sum(int(both.forget[i].tokens.target[1:].sum()) for i in (0, 2))


def test_what_a_reference_reads_is_counted(make_model, tokenizer):
    model = tuned(make_model)
    targets = sum(int(t.target[1:].sum()) for t in some_tokens(6, prompt=True))
    assert steps_of(model, tokenizer).forwards(4) == 0
    assert steps_of(model, tokenizer, forget="npo", once=True).forwards(4) == targets
    assert steps_of(model, tokenizer, forget="undial", forget_frozen=True).forwards(4) == 2 * targets
    kept = steps_of(model, tokenizer, retain="kl", retain_frozen=True)
    assert kept.forwards(2) == sum(int(t.target[1:].sum()) for t in kept.retained.take(0, 6))
    assert steps_of(model, tokenizer, alpha=0.0, retain="kl", retain_frozen=True).forwards(4) == 0


def test_the_loop_takes_these_steps_and_no_others(make_model, tokenizer, tmp_path):
    """Against an optimizer by hand, on the sum of both losses at once."""
    model = tuned(make_model)
    other = copy.deepcopy(model)
    config = TrainConfig(epochs=2, learning_rate=0.01, schedule="constant", warmup=0.0, clip=0.0, select="best")
    steps = steps_of(model, tokenizer, retain="kl", retain_frozen=True, forget="npo", once=True)
    progress = train(new_run(tmp_path), model, ([], []), config, seed=0, given=steps)
    assert progress.step == progress.best_step == 4 and not progress.stopped
    again = steps_of(other, tokenizer, retain="kl", retain_frozen=True, forget="npo", once=True)
    optimizer = torch.optim.AdamW([p for p in other.module.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    objective = Objective(other)
    other.module.train()
    for number, batch in again.batches(0):
        sum(loss for loss, _ in again.parts(number, batch, objective)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-3, atol=1e-5)
    wanted = sum(n for number, batch in again.batches(0) for _, n in again.parts(number, batch, objective))
    assert progress.tokens == wanted


def test_weights_that_cost_utility_are_not_kept(make_model, tokenizer, tmp_path):
    model = tuned(make_model)
    config = TrainConfig(epochs=2, learning_rate=0.01, warmup=0.0, select="best", validate_every=1)
    steps, held = steps_of(model, tokenizer, tolerance=0.1), some_tokens(3, 9)
    measured = iter([True, True, False])
    steps.accepts = lambda loss: next(measured)
    seen = {}
    run = new_run(tmp_path)
    progress = train(
        run, model, ([], held), config, seed=0, given=steps,
        monitor=lambda p, total: seen.update({p.step: weights(model)}),
    )  # fmt: skip
    assert progress.stopped and (progress.step, progress.best_step) == (3, 2)
    assert all(torch.equal(seen[2][n], w) for n, w in weights(model).items())
    assert not all(torch.equal(seen[3][n], w) for n, w in weights(model).items())
    # What was stopped stays stopped.
    again = train(run, model, ([], held), config, seed=0, given=steps)
    assert again.step == 3 and all(torch.equal(seen[2][n], w) for n, w in weights(model).items())


def test_a_loss_that_moves_nothing_is_refused(make_model, tokenizer, tmp_path):
    model = tuned(make_model)
    steps = steps_of(model, tokenizer)
    steps.parts = lambda number, indices, objective: iter([(torch.tensor(1.0), 1)])
    with pytest.raises(TrainingError, match="No gradient reaches any of the weights"):
        train(new_run(tmp_path), model, ([], []), TrainConfig(weight_decay=0.1), seed=0, given=steps)
    other = torch.zeros(1, requires_grad=True)
    steps.parts = lambda number, indices, objective: iter([(other.sum(), 1)])
    with pytest.raises(TrainingError, match="No gradient reaches any of the weights"):
        train(new_run(tmp_path), model, ([], []), TrainConfig(weight_decay=0.1), seed=0, given=steps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_reaches_no_weight(make_model, tokenizer, tmp_path, value):
    model = tuned(make_model)
    before, steps = weights(model), steps_of(model, tokenizer)
    total = steps.total
    steps.total = Total(forget=lambda b: value * b.logits.sum(), retain=total.retain, gamma=1.0, alpha=1.0)
    with pytest.raises(TrainingError, match=r"at step 1 of 4") as caught:
        train(new_run(tmp_path), model, ([], []), TrainConfig(), seed=0, given=steps)
    assert "Lower learning_rate" in caught.value.hint
    assert all(torch.equal(before[n], w) for n, w in weights(model).items())
