"""Attacks that score other texts: neighbours, prefixes, self-prompt references, on a model that knows its members."""

import dataclasses

import numpy as np
import pytest
import torch

from sordino.attacks.base import find
from sordino.audit.collecting import Collector
from sordino.audit.flow import audit
from sordino.audit.inputs import Context, lacking, provide
from sordino.audit.neighbouring import generator, mean_nll, neighbours_of, replaced_places, substituted
from sordino.audit.shots import shots_of
from sordino.collect import collect
from sordino.config import load
from sordino.errors import RunError
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import AuditPlan, InputPlan
from sordino.serialize import Tokens
from sordino.stats import auc
from sordino.train.flow import fine_tune

WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "juniper", "kelp", "larch",
    "maple", "nutmeg", "onyx", "poplar",
)  # fmt: skip
INPUTS = InputPlan(neighbours=4, shots=3, known=40)
NAMES = ("neighbourhood", "spv", "recall", "con_recall", "quantile")


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A run of a random model on made-up texts, tuned until it knows them by heart."""
    folder, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(5)
    save(make_model("llama", seed=3, context=128), folder / "base")
    rows = [" ".join(rng.choice(WORDS, 7)) for _ in range(70)]
    (folder / "data.csv").write_text("\n".join(["text", *rows]) + "\n")
    values = {
        "model": {"path": str(folder / "base"), "device": "cpu"}, "method": {"kind": "full"},
        "data": {"path": str(folder / "data.csv")}, "out": str(folder / "runs"), "canaries": {"per_level": 0},
        "split": {"candidates": 0.6, "validation": 0.3, "near_duplicates": 0}, "audit": {"shuffles": 99, "fpr": [0.1]},
        "train": {"epochs": 25, "learning_rate": 5e-3, "batch_size": 16},
    }  # fmt: skip
    return fine_tune(load(values=values, environment={}))


def context_of(run, settings=INPUTS, *, examples=None, seed=3):
    """What the audit gives the inputs: the candidates, and all others whose membership is known."""
    placed = load_split(run.records)
    known = [e for e in placed.examples if e.role in ("train", "validation")]
    return Context(
        collector=Collector(run), examples=list(placed.candidates) if examples is None else examples, known=known,
        plan=AuditPlan(inputs=settings), seed=seed,
    )  # fmt: skip


def given(context, names):
    """Signals with inputs, of the tuned and of the untuned model."""
    return provide(names, context, context.collector.signals(context.examples, {}))


@pytest.fixture(scope="module")
def context(run):
    return context_of(run)


@pytest.fixture(scope="module")
def pair(context):
    wanted = {name for attack in NAMES for name in find("membership", attack).inputs}
    assert lacking(wanted, context) == ""
    return given(context, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_its_members_is_found_out_and_its_base_is_not(name, context, pair):
    attack = find("membership", name)
    member = np.array([e.included for e in context.examples])
    tuned, untuned = (auc(attack(signals), member) for signals in pair)
    least = {"recall": 0.6, "con_recall": 0.6}.get(name, 0.8)
    assert tuned > least
    inside, outside = member.sum(), (~member).sum()
    assert abs(untuned - 0.5) <= 4 * np.sqrt((len(member) + 1) / (12 * inside * outside))


def test_a_second_audit_runs_no_model(run, context, pair, monkeypatch):
    def never(*args, **more):
        raise AssertionError("a model was run")

    monkeypatch.setattr("sordino.model.restore", never)
    monkeypatch.setattr("sordino.model.load", never)
    other = context_of(run)
    wanted = {name for attack in NAMES for name in find("membership", attack).inputs}
    again = given(other, wanted)
    assert other.collector.forwards == 0
    for first, second in zip(pair, again, strict=True):
        for name, rows in first.measured.items():
            np.testing.assert_array_equal(second.measured[name], rows)
    assert other.notes == context.notes


def test_what_was_done_stands_beside_the_results(run, pair):
    report = audit(run, attacks=["neighbourhood", "recall"], inputs=INPUTS)
    said = {a.name: " ".join(a.notes) for a in report.attempts}
    assert "drawn by the untuned model" in said["neighbourhood"]
    assert "3 of 3 known non-members" in said["recall"]
    assert not said["reference"]


# Neighbours.


@pytest.mark.parametrize(
    ("count", "share", "span"), [(20, 0.3, 2), (7, 0.5, 3), (1, 0.3, 2), (50, 1.0, 4), (9, 0.05, 2)]
)
def test_so_many_places_are_replaced_and_in_spans(count, share, span):
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = replaced_places(count, share, span, rng)
        assert len(places) == len(set(places.tolist())) == max(1, round(share * count))
        assert set(places.tolist()) <= set(range(count))
    # Every token can be the one that is replaced.
    seen = np.concatenate([replaced_places(count, share, span, rng) for _ in range(400)])
    assert set(seen.tolist()) == set(range(count))


def test_neighbours_are_as_long_and_differ_in_likely_tokens_only(context):
    from sordino.collect import likeliest

    _, texts = neighbours_of(context)
    collector, count = context.collector, INPUTS.neighbours
    special = collector.serializer.tokenizer.all_special_ids
    for number, example in list(enumerate(context.examples))[:10]:
        own = collector.encode(example)
        likely, _ = likeliest(collector.reader.untuned, [own], 14)
        free = int((own.target & ~np.isin(own.ids, special)).sum())
        mine = texts[number * count : (number + 1) * count]
        assert len({t.ids.tobytes() for t in mine}) > 1
        for text in mine:
            changed = np.flatnonzero(text.ids != own.ids)
            assert len(changed) == max(1, round(0.3 * free))
            assert own.target[changed].all() and not np.isin(text.ids[changed], special).any()
            np.testing.assert_array_equal(text.target, own.target)
            rows = np.searchsorted(np.flatnonzero(own.target), changed)
            assert all(token in row for token, row in zip(text.ids[changed], likely[rows], strict=True))


def test_neighbours_follow_from_what_a_record_says_not_from_where_it_stands(run, context):
    chosen = context.examples[:6]
    twin = dataclasses.replace(chosen[2], record=dataclasses.replace(chosen[2].record, id="twin"))
    mixed = [chosen[4], twin, chosen[0], chosen[2]]
    first, second = (
        np.array_split(np.array(neighbours_of(context_of(run, examples=e))[1], dtype=object), len(e))
        for e in (chosen, mixed)
    )
    for here, there in ((1, 2), (3, 2), (0, 4), (2, 0)):
        assert [t.ids.tolist() for t in second[here]] == [t.ids.tolist() for t in first[there]]
    assert generator(context, chosen[0]).random() != generator(context_of(run, seed=4), chosen[0]).random()


def test_a_record_without_a_token_to_replace_is_its_own_neighbour():
    item = Tokens(ids=np.array([0, 1], dtype=np.int32), target=np.array([False, True]), text="")
    likely, logs = np.array([[5, 6, 7]], dtype=np.int32), np.zeros((1, 3), dtype=np.float32)
    made = substituted(item, likely, logs, np.array([0, 1]), INPUTS, np.random.default_rng(0))
    assert [t.ids.tolist() for t in made] == [[0, 1]] * 4


def test_the_mean_is_of_every_text_whatever_company_it_is_in(context):
    items = [context.collector.encode(e) for e in context.examples[:20]]
    model = context.collector.reader.untuned
    together = mean_nll(items, lambda some: collect(model, some))
    alone = [float(mean_nll([item], lambda some: collect(model, some))[0]) for item in items]
    np.testing.assert_allclose(together, alone, atol=1e-5)


# Prefixes.


def test_a_prefix_is_of_records_that_are_never_judged_and_begins_once(context):
    for purpose, pool in (("prefixes", context.nonmembers), ("member_prefixes", context.members)):
        shots = shots_of(context, pool, purpose)
        tokenizer = context.collector.serializer.tokenizer
        text = tokenizer.decode(shots.ids, skip_special_tokens=True)
        assert shots.count == 3 and not shots.cut
        assert sum(e.record.messages[0].content in text for e in pool) == 3
        assert not any(e.record.messages[0].content in text for e in context.examples)
        assert shots.ids[0] == tokenizer.bos_token_id
        assert not np.isin(shots.ids[1:], [tokenizer.bos_token_id, tokenizer.eos_token_id]).any()


def test_after_a_prefix_is_what_the_whole_text_gives(context, pair):
    shots = shots_of(context, context.nonmembers, "prefixes")
    with context.collector.reader.tuned.active() as module:
        for number in (0, 7, 11):
            item = context.collector.encode(context.examples[number])
            ids = torch.from_numpy(np.concatenate([shots.ids, item.ids[1:]]).astype(np.int64))
            logp = torch.log_softmax(module(input_ids=ids[None]).logits[0].double(), dim=-1)
            own = logp[torch.arange(len(shots.ids) - 1, len(ids) - 1), ids[len(shots.ids) :]]
            found = pair[0].measured["prefixes"][number]
            assert abs(float(own.mean()) - found[0]) <= 1e-5
            assert abs(-pair[0].nll[number] - found[1]) <= 1e-6


def test_what_does_not_fit_is_fewer_shots_then_less_of_the_records(run, context, monkeypatch):
    monkeypatch.setattr("sordino.audit.shots._context", lambda context: 60)
    small = context_of(run)
    signals, _ = given(small, {"prefixes"})
    longest = max(len(small.collector.encode(e)) for e in small.examples)
    shots = shots_of(small, small.nonmembers, "prefixes")
    assert shots.count < 3 and len(shots.ids) + shots.room == 60
    said = " ".join(small.notes["prefixes"])
    assert f"{shots.count} of 3" in said
    if longest - 1 > shots.room:
        assert "their beginning was scored" in said
    assert np.isfinite(signals.measured["prefixes"]).all()
    # Without the prefix, the mean is over the same tokens as with it.
    item = small.collector.encode(small.examples[0])
    kept = int(item.target[1 : 1 + shots.room].sum())
    start = signals.statistics.offsets[0]
    np.testing.assert_allclose(
        signals.measured["prefixes"][0, 1], signals.statistics.logprob[start : start + kept].mean(), rtol=1e-5
    )


# Self-prompt references.


def test_a_reference_is_kept_whole_and_refused_where_it_was_changed(run, context, pair):
    notes = sorted((run.private / "references").glob("*/reference.json"))
    assert len(notes) == 2  # one for each model
    assert not list((run.private / "references").glob("*/private/checkpoints"))
    other = dataclasses.replace(INPUTS, neighbours=2)
    fewer, _ = given(context_of(run, other), {"neighbours", "self_prompt"})
    # The same references: what they say of the records themselves is what they said.
    np.testing.assert_allclose(fewer.measured["self_prompt"][:, 0], pair[0].measured["self_prompt"][:, 0], atol=1e-5)
    for note in notes:
        note.write_text('{"weights": "something else"}')
    with pytest.raises(RunError, match="not as it was trained"):
        given(context_of(run, dataclasses.replace(INPUTS, neighbours=3)), {"neighbours", "self_prompt"})


def test_prompts_are_sixteen_tokens_of_others_and_samples_end_where_the_model_ends_them(context):
    from sordino.audit.self_prompting import PROMPT, recipe_of, samples

    recipe = recipe_of(context)
    assert {e.role for e in recipe.prompts} == {"validation"}
    assert recipe.count == 100 and "known non-members" in context.notes["self_prompt"][0]
    items = [context.collector.encode(e) for e in recipe.prompts]
    written = samples(context, dataclasses.replace(recipe, count=30), "tuned")
    end = context.collector.serializer.tokenizer.eos_token_id
    for number, text in enumerate(written):
        item = items[number % len(items)]
        cut = min(1 + PROMPT, (len(item) + 1) // 2)
        np.testing.assert_array_equal(text.ids[:cut], item.ids[:cut])
        assert cut < len(text) <= len(item) and text.target[cut:].all()
        assert end not in text.ids[:-1]
    again = samples(context, dataclasses.replace(recipe, count=30), "tuned")
    assert [t.ids.tolist() for t in again] == [t.ids.tolist() for t in written]


def test_without_known_non_members_what_is_missing_is_said(run):
    bare = dataclasses.replace(context_of(run), known=[])
    assert "known not to be trained on" in lacking({"prefixes"}, bare)
    assert "known to be trained on" in lacking({"member_prefixes"}, bare)
    assert lacking({"neighbours", "self_prompt"}, bare) == ""
