"""Methods that change what a model answers with and not its weights: whp and uld, against plain arithmetic."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from forgetting_fixtures import child_of, deletion_of, learned, rows

from sordino.audit.collecting import Collector
from sordino.collect import collect
from sordino.errors import ConfigError, UnlearningError
from sordino.export import export
from sordino.model import load as load_model
from sordino.model import on_adapter, restore, save, weights_digest
from sordino.run import Run
from sordino.train.checkpoint import save_checkpoint
from sordino.unlearn.base import finish_child
from sordino.unlearn.measuring.scoring import score
from sordino.unlearn.methods import discover
from sordino.unlearn.robustness.attacked import loss_of
from sordino.unlearn.tuning import second
from sordino.unlearn.tuning.opening import pieces, reopen

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
SETTINGS = {
    "whp": {"learning_rate": 1e-2, "epochs": 10, "batch_size": 4, "alpha": 2.0},
    "uld": {"learning_rate": 1e-2, "epochs": 10, "batch_size": 4, "weight": 0.8, "filter": 0.01, "beta": 20.0},
}


@pytest.fixture(scope="module")
def deletion(make_model, tmp_path_factory):
    """Four subjects of a run that learned its answers are to go."""
    folder = tmp_path_factory.mktemp("inference")
    save(make_model("llama", context=96), folder / "model")
    return deletion_of(learned(folder, folder / "model", rows=rows(40)))


def _made(deletion, name, **more):
    child = child_of(deletion, name, **{**SETTINGS[name], **more})
    method = discover()[name]
    cost = method.run(deletion, child)
    return finish_child(deletion, dataclasses.replace(child), method, cost), cost


def _mean(model, serializer, examples):
    return float(loss_of(collect(model, pieces(examples, serializer))).mean())


@pytest.mark.parametrize("name", ["whp", "uld"])
def test_forgotten_records_become_unlikely_and_others_do_not(deletion, name):
    run, cost = _made(deletion, name)
    config = deletion.config
    opened = reopen(deletion)
    after = restore(config.model, config.method, run.weights)
    rise = {
        what: _mean(after, opened.serializer, examples) - _mean(opened.model, opened.serializer, examples)
        for what, examples in (("forget", deletion.forget), ("retain", deletion.retain))
    }
    assert rise["forget"] > 0.5 and rise["retain"] < rise["forget"] / 2
    assert run.card.unlearning["inference"] == "2 forward passes a token"
    assert any("can read out" in notice.message for notice in run.card.notices)
    stays = len(deletion.left.training)
    anew = deletion.run.card.training["tokens"] * stays / (stays + len(deletion.forget))
    assert cost.tokens > 0 and cost.share == pytest.approx(cost.tokens / anew)
    targets = sum(int(t.target[1:].sum()) for t in pieces(deletion.forget, opened.serializer))
    if name == "whp":
        assert cost.tokens == SETTINGS[name]["epochs"] * targets
    assert sorted(p.name for p in run.weights.glob("part*")) == ["part0", "part1"]
    assert not list(run.private.glob("unlearning*"))
    assert after.base().digest() == run.card.model["base"]
    # The first part is the run's own adapter, and the logits are the rule's on both.
    own = weights_digest(deletion.run.weights)
    models = [on_adapter(load_model(config.model), run.weights / f"part{k}") for k in (0, 1)]
    assert own == deletion.run.card.model["weights"]
    ids = torch.from_numpy(pieces(deletion.forget, opened.serializer)[0].ids.astype(np.int64))[None]
    with torch.no_grad():
        before = opened.model.module.eval()(input_ids=ids).logits
        z, other = (m.module.eval()(input_ids=ids).logits for m in models)
        found = after.module(input_ids=ids).logits
    torch.testing.assert_close(z, before)
    wanted = z - 2.0 * (other - z).clamp(min=0)
    if name == "uld":
        p = z.softmax(-1)
        few = torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.topk(int(0.01 * z.shape[-1])).indices, True)
        likely = (p >= 0.01 * p.amax(-1, keepdim=True)) | few
        wanted = torch.where(likely, z - 0.8 * (other - other.mean(-1, keepdim=True)), z)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_scores_and_the_collector_read_the_combined_model_and_export_says_what_to_do(deletion, tmp_path):
    run, _ = _made(deletion, "whp", epochs=2)
    opened = reopen(deletion)
    after = restore(deletion.config.model, deletion.config.method, run.weights)
    scores = score(run, deletion, generate=True, folder=tmp_path / "signals")
    alone = [_mean(after, opened.serializer, [e]) for e in deletion.forget]
    assert scores.forget["loss"] == pytest.approx(alone, abs=1e-4)
    assert len(scores.forget["rouge_l"]) == len(deletion.forget)
    signals, base = Collector(run).signals(deletion.retain[:3], {})
    assert signals.nll == pytest.approx([_mean(after, opened.serializer, [e]) for e in deletion.retain[:3]], abs=1e-4)
    assert base is not None
    with pytest.raises(ConfigError, match="several adapters that are read as one"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["whp", "uld"])
def test_a_killed_training_goes_on_bit_for_bit(deletion, name, monkeypatch):
    child = child_of(deletion, name, **SETTINGS[name])
    method = discover()[name]
    method.run(deletion, child)
    whole = weights_digest(child.run.weights)
    shutil.rmtree(child.run.weights)

    def killed(folder, *args, **more):
        save_checkpoint(folder, *args, **more)
        if folder.name == "last":
            raise KeyboardInterrupt

    # As soon as a checkpoint is there; the next attempt goes on from it.
    with monkeypatch.context() as patched:
        patched.setattr("sordino.train.loop.save_checkpoint", killed)
        patched.setattr(second, "_EVERY", 3)
        with pytest.raises(KeyboardInterrupt):
            method.run(deletion, child)
    folder = child.run.private / "unlearning"
    assert (folder / "private" / "checkpoints" / "last" / "progress.json").exists() and not child.run.weights.exists()
    method.run(deletion, child)
    assert weights_digest(child.run.weights) == whole


def test_the_uniform_loss_is_that_of_torch_and_0_where_all_is_alike():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    found = second.uniform_loss(logits)
    uniform = torch.full((7, 11), 1 / 11, dtype=torch.float64)
    wanted = torch.nn.functional.kl_div(logits.log_softmax(-1), uniform, reduction="batchmean")
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - 1 / 11).detach() / 7)
    assert float(second.uniform_loss(torch.full((2, 5), 3.0))) == pytest.approx(0, abs=1e-6)


def test_an_assistants_steps_are_its_loss_on_one_record_after_the_other(deletion):
    from sordino.train.objective import Objective
    from sordino.unlearn.tuning.retaining import Retained
    from sordino.unlearn.tuning.steps import Epochs

    opened = reopen(deletion)
    forget = pieces(deletion.forget, opened.serializer)
    retained = Retained(deletion.retain, opened.serializer, 3)
    epochs = Epochs(lengths=[len(t) for t in forget], epochs=2, batch_size=3, seed=3)
    steps = second.Reversed(opened=opened, forget=forget, retained=retained, beta=5.0, epochs=epochs)
    assert steps.steps == len(list(steps.batches(0))) == 2 * math.ceil(len(forget) / 3)
    (_, earlier), (number, indices), *_ = steps.batches(0)
    opened.model.module.eval()
    with torch.no_grad():
        (first, read), (other, more) = steps.parts(number, indices, Objective(opened.model))
    wanted, uniform = [], []
    for group, out in (([forget[i] for i in indices], wanted), (retained.take(len(earlier), len(indices)), uniform)):
        for item in group:
            ids = torch.from_numpy(item.ids.astype(np.int64))
            with torch.no_grad():
                logs = opened.model.module(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            for place in np.flatnonzero(item.target[1:]):
                row = logs[place]
                out.append(float(-row[ids[place + 1]] if out is wanted else -row.mean() - math.log(len(row))))
    assert float(first) == pytest.approx(np.mean(wanted), rel=1e-5) and read == len(wanted)
    assert float(other) == pytest.approx(5 * np.mean(uniform), rel=1e-5) and more == len(uniform)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("whp", {"alpha": 0}, "alpha of whp is 0"),
        ("whp", {"alpha": -1}, "alpha"),
        ("whp", {"alfa": 1}, "alfa"),
        ("uld", {"weight": 0}, "weight of uld is 0"),
        ("uld", {"filter": 2}, "filter of uld is 2"),
        ("uld", {"beta": 0}, "beta"),
        ("whp", {"learning_rate": 0.0}, "No weight was changed"),
        ("uld", {"epochs": 0}, "epochs"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(deletion, name, settings, message):
    with pytest.raises(UnlearningError, match=message):
        _made(deletion, name, **settings)


def test_what_has_no_one_adapter_is_refused(deletion, tmp_path):
    run, _ = _made(deletion, "whp", epochs=1)
    again = dataclasses.replace(deletion, run=run)
    with pytest.raises(UnlearningError, match="several adapters"):
        discover()["uld"].run(again, child_of(again, "uld", **SETTINGS["uld"]))
    with pytest.raises(UnlearningError, match="no record to forget"):
        discover()["whp"].run(dataclasses.replace(deletion, forget=[]), child_of(deletion, "whp", **SETTINGS["whp"]))
    card = deletion.run.card
    full = Run(tmp_path / "full")
    full.path.mkdir()
    full.write_card(dataclasses.replace(card, config={**card.config, "method": {"kind": "full"}}))
    with pytest.raises(UnlearningError, match="tuned by method full"):
        discover()["whp"].run(dataclasses.replace(deletion, run=full), child_of(deletion, "whp", **SETTINGS["whp"]))
