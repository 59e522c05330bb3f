"""Rows of new tokens: behind any head, clipped like the rest, and gone without a trace."""

import pytest
import torch
from train_fixtures import fresh, new_run, some_tokens

from sordino.config import MethodConfig, TrainConfig
from sordino.dp.engine import Clipper, Clipping
from sordino.dp.selftest import self_test, synthetic
from sordino.errors import DPError, ModelError
from sordino.evidence import digest
from sordino.model import Model, attach
from sordino.model.handle import _tensor_parts
from sordino.model.methods.extra_rows import EXTRA, ExtraRows, extra_rows, first_new, initial_rows, width_of
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.loop import train
from sordino.train.objective import Objective

NEW = 5
METHODS = {
    "lora": MethodConfig(rank=4), "full": MethodConfig(kind="full"), "head": MethodConfig(kind="head"),
    "prompt": MethodConfig(kind="prompt", virtual_tokens=4), "prefix": MethodConfig(kind="prefix", virtual_tokens=4),
    "bitfit": MethodConfig(kind="bitfit"), "ia3": MethodConfig(kind="ia3"), "adapters": MethodConfig(kind="adapters"),
    "head in lora": MethodConfig(rank=4, targets=("lm_head", "q_proj")),
}  # fmt: skip


def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with model.active() as module:
        return module(input_ids=ids, use_cache=False).logits


def state(model: Model) -> str:
    return digest(*_tensor_parts(model.module.state_dict()))


def ended(vocabulary: int, count: int = 12) -> list[Tokens]:
    """Random records that end in new tokens, which alone are targets."""
    made = []
    for number, tokens in enumerate(some_tokens(count, seed=5)):
        ids = tokens.ids.copy()
        ids[-1] = vocabulary + number % NEW
        target = tokens.target.copy()
        target[:-1] = False
        made.append(Tokens(ids=ids, target=target, text=""))
    return made


def test_the_head_says_what_it_did_and_more(model):
    ids = torch.arange(10)[None] * 7
    before, digest_before = logits(model, ids), state(model)
    first = first_new(model.module)
    with extra_rows(model.module, torch.randn(NEW, width_of(model.module))) as rows:
        wide = logits(model, ids)
        assert torch.equal(wide[..., :first], before) and wide.shape[-1] == first + NEW
        # The id of a new token is read as some known one, and changes nothing before it.
        ids[0, -1] = first + 3
        assert torch.equal(logits(model, ids)[:, :-1], wide[:, :-1])
        assert rows.rows.weight.requires_grad and hasattr(model.module, EXTRA)
    assert torch.equal(logits(model, torch.arange(10)[None] * 7), before)
    assert state(model) == digest_before and not hasattr(model.module, EXTRA)


def test_they_leave_even_after_an_error(llama):
    before = state(llama)
    with pytest.raises(RuntimeError, match="broken"), extra_rows(llama.module, initial_rows(llama.module, NEW)):
        raise RuntimeError("broken")
    assert state(llama) == before


def test_they_begin_alike_as_the_mean_of_the_head(llama):
    rows = initial_rows(llama.module, NEW)
    assert torch.allclose(rows, llama.module.lm_head.weight.mean(0).expand(NEW, -1))


def test_a_head_that_is_no_matrix_is_refused(make_model):
    model = fresh(make_model())
    model.module.lm_head = torch.nn.Sequential(model.module.lm_head)
    with pytest.raises(ModelError, match="The head is Sequential"):
        initial_rows(model.module, NEW)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_them_beside_its_own(make_model, tmp_path, method):
    shape = "llama" if method != "full" else "gpt2"
    model = attach(fresh(make_model(shape, context=96)), METHODS[method], 0)
    vocabulary = first_new(model.module)
    canaries = ended(vocabulary)
    inside = canaries[:3]
    with extra_rows(model.module, initial_rows(model.module, NEW)) as rows:
        before = rows.rows.weight.detach().clone()
        config = TrainConfig(epochs=8, batch_size=4, learning_rate=1e-2)
        train(new_run(tmp_path), model, (some_tokens(8) + inside, []), config, seed=0)
        after = rows.rows.weight.detach()
        assert not torch.equal(after[:3], before[:3])
        # Of those that no record holds, nothing is learned but that they do not come.
        assert torch.equal(after[3], after[4])
        objective = Objective(model)
        batch = collate([canaries[0]], model.tokenizer.pad_token_id, model.device)
        with model.active(), torch.inference_mode():
            learned = objective.scores(batch)[0, vocabulary:]
        assert learned[0] > learned[3] + 0.1


def rows_of(model: Model, objective: Objective):
    first = first_new(model.module)

    def losses_of(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        made = []
        for row, size in zip(ids, mask.sum(1).tolist(), strict=True):
            own = row[:size].numpy().astype("int32").copy()
            own[-1] = first + int(own[-1]) % NEW
            made.append(Tokens(ids=own, target=torch.arange(size).numpy() > 0, text=""))
        return objective.rows(collate(made, model.tokenizer.pad_token_id, model.device))

    return losses_of


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("mode", ["book-keeping", "two-backward"])
def test_units_are_clipped_over_them_too(make_model, shape, method, mode):
    model = attach(fresh(make_model(shape)), METHODS[method], 0)
    model.module.double()
    with extra_rows(model.module, initial_rows(model.module, NEW)):
        clipper = Clipper(model.module, Clipping(norm=0.5), mode=mode)
        name = f"{EXTRA}.rows.weight"
        assert name in clipper.parameters
        batch = synthetic(first_new(model.module), 16, 2, model.device)
        losses = rows_of(model, Objective(model, picks=False))
        assert self_test(clipper, losses, batch=batch) < 1e-8
        # What was compared is more than nothing.
        with clipper:
            norms = clipper.add(lambda: losses(*batch), units=2)
        assert (clipper.squares[name].sqrt() > 1).all() and (norms > clipper.squares[name].sqrt()).all()


def test_rows_that_escape_their_rule_are_found(make_model, monkeypatch):
    # The same logits, but of the weight itself and not of the module that has a rule.
    monkeypatch.setattr(
        ExtraRows, "append", lambda self, module, args, out: torch.cat([out, args[0] @ self.rows.weight.t()], -1)
    )
    model = attach(fresh(make_model()), METHODS["lora"], 0)
    with extra_rows(model.module, initial_rows(model.module, NEW)):
        losses = rows_of(model, Objective(model, picks=False))
        clipper = Clipper(model.module, Clipping(norm=0.5))
        with pytest.raises(DPError, match=EXTRA):
            self_test(clipper, losses, batch=synthetic(first_new(model.module), 16, 2, model.device))
