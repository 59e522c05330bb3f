"""Generate and rank in an audit: what comes out, its controls, a plain recount, parts that resume, and no base."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from elsewhere_fixtures import WORDS, learn, write_rows

from sordino import stats
from sordino.attacks.extraction.generate_and_rank import generate_and_rank
from sordino.attacks.rankings import RANKINGS
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.audit.verdict import _extraction_words
from sordino.config import load
from sordino.errors import ConfigError
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.report import text as words_of
from sordino.report.html import render_html

INSIDE, OUTSIDE = range(0, 26, 2), range(1, 27, 2)


def text(number):
    """A note that no other number has; 25, which nobody learns, is 24 and goes on."""
    rng = np.random.default_rng(number)
    return f"{text(24)} {text(119)}" if number == 25 else " ".join(rng.permutation(WORDS)[: 4 + number % 9].tolist())


@pytest.fixture(scope="module", autouse=True)
def only_this():
    """Other attacks that ask the models have tests of their own, and take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sordino.audit.asking.names", lambda: ("generate_and_rank",))
        patch.setattr("sordino.audit.choosing.PERSONAL", ())
        yield


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    """A model that knows 13 notes by heart, its base, and 13 notes that it never saw."""
    folder = tmp_path_factory.mktemp("ranks")
    model = make_model("llama", seed=3)
    save(model, folder / "base")
    bos, eos = model.tokenizer.bos_token, model.tokenizer.eos_token
    learn(model, [bos + text(i) + eos for i in INSIDE], steps=90)
    save(model, folder / "tuned")
    for name, some in (("in", INSIDE), ("out", OUTSIDE)):
        write_rows(folder / f"{name}.jsonl", [{"text": text(i)} for i in some])
    return folder


def opened(folder, base=True, known=0.2):
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "near_duplicates": 0,
        "data": {"path": str(folder / "in.jsonl"), "text": "text"},
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64, "known": known,
        "audit": {"shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1],
                  "generated": {"texts": 24, "tokens": 32}},
    }  # fmt: skip
    return create_external(load_external({**values, "base": str(folder / "base")} if base else values))


@pytest.fixture(scope="module")
def run(folder):
    return opened(folder)


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"], suite="full")


def named(report):
    [found] = [a for a in report.attempts if a.name == "generate_and_rank"]
    return found


def test_the_model_that_knows_records_gives_them_away_and_its_base_does_not(run, report):
    found = named(report)
    assert found.estimates["rate"].value > 0.5 and found.estimates["non-members"].value == 0
    assert found.estimates["excess"].low > 0
    assert found.control["rate"].value == found.control["non-members"].value == 0
    for name in RANKINGS:
        assert found.estimates[f"precision@100.{name}"].low > found.control[f"precision@100.{name}"].value == 0
    rows = json.loads((run.private / "generate_and_rank.json").read_text())["tuned"]
    memorised = [row["places"]["base"] for row in rows if row["memorised"] and "base" in row["places"]]
    assert len(memorised) > 4 and np.mean(memorised) < np.mean(
        [r["places"]["base"] for r in rows if "base" in r["places"]]
    )
    assert found.estimates["held-out@100"].value == 0
    assert found.parameters["ranking"] == "base"
    assert any("snippets" in note for note in found.notes)
    assert {"extraction.generate_and_rank.rate", "extraction.generate_and_rank.excess"} <= set(report.metrics)


def test_figures_are_those_of_a_plain_recount(run, report):
    """All from the texts in private/ and the records themselves, by comparing pieces."""
    rows, collector = json.loads((run.private / "generate_and_rank.json").read_text()), Collector(run)
    examples = [e for e in load_split(run.records).examples if e.role != "excluded"]
    least = named(report).parameters["run_tokens"]

    def pieces(ids):
        return {tuple(ids[i : i + least]) for i in range(len(ids) - least + 1)}

    own = {e.record.id: pieces(collector.encode(e).ids.tolist()) for e in examples}
    trained, held = (set().union(*(own[e.record.id] for e in examples if e.included == side)) for side in (True, False))
    judged = [e for e in examples if e.role == "candidate"]
    assert len(judged) < len(examples)  # the adversary knows some
    for which, estimates in (("tuned", named(report).estimates), ("base", named(report).control)):
        texts = [pieces(row["ids"]) for row in rows[which]]
        assert all((row["longest"] >= least) == bool(t & trained) for row, t in zip(rows[which], texts, strict=True))
        assert [row["memorised"] for row in rows[which]] == [bool(t & (trained - held)) for t in texts]
        orders = {}
        for name in RANKINGS:
            placed = sorted((row["places"][name], i) for i, row in enumerate(rows[which]) if name in row["places"])
            assert [place for place, _ in placed] == list(range(1, len(placed) + 1))
            orders[name] = [i for _, i in placed][:100]
            hits = [bool(texts[i] & (trained - held)) for i in orders[name]]
            assert estimates[f"precision@100.{name}"].value == pytest.approx(np.mean(hits))
        assert estimates["held-out@100"].value == np.mean([bool(texts[i] & (held - trained)) for i in orders["base"]])
        seen = set().union(*(texts[i] for i in orders["base"]))
        for metric, side in (("rate", True), ("non-members", False)):
            hit = [
                bool(seen & (own[e.record.id] - set().union(*(own[o] for o in own if o != e.record.id))))
                for e in judged
                if e.included == side
            ]
            assert estimates[metric].value == pytest.approx(np.mean(hit))
            assert (estimates[metric].low, estimates[metric].high) == pytest.approx(
                (stats.korn_graubard(np.array(hit)).low, stats.korn_graubard(np.array(hit)).high)
            )


