"""TOFU's and MUSE's evaluations end to end, against loops that ask one question at a time."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp
from unlearn_fixtures import alone, greedily, rouge_recall, tuned_run

from sordino.audit.collecting import Collector
from sordino.errors import DataError, UnlearningError
from sordino.records.store import load as load_split
from sordino.similarity import rouge_l
from sordino.unlearn.measuring.muse import knowledge_memorisation, verbatim_memorisation
from sordino.unlearn.measuring.tofu import TOFU_SETS, questions
from sordino.unlearn.measuring.tofu_asking import as_record, evaluate, trained_on

ROWS = [{"prompt": f"Who is A{i}?", "completion": f"A{i} is a writer of {i % 7} books."} for i in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of TOFU's form, on the records of the run."""
    path = tmp_path_factory.mktemp("tofu")

    def put(name, rows):
        (path / f"{name}.json").write_text("\n".join(json.dumps(row) for row in rows))

    def made(i):
        wrong = [f"A{i} is a baker of {k} loaves." for k in range(3)]
        said = {"question": ROWS[i]["prompt"], "answer": ROWS[i]["completion"], "perturbed_answer": wrong}
        return {**said, "paraphrased_answer": f"A writer of {i % 7} books."}

    put("forget01_perturbed", [made(i) for i in range(60, 120)])
    put("retain_perturbed", [made(i) for i in range(60)])
    cities = ["Paris", "Rome", "Oslo", "Bonn"]
    facts = [
        {"question": f"Capital {i}?", "answer": c, "perturbed_answer": cities[:i] + cities[i + 1 :]}
        for i, c in enumerate(cities)
    ]
    put("real_authors_perturbed", facts)
    put("world_facts_perturbed", [{**f, "question": f["question"] + "?"} for f in facts])
    return path


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    train = {"epochs": 6, "batch_size": 8, "learning_rate": 0.02, "max_length": 64}
    more = {"method": {"kind": "full"}, "train": train}
    return tuned_run(tmp_path_factory.mktemp("run"), make_model("llama", context=128), ROWS, **more)


def ask(run, record, length):
    """What is written after a question, one forward pass after the other."""
    collector = Collector(run)
    tokenizer, tokens = collector.serializer.tokenizer, collector.serializer.encode(record)
    prefix = tokens.ids[: int(np.flatnonzero(tokens.target)[0])]
    made = greedily(collector.tuned, prefix, length, tokenizer.eos_token_id)
    before = tokenizer.decode(prefix, skip_special_tokens=True)
    return tokenizer.decode([*prefix, *made], skip_special_tokens=True)[len(before) :]


def test_every_figure_is_that_of_one_question_alone(run, folder):
    asked = questions(folder, "forget01", limit=7, seed=3, trained=trained_on(run))
    found = evaluate(run, asked)
    collector = Collector(run)
    nine, some_overlap = [], 0.0
    for name in TOFU_SETS:
        rows = []
        for i, q in enumerate(asked[name]):

            def loss(answer, q=q):
                tokens = collector.serializer.encode(as_record(q.question, answer))
                return alone(collector.tuned, tokens.ids, tokens.target)[0]

            p, wrong = math.exp(-loss(q.answer)), [loss(a) for a in q.wrong]
            if name in ("authors", "facts"):
                p /= p + sum(math.exp(-w) for w in wrong)
            ratio = math.exp(-sum(wrong) / len(wrong)) / math.exp(-loss(q.paraphrased))
            said = rouge_recall(ask(run, as_record(q.question, q.answer), 64), q.answer)
            columns = {c: found.sets[name][c][i] for c in ("probability", "rouge_l", "truth_ratio")}
            assert columns == pytest.approx({"probability": p, "rouge_l": said, "truth_ratio": ratio}, rel=2e-4)
            rows.append((p, said, min(ratio, 1 / ratio) if name == "forget" else max(0, 1 - ratio)))
            some_overlap += said
        means = np.mean(rows, axis=0)
        for figure, mean in zip(("probability", "rouge_l", "truth_ratio"), means, strict=True):
            assert found.figures()[f"{name}_{figure}"].value == pytest.approx(mean, rel=2e-4)
        nine += list(means) if name != "forget" else []
    assert some_overlap > 0
    utility = found.figures()["model_utility"]
    assert utility.value == pytest.approx(hmean(nine) if min(nine) > 0 else 0, rel=2e-4)
    assert utility.low <= utility.value <= utility.high
    assert found.model == run.card.model["weights"] and found.cut == 0


