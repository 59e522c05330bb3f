"""Attacks on labels, text and preferences with models here: what is measured is what the definitions say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_audit_collecting import made, run  # noqa: F401 - fixtures
from test_collect import some_tokens

from sordino.attacks.base import find
from sordino.audit import inputs
from sordino.audit.collecting import Collector
from sordino.audit.inputs.rejected import _other
from sordino.audit.inputs.similarity import _rows
from sordino.collect import collect
from sordino.errors import ConfigError, DataError
from sordino.generate import greedy, sampled
from sordino.records import DataConfig, Message, Record, Split, read
from sordino.records.store import load as load_split
from sordino.records.store import save as save_split
from sordino.results import AuditPlan, InputPlan


def context_of(run, settings=None, seed=3):  # noqa: F811
    collector = Collector(run)
    placed = load_split(run.records)
    plan = replace(AuditPlan(), inputs=settings or InputPlan(samples=2))
    examples = list(placed.candidates)
    return inputs.Context(collector=collector, examples=examples, known=(), plan=plan, seed=seed)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_draws_and_greedy_decoding_do_not_depend_on_company(make_model, shape):
    model = make_model(shape)
    prefixes = [t.ids for t in some_tokens((5, 9, 6, 30, 5, 22, 14))]
    lengths = [4, 7, 3, 5, 6, 2, 8]
    together = sampled(model, prefixes, lengths, seed=1, seeds=range(10, 17))
    apart = [sampled(model, [p], [n], seed=1, seeds=[10 + i])[0] for i, (p, n) in enumerate(zip(prefixes, lengths))]  # noqa: B905
    assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))
    likeliest = greedy(model, prefixes, lengths)
    for prefix, found in zip(prefixes, likeliest, strict=True):
        ids = prefix.astype(np.int64)
        for token in found:
            with torch.no_grad():
                assert int(model.module(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].argmax()) == token
            ids = np.append(ids, token)


def test_samples_of_a_model_here_are_drawn_once_and_score(run, monkeypatch):  # noqa: F811
    context = context_of(run)
    pair = context.collector.signals(context.examples, {})
    before = context.collector.forwards
    tuned, untuned = inputs.provide(["samples"], context, pair)
    assert context.collector.forwards == before + 2
    assert all(len(s) == 2 for s, r in zip(tuned.written.samples, tuned.written.remainders, strict=True) if r)
    assert tuned.written.samples != untuned.written.samples
    assert tuned.reference.written.samples == untuned.written.samples == untuned.reference.written.samples
    for prompt, rest, text in zip(tuned.written.prompts, tuned.written.remainders, tuned.texts, strict=True):
        assert prompt + rest == text
    scores = find("membership", "samia")(tuned)
    assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()
    monkeypatch.setattr("sordino.model.restore", lambda *args: pytest.fail("a model was loaded"))
    again = context_of(run)
    second, _ = inputs.provide(["samples"], again, again.collector.signals(again.examples, {}))
    assert second.written == tuned.written and again.collector.forwards == 0


def test_inputs_of_weights_are_computed_once_for_both_models(run, monkeypatch):  # noqa: F811
    full = run.card.config["method"]["kind"] == "full"
    context = context_of(run)
    pair = context.collector.signals(context.examples, {})
    wanted = ["gradients", "one_step", "similarity", *([] if full else ["tuned_gradients"])]
    assert inputs.lacking(wanted, context) == ""
    assert ("all weights were tuned" in inputs.lacking(["tuned_gradients"], context)) == full
    tuned, untuned = inputs.provide(wanted, context, pair)
    for name in wanted:
        rows, control = tuned.measured[name], untuned.measured[name]
        assert len(rows) == len(tuned) and np.isfinite(rows).all()
        np.testing.assert_array_equal(tuned.reference.measured[name], control)
        assert not np.allclose(rows, control, rtol=1e-4)
    # The loss before the step of an untuned model, its adapter at the first values, is the untuned model's.
    np.testing.assert_allclose(untuned.measured["one_step"][:, 0], untuned.nll, rtol=1e-4)
    np.testing.assert_allclose(tuned.measured["one_step"][:, 0], tuned.nll, rtol=1e-4)
    monkeypatch.setattr("sordino.model.restore", lambda *args: pytest.fail("a model was loaded"))
    again = context_of(run)
    second, _ = inputs.provide(wanted, again, again.collector.signals(again.examples, {}))
    assert again.collector.forwards == 0
    assert all(np.array_equal(second.measured[n], tuned.measured[n]) for n in wanted)


def test_petal_is_a_line_through_the_surrogates_tokens(llama, make_model):
    target, surrogate = (collect(model, some_tokens()) for model in (make_model("llama", seed=3), llama))
    table = llama.module.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    rows = _rows(target, surrogate, table / np.linalg.norm(table, axis=1, keepdims=True))
    signals = find("membership", "petal")
    from sordino.signals import Signals

    names = [str(i) for i in range(10)]
    made_ = Signals(record_ids=names, texts=names, statistics=target, measured={"similarity": rows})
    found = signals(made_)

    def s(statistics, i):
        out = []
        for top, token in zip(statistics.top[a:b], statistics.token[a:b], strict=True):
            x, y = table[top], table[token]
            cosine = 1.0 if top == token else x @ y / np.sqrt((x @ x) * (y @ y))
            out.append(np.log(max(cosine, 1e-16)))
        return np.array(out)

    for i, (a, b) in enumerate(zip(target.offsets[:-1], target.offsets[1:], strict=True)):
        if a == b:
            assert np.isnan(found[i])
            continue
        ours, logprob = s(surrogate, i), surrogate.logprob[a:b].astype(np.float64)
        if np.ptp(ours) < 1e-9:
            np.testing.assert_allclose(found[i], logprob.mean(), rtol=1e-5)
            continue
        slope, intercept = np.polyfit(ours, logprob, 1)
        np.testing.assert_allclose(found[i], (slope * s(target, i) + intercept).mean(), rtol=1e-4)


# Preferences.


def test_rejected_answers_are_read_and_kept(tmp_path):
    chat = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    other = [chat[0], {"role": "assistant", "content": "no idea"}]
    for rows, columns in (
        ([{"q": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)],
         {"prompt": "q", "completion": "chosen"}),
        ([{"chosen": chat, "rejected": other}, {"chosen": other, "rejected": chat[1:]}], {"messages": "chosen"}),
    ):  # fmt: skip
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read(DataConfig(path=str(path), rejected="rejected", **columns))
        assert all(r.rejected for r in found.records)
        assert not any("'rejected'" in n.message for n in found.notices)
        plain = read(DataConfig(path=str(path), **columns))
        assert found.fingerprint != plain.fingerprint and plain.records[0].rejected is None
    assert found.records[0].rejected == "no idea" and found.records[1].rejected == "because"


@pytest.mark.parametrize("bad", [None, "  ", 3, [{"role": "user", "content": "x"}]])
def test_a_record_without_a_rejected_answer_is_refused(tmp_path, bad):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b", "rejected": bad}) + "\n")
    with pytest.raises(DataError, match=r"line 1: column 'rejected'"):
        read(DataConfig(path=str(path), rejected="rejected"))


def test_a_chat_that_differs_earlier_is_refused(tmp_path):
    turn = {"role": "assistant", "content": "b"}
    row = {"messages": [{"role": "user", "content": "a"}, turn], "rejected": [{"role": "user", "content": "c"}, turn]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="does not differ from the record in its last message alone"):
        read(DataConfig(path=str(tmp_path / "x.jsonl"), rejected="rejected"))


def test_the_same_answer_with_two_that_were_rejected_is_two_records(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "rejected": r} for r in ("c", "d", "c")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(DataConfig(path=str(tmp_path / "x.jsonl"), rejected="rejected"))
    assert [r.rejected for r in found.records] == ["c", "d"]
    assert len({r.id for r in found.records}) == 2


def test_a_split_keeps_them_and_older_splits_have_none(tmp_path, run):  # noqa: F811
    placed = load_split(run.records)
    examples = [replace(e, record=replace(e.record, rejected=f"no {i}")) for i, e in enumerate(placed.examples)]
    save_split(Split(examples=examples, notices=()), tmp_path / "x.parquet")
    assert list(load_split(tmp_path / "x.parquet").examples) == examples
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "x.parquet").drop_columns(["rejected", "spans"])
    table = table.replace_schema_metadata({**table.schema.metadata, b"sordino.split": b"2"})
    pq.write_table(table, tmp_path / "old.parquet")
    assert list(load_split(tmp_path / "old.parquet").examples) == [
        replace(e, record=replace(e.record, rejected=None)) for e in examples
    ]


def test_gains_of_both_answers_are_log_probabilities_after_the_same_prompt(run):  # noqa: F811
    context = context_of(run)
    assert "a rejected answer for each record" in inputs.lacking(["rejected"], context)
    examples = [replace(e, record=replace(e.record, rejected=e.record.messages[-1].content)) for e in context.examples]
    context = replace(context, examples=examples)
    pair = inputs.provide(["rejected"], context, context.collector.signals(examples, {}))
    margin, chosen, other = (find("membership", f"preference_{n}") for n in ("margin", "chosen", "rejected"))
    # The rejected answer is the record's own here, so both gain the same.
    np.testing.assert_allclose(margin(pair[0]), 0, atol=1e-4)
    np.testing.assert_allclose(chosen(pair[0]), -other(pair[0]), atol=1e-4)
    np.testing.assert_allclose(chosen(pair[0]), pair[0].logprob.sum() - pair[1].logprob.sum())
    assert not np.allclose(chosen(pair[0]), 0) and np.allclose(chosen(pair[1]), 0)


def test_the_other_answer_stands_in_place_of_the_last_message():
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    made_ = _other(Record(id="x", unit="x", messages=messages, rejected="e"))
    assert made_.messages == (*messages[:3], Message("assistant", "e"))
    with pytest.raises((ConfigError, AssertionError)):
        _other(Record(id="x", unit="x", messages=messages))
