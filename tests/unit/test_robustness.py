"""Attempts to bring back what was forgotten: figures against loops over single records, and what cannot be tried."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from sordino.config import MethodConfig, load
from sordino.errors import UnlearningError
from sordino.model import attach, restore, save, save_combined, weights_digest
from sordino.model import load as load_model
from sordino.records import Message, Record
from sordino.records.store import load as load_split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.stats import Interval
from sordino.train.flow import fine_tune
from sordino.unlearn.base import Deletion
from sordino.unlearn.robustness import (
    ATTACKS,
    BEFORE,
    REWORDINGS,
    Attacked,
    measure,
    prompts,
    quantised,
    relearning,
    two_checkpoints,
)
from sordino.unlearn.robustness.attacked import Sample, auc_of, difference
from sordino.unlearn.robustness.prompts import reworded
from sordino.unlearn.robustness.relearning import halves, parted, with_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")


def _run(make_model, folder, **method):
    model = make_model("llama")
    save(model, folder / "base")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(200)]
    rows = [
        {"prompt": f"What does {words[i]} like?", "completion": " ".join(rng.choice(words, 4)), "who": f"u{i // 2}"}
        for i in range(80)
    ]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = load(
        values={
            "data": {"path": str(folder / "x.jsonl"), "unit": "who"}, "out": str(folder / "runs"),
            "model": {"path": str(folder / "base"), "device": "cpu"}, "canaries": {"per_level": 0},
            "split": {"candidates": 0.6, "near_duplicates": 0}, "method": {"rank": 4, "alpha": 8, **method},
            "train": {"epochs": 8, "batch_size": 8, "learning_rate": 0.02, "max_length": 60},
        },
        environment={},
    )  # fmt: skip
    return fine_tune(config)


def _deletion(run, units=5):
    split = load_split(run.records)
    names = tuple(dict.fromkeys(e.record.unit for e in split.examples if e.role == "candidate" and e.included))[:units]
    left = [e for e in split.examples if e.record.unit not in names]
    return Deletion(
        run=run,
        request=DeletionRequest(id="r1", created="now", run=run.path.name, kind="subject", names=names),
        forget=[e for e in split.training if e.record.unit in names],
        others=[],
        retain=[e for e in left if e.included],
        never=[e for e in left if e.role == "candidate" and not e.included],
        validation=[e for e in left if e.role == "validation"],
        left=dataclasses.replace(split, examples=left),
    )


def _child(deletion, folder, write):
    """A run with the weights that `write` puts into a folder."""
    run = Run(folder)
    run.private.mkdir(parents=True)
    write(run.weights)
    card = deletion.run.card
    run.write_card(dataclasses.replace(card, model={**card.model, "weights": weights_digest(run.weights)}))
    return run


@pytest.fixture(scope="module")
def deletion(make_model, tmp_path_factory):
    """A request on a run that knows its records by heart."""
    return _deletion(_run(make_model, tmp_path_factory.mktemp("robust")))


@pytest.fixture(scope="module")
def nothing_done(deletion, tmp_path_factory):
    """The model as it was, as one that is to have forgotten."""

    def copy(folder):
        config = deletion.config
        save(restore(config.model, config.method, deletion.run.weights), folder)

    child = _child(deletion, tmp_path_factory.mktemp("same") / "child", copy)
    return Attacked(child=child, deletion=deletion, folder=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def never_trained(deletion, tmp_path_factory):
    """The model before it was tuned, as one that has forgotten everything."""

    def fresh(folder):
        config = deletion.config
        save(attach(load_model(config.model), config.method, seed=1), folder)

    child = _child(deletion, tmp_path_factory.mktemp("fresh") / "child", fresh)
    return Attacked(child=child, deletion=deletion, folder=tmp_path_factory.mktemp("work"))


def _loss(model, tokens):
    with torch.no_grad(), model.active() as module:
        logs = module(input_ids=torch.from_numpy(tokens.ids.astype(np.int64))[None]).logits[0].double().log_softmax(-1)
    where = np.flatnonzero(tokens.target[1:])
    return -float(np.mean([logs[i, int(tokens.ids[i + 1])] for i in where]))


def _auc(inside, outside):
    return np.mean([[(a > b) + (a == b) / 2 for b in outside] for a in inside])


def test_what_was_not_forgotten_comes_back_sooner_than_what_is_new(nothing_done, never_trained):
    kept, gone = relearning(nothing_done), relearning(never_trained)
    assert kept.estimate.low > 0 and kept.curve[0][1] > 0.9
    assert gone.estimate.low < 0 < gone.estimate.high
    assert [step for step, _ in kept.curve] == [step for step, _ in kept.control]
    assert kept.curve[0][0] == 0 and len(kept.curve) >= 2
    assert not list(nothing_done.folder.iterdir())
    again = relearning(dataclasses.replace(nothing_done, spent={"tokens": 0, "forwards": 0}))
    assert again.curve == kept.curve and again.estimate == kept.estimate


def test_halves_share_units_and_nobody_else(nothing_done):
    rng = np.random.default_rng(0)
    first, second = halves(nothing_done.forget, rng)
    ids = [{e.record.id for e in one.examples} for one in (first, second)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == len(nothing_done.forget)
    assert sorted(first.group) == sorted(second.group)  # two records a unit
    control, rest = parted(nothing_done.never, 6, rng)
    assert 6 <= len(control) <= 7 and not set(control.group) & set(rest.group)
    assert len(control) + len(rest) == len(nothing_done.never)
    with pytest.raises(UnlearningError, match="cannot be parted"):
        halves(nothing_done.forget.chosen([0]), rng)
    with pytest.raises(UnlearningError, match="too few to part"):
        parted(nothing_done.never.chosen([0, 1]), 2, rng)


@pytest.mark.parametrize("kind", ["lora", "full", "bitfit", "ia3", "prompt", "combined"])
def test_an_attackers_adapter_lies_over_all_that_the_model_is(make_model, tmp_path, kind):
    method = MethodConfig(rank=2, alpha=4) if kind in ("lora", "combined") else MethodConfig(kind=kind)
    model = attach(make_model("llama"), method, seed=0)
    ids = torch.arange(9)[None]
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    if kind == "combined":
        from sordino.model.combined import restore_combined

        save(model, tmp_path / "part")
        save_combined(tmp_path / "w", "whp", dict.fromkeys(("model", "reinforced"), tmp_path / "part"), {"alpha": 0.5})
        model = dataclasses.replace(restore_combined(make_model("llama"), tmp_path / "w"), method=method)
    before = model.module(input_ids=ids).logits.detach()
    attacked = with_adapter(model, method, seed=3)
    torch.testing.assert_close(attacked.module(input_ids=ids).logits, before, atol=1e-6, rtol=1e-6)
    tuned = {n: p for n, p in attacked.module.named_parameters() if p.requires_grad}
    assert tuned and (kind in ("bitfit", "ia3", "prompt") or all("lora_" in n for n in tuned))
    if kind in ("lora", "combined"):
        assert all(".relearned." in n for n in tuned)
    optimizer = torch.optim.SGD(tuned.values(), lr=0.5)
    for _ in range(2):  # at first, B is 0, and A has no gradient
        optimizer.zero_grad()
        attacked.module(input_ids=ids).logits.square().mean().backward()
        assert all(p.grad is not None for p in tuned.values())
        optimizer.step()
    assert not torch.allclose(attacked.module(input_ids=ids).logits, before, atol=1e-4)


def test_two_checkpoints_are_the_rise_of_each_records_loss(nothing_done, never_trained):
    assert two_checkpoints(nothing_done).estimate.value == 0.5  # nothing rose
    found = two_checkpoints(never_trained)
    models = [never_trained.load(never_trained.deletion.run), never_trained.load()]
    rise = [
        [_loss(models[1], t) - _loss(models[0], t) for t in sample.tokens]
        for sample in (never_trained.forget, never_trained.never, never_trained.retain)
    ]
    assert found.estimate.value == pytest.approx(_auc(rise[0], rise[1]), abs=1e-9)
    assert f"that stay, by the same score: {_auc(rise[2], rise[1]):.3g}" in found.note
    assert found.estimate.low <= found.estimate.value <= found.estimate.high


def test_prompts_are_the_likeliest_of_all_wordings(never_trained, nothing_done):
    found = prompts(nothing_done)
    model, worded = nothing_done.load(), []
    for sample in (nothing_done.forget, nothing_done.never):
        worded.append(
            [
                [_loss(model, nothing_done.encode(r)) for r in (e.record, *reworded(e.record).values())]
                for e in sample.examples
            ]
        )
    plain = _auc(*([-row[0] for row in rows] for rows in worded))
    best = _auc(*([-min(row) for row in rows] for rows in worded))
    assert found.estimate.value == pytest.approx(best - plain, abs=1e-9)
    assert f"plain {plain:.3f}" in found.note and f"likeliest {best:.3f}" in found.note
    for k, name in enumerate(REWORDINGS, 1):
        assert f"{name} {_auc(*([-row[k] for row in rows] for rows in worded)):.3f}" in found.note
    same = prompts(nothing_done, paraphrases=lambda record: [record])
    assert f"paraphrase 1 {plain:.3f}" in same.note and same.estimate.value == found.estimate.value
    # Where only those who are to be forgotten have paraphrases, more attempts at them would be no finding.
    ours = {e.record.id for e in nothing_done.forget.examples}
    apart = prompts(nothing_done, paraphrases=lambda record: [record] * (record.id in ours))
    assert "paraphrase" not in apart.note and apart.estimate == found.estimate


def test_rewordings_keep_the_answer_and_change_the_question():
    asked = Record(id="a", unit="a", messages=(Message("user", "Who?"), Message("assistant", "Me.")))
    for name, record in reworded(asked).items():
        assert record.messages[1] == asked.messages[1] and record.messages[0].content == REWORDINGS[name]("Who?")
    told = Record(id="a", unit="a", messages=(Message("text", "All of it."),))
    for name, record in reworded(told).items():
        assert record.messages == (Message("prompt", BEFORE[name]), Message("completion", "All of it."))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_rounded_and_the_rest_is_arithmetic(nothing_done, bits):
    pytest.importorskip("torchao", reason="needs torchao")
    from sordino.unlearn.robustness.quantised import quantise

    found = quantised(nothing_done, bits)
    model = nothing_done.load()
    sides = (nothing_done.forget, nothing_done.never)
    before = _auc(*([-_loss(model, t) for t in side.tokens] for side in sides))
    merged = model.module.merge_and_unload(safe_merge=True)
    exact = {n: p.detach().clone() for n, p in merged.named_parameters()}
    quantise(merged, bits)
    levels, changed = 2**bits, 0
    for name, module in merged.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight, wanted = module.weight, exact[f"{name}.weight"]
        if name == "lm_head":
            assert torch.equal(weight, wanted)
            continue
        weight = weight.dequantize()
        rows = weight if bits == 8 or wanted.shape[1] % 32 else weight.reshape(-1, 32)
        spans = wanted.reshape(rows.shape).abs().amax(1)
        assert all(len(row.unique()) <= levels for row in rows)
        step = 2 * spans / (levels - 2)
        assert ((rows - wanted.reshape(rows.shape)).abs() <= step[:, None] * 1.01).all()
        changed += 1
        with torch.no_grad():
            module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    assert changed == 14
    plain = dataclasses.replace(model, module=merged)
    after = _auc(*([-_loss(plain, t) for t in side.tokens] for side in sides))
    assert found.estimate.value == pytest.approx(after - before, abs=1e-3)
    assert f"AUC before {before:.3f}" in found.note and f"int{bits} weights only" in found.note


@pytest.mark.parametrize("shape", ["gpt2", "gpt_neox"])
def test_other_families_are_quantised_below_their_heads(make_model, shape):
    pytest.importorskip("torchao", reason="needs torchao")
    from sordino.unlearn.robustness.quantised import quantise

    model, ids = make_model(shape), torch.arange(12)[None]
    before, head = model.module(input_ids=ids).logits.detach(), model.module.get_output_embeddings().weight.clone()
    assert "of 8 layers" in quantise(model.module, 8)
    after = model.module(input_ids=ids).logits.detach()
    assert torch.equal(model.module.get_output_embeddings().weight, head)
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()


def test_a_base_that_adapters_share_is_quantised_below_them(make_model, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao")
    from sordino.model.combined import restore_combined
    from sordino.unlearn.robustness.quantised import quantise

    tuned, ids = attach(make_model("llama"), MethodConfig(rank=2, alpha=4), seed=0), torch.arange(9)[None]
    save(tuned, tmp_path / "part")
    save_combined(tmp_path / "w", "whp", dict.fromkeys(("model", "reinforced"), tmp_path / "part"), {"alpha": 0.5})
    module = restore_combined(make_model("llama"), tmp_path / "w").module
    before, lora = module(input_ids=ids).logits.detach(), {n: p for n, p in module.named_parameters() if "lora_" in n}
    exact = {n: p.clone() for n, p in lora.items()}
    assert "of 14 layers" in quantise(module, 8)
    assert all(torch.equal(p, exact[n]) for n, p in lora.items()) and len(lora) == 4 * 14
    assert 0 < (module(input_ids=ids).logits - before).abs().max() < 0.1 * before.abs().max()


def test_without_its_library_quantisation_is_missing_and_not_passed(nothing_done, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    said = []
    found = measure(nothing_done.child, nothing_done.deletion, tmp_path, attacks=["int8"], say=said.append)
    assert not found.found and "torchao" in found.missing["int8"] and "not tried" in said[0]
    assert not list(tmp_path.iterdir())


def test_each_attack_is_kept_and_not_tried_again(nothing_done, tmp_path, monkeypatch):
    child, deletion = nothing_done.child, nothing_done.deletion
    names = ["relearning", "prompts", "two_checkpoints"]
    first = measure(child, deletion, tmp_path / "w", attacks=names, seed=5)
    assert [r.name for r in first.found] == names and first.cost.tokens > 0 and first.cost.forwards > 0
    files = sorted(p.name for p in (tmp_path / "w").iterdir())
    assert files == [f"robustness-{n}.json" for n in sorted(names)]
    assert all((tmp_path / "w" / f).stat().st_mode & 0o077 == 0 for f in files)
    units = {u for e in (*deletion.forget, *deletion.never) for u in (e.record.id, e.record.messages[1].content)}
    assert not any(u in (tmp_path / "w" / f).read_text() for f in files for u in units)
    monkeypatch.setattr(Attacked, "load", lambda *_: pytest.fail("a model was loaded"))
    assert measure(child, deletion, tmp_path / "w", attacks=names, seed=5) == first
    with pytest.raises(BaseException, match="a model was loaded"):
        measure(child, deletion, tmp_path / "w", attacks=names, seed=6)


def test_samples_are_drawn_by_the_seed_and_bounded(nothing_done):
    few = [dataclasses.replace(nothing_done, most=7, seed=s).retain for s in (1, 1, 2)]
    assert len(few[0]) == 7 and [e.record.id for e in few[0].examples] == [e.record.id for e in few[1].examples]
    assert [e.record.id for e in few[0].examples] != [e.record.id for e in few[2].examples]


def test_what_cannot_be_attacked_is_refused(nothing_done, tmp_path):
    child, deletion = nothing_done.child, nothing_done.deletion
    with pytest.raises(UnlearningError, match="relerning"):
        measure(child, deletion, tmp_path, attacks=["relerning"])
    assert set(ATTACKS) == {"relearning", "int8", "int4", "prompts", "two_checkpoints"}
    none = measure(child, dataclasses.replace(deletion, never=[]), tmp_path / "n", attacks=["prompts", "relearning"])
    assert not none.found and all("nothing to compare" in why for why in none.missing.values())
    with pytest.raises(UnlearningError, match="Allowed: from 2"):
        dataclasses.replace(nothing_done, most=1)
    other = _child(deletion, tmp_path / "other", lambda folder: save(nothing_done.load(), folder))
    (other.weights / "adapter_config.json").write_text("{}")
    with pytest.raises(UnlearningError, match="not those that its card names"):
        measure(other, deletion, tmp_path / "w")


def test_limits_of_differences_add_in_squares():
    def of(value, half):
        return Interval(value=value, low=value - half, high=value + half, n=9, method="x")

    found = difference(of(0.8, 0.03), of(0.5, 0.04))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.25, 0.35)) and found.n == 9
    # Limits that are not symmetric: each side takes what makes the difference smaller, or larger.
    left = Interval(value=0.9, low=0.6, high=0.95, n=4, method="x")
    found = difference(left, of(0.5, 0.1))
    assert found.low == pytest.approx(0.4 - np.hypot(0.3, 0.1)) and found.high == pytest.approx(
        0.4 + np.hypot(0.05, 0.1)
    )


def test_clustered_intervals_cover_what_they_should(nothing_done):
    rng, hits = np.random.default_rng(0), 0
    record = nothing_done.forget

    def sample(units):
        return Sample(examples=record.examples[:1] * 2 * units, tokens=(), group=np.repeat(np.arange(units), 2))

    for _ in range(300):
        scores = [np.repeat(rng.normal(size=u), 2) + rng.normal(size=2 * u) for u in (20, 30, 20, 30)]
        found = difference(*(auc_of(scores[k], scores[k + 1], sample(20), sample(30)) for k in (0, 2)))
        hits += found.low <= 0 <= found.high
    assert 0.91 < hits / 300 < 1