def test_questions_are_of_trained_records_and_drawn_from_the_seed(run, folder):
    held_out = {e.record.messages[0].content for e in load_split(run.records).examples if not e.included}
    every, asked = questions(folder, "forget01"), questions(folder, "forget01", trained=trained_on(run))
    assert {q.question for q in every["forget"]} & held_out
    for name in ("forget", "retain"):
        assert [q for q in every[name] if q.question not in held_out] == list(asked[name])
    assert {q.subject for q in every["retain"]} == {0, 1, 2} and {q.subject for q in every["facts"]} == {0, 1, 2, 3}
    first, again, other = (questions(folder, "forget01", limit=5, seed=s) for s in (0, 0, 1))
    assert first == again != other and all(len(first[n]) == min(5, len(every[n])) for n in TOFU_SETS)
    assert list(first["forget"]) == [q for q in every["forget"] if q in first["forget"]]


def test_forget_quality_is_ks_of_the_raw_ratios(run, folder):
    found = evaluate(run, questions(folder, "forget01", limit=6))
    other = replace(found, sets={**found.sets, "forget": {**found.sets["forget"], "truth_ratio": (0.1,) * 6}})
    assert found.quality(other).p_value == pytest.approx(
        ks_2samp(found.sets["forget"]["truth_ratio"], [0.1] * 6).pvalue
    )
    assert found.quality(found).p_value == 1.0


def test_what_is_not_tofus_is_refused(run, folder, tmp_path):
    with pytest.raises(DataError, match=r"forget05_perturbed\.json cannot be read"):
        questions(folder, "forget05")
    (tmp_path / "forget01_perturbed.json").write_text('{"question": "Who?"}\n')
    with pytest.raises(DataError, match="is not one of TOFU's files: KeyError"):
        questions(tmp_path, "forget01")
    with pytest.raises(UnlearningError, match=r"'forget' .* has no question"):
        questions(folder, "forget01", trained=frozenset())
    long = questions(folder, "forget01", limit=1)
    long["facts"] = (replace(long["facts"][0], question="What is it? " * 200),)
    with pytest.raises(UnlearningError, match=r"4 of .* answers do not fit"):
        evaluate(run, long)


def test_verbatim_and_knowledge_memorisation_are_means_of_rouge(run, folder):
    collector = Collector(run)
    tokenizer, model = collector.serializer.tokenizer, collector.tuned
    records = [e.record for e in load_split(run.records).training][:9]
    expected = []
    for record in records:
        ids = collector.serializer.encode(record).ids
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        made = greedily(model, ids[:6], len(ids) - 6, None)
        before = len(tokenizer.decode(ids[:6], skip_special_tokens=True))
        said = [tokenizer.decode([*ids[:6], *rest], skip_special_tokens=True)[before:] for rest in (made, ids[6:])]
        expected.append(rouge_l([said[0]], [said[1]]).f1[0])
    found = verbatim_memorisation(run, records, prefix_tokens=6)
    assert found.value == pytest.approx(np.mean(expected)) and found.value > 0
    assert found.n == len({r.unit for r in records})
    with pytest.raises(UnlearningError, match="None of 9 records is longer than 500 tokens"):
        verbatim_memorisation(run, records, prefix_tokens=500)

    asked = questions(folder, "forget01", limit=6)["forget"]
    said = [ask(run, as_record(q.question, q.answer), 32) for q in asked]
    expected = rouge_l(said, [q.answer for q in asked]).f1.mean()
    assert knowledge_memorisation(run, asked).value == pytest.approx(expected)
    with pytest.raises(UnlearningError, match="no question"):
        knowledge_memorisation(run, [])


def test_reading_and_judging_needs_no_torch():
    code = "import sys, sordino.unlearn.measuring.tofu; assert not {'torch', 'transformers', 'peft'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