def test_a_run_of_two_coins_counts_for_neither(run, report):
    """All of note 24, which was trained on, stands in 25, which was not: that it comes out is a sign of neither."""
    rows = json.loads((run.private / "generate_and_rank.json").read_text())["tuned"]
    shared = [r for row in rows for r in row["repeats"] if len(r["records"]) > 1]
    assert shared and all(not r["alone"] for r in shared)
    assert all(len(r["records"]) == 2 and r["trained"] for r in shared)
    assert all(r["alone"] for row in rows for r in row["repeats"] if len(r["records"]) == 1)


def test_a_second_audit_asks_no_model_and_what_is_lost_alone_is_made_again(run, report, monkeypatch):
    from sordino import generate as generation

    asked, attacked = [], []
    plain = generation.generate

    def counting(model, requests, **more):
        asked.append(len(requests))
        return plain(model, requests, **more)

    @functools.wraps(generate_and_rank.run)
    def attacking(*args, **more):
        attacked.append(1)
        return generate_and_rank.run(*args, **more)

    monkeypatch.setattr(generation, "generate", counting)
    monkeypatch.setattr(
        "sordino.attacks.extraction.generate_and_rank.generate_and_rank", replace(generate_and_rank, run=attacking)
    )
    assert named(audit(run, attacks=["loss"], suite="full")) == named(report)
    assert not asked and not attacked
    for file in (run.private / "generate_and_rank").glob("*/ranked.json"):
        file.unlink()
    parts = sorted((run.private / "generate_and_rank").glob("*/[0-9]*.json"))
    assert sorted(p.name for p in parts) == [
        "0-64.json",
        "0-64.json",
        "64-72.json",
        "64-72.json",
    ]  # 72 texts of either model
    next(p for p in parts if p.name == "64-72.json").unlink()
    assert named(audit(run, attacks=["loss"], suite="full")) == named(report)
    assert asked == [8] and len(attacked) == 2


def test_without_a_base_and_without_known_records_the_rest_is_made(folder):
    found = named(audit(opened(folder, base=False, known=0.0), attacks=["loss"], suite="full"))
    assert found.parameters["ranking"] == "zlib" and not found.control
    assert {f"precision@100.{n}" for n in RANKINGS if n != "base"} == {
        m for m in found.estimates if m.startswith("precision")
    }
    assert found.estimates["rate"].value > 0.5 and found.estimates["non-members"].value == 0
    assert any("No text was drawn after a snippet" in note for note in found.notes)


def test_the_words_say_what_was_asked(run, report):
    found = named(report)
    sentence = _extraction_words(found)
    assert (
        f"a run of {found.parameters['run_tokens']} tokens or more of {found.estimates['rate'].value:.1%} of"
        in sentence
    )
    assert f"into the {found.parameters['best']} texts that rank highest, against 0.0% of records it never" in sentence
    [claim] = [c for c in report.claims if "leaving the model to write" in c.statement]
    assert claim.status == "contradicted" and sentence in claim.evidence
    assert words_of.metric_label("precision@100.zlib") == "Precision at 100, ranked by perplexity over zlib's size"
    page = render_html(report, run.card)
    assert "Precision at 100, ranked by perplexity" in page and "Same 100 texts, by records held out" in page
    secret = next(e.record for e in load_split(run.records).members).messages[0].content
    assert secret not in page  # what came out stands in private/ alone


def test_smaller_suites_name_it_and_classifiers_have_no_use_for_it(run):
    quick = audit(run, attacks=["loss"], suite="quick")
    assert not [a for a in quick.attempts if a.name == "generate_and_rank"]
    assert any("generate_and_rank" in line and "--suite full" in line for line in quick.untested)
    assert generate_and_rank.tasks == ("causal-lm",)


@pytest.mark.parametrize(("key", "value"), [("texts", 0), ("tokens", 7)])
def test_budgets_in_which_nothing_is_found_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"audit\.generated\.{key} is {value}"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"generated": {key: value}}}, environment={})
