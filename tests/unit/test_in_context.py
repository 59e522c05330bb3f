"""Who stood in the prompt: a model that copies is found out, one that does not is not; the rest is refused."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from elsewhere_fixtures import write_rows

from sordino.attacks.in_context.in_context_loss import in_context_loss
from sordino.attacks.in_context.repeat import repeat
from sordino.audit import in_context, prompted
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.in_context import audit_prompt
from sordino.audit.prompted import draw, signals_of
from sordino.audit.settings import load_external
from sordino.audit.subjects import Trained
from sordino.cli import _run
from sordino.config import load
from sordino.errors import AuditError, ConfigError
from sordino.generate import greedy
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import PromptReport, decode
from sordino.signals import Generated, Signals, Statistics
from sordino.stats import max_t_within
from sordino.train.flow import fine_tune

CONTEXT = 192


def rows(count, seed=5):
    """Made-up words, six a row and in every tenth row twelve."""
    rng = np.random.default_rng(seed)
    word = lambda: "".join(rng.choice(list("abdeklmnorst"), 3))  # noqa: E731
    return [" ".join(word() for _ in range(12 if i % 10 == 9 else 6)) for i in range(count)]


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A run of a random model on made-up words."""
    folder = tmp_path_factory.mktemp("prompts")
    save(make_model("llama", seed=3, context=CONTEXT), folder / "base")
    (folder / "data.csv").write_text("\n".join(["text", *rows(230)]) + "\n")
    values = {
        "model": {"path": str(folder / "base"), "device": "cpu"}, "method": {"rank": 2},
        "data": {"path": str(folder / "data.csv")}, "out": str(folder / "runs"), "canaries": {"per_level": 0},
        "split": {"candidates": 0.6, "validation": 0.3, "near_duplicates": 0}, "audit": {"shuffles": 499, "fpr": [0.1]},
        "train": {"epochs": 1, "batch_size": 32},
    }  # fmt: skip
    return fine_tune(load(values=values, environment={}))


def copying(model, strength=12.0):
    """The model, but what followed the last two tokens before is much likelier to follow them again."""
    plain = model.module.forward

    def forward(input_ids, **more):
        out = plain(input_ids=input_ids, **more)
        out.past_key_values = None  # the rule needs all that went before
        if out.logits.shape[1] == input_ids.shape[1] > 2:
            ids = input_ids
            same = (ids[:, 1:, None] == ids[:, None, 1:]) & (ids[:, :-1, None] == ids[:, None, :-1])
            for row, late, early in same.tril(-1).nonzero().tolist():
                out.logits[row, late + 1, ids[row, early + 2]] = out.logits[row, late + 1].max() + strength
        return out

    model.module.forward = forward
    model.module.config.logit_scale = 1.0  # whole logits are read then, not what stands before the head
    return model


@pytest.fixture
def copies(run, make_model, monkeypatch):
    """The run, whose model copies from its context; nothing is stored yet."""
    model = copying(make_model("llama", seed=3, context=CONTEXT))
    monkeypatch.setattr(Trained, "tuned", property(lambda self: model))
    monkeypatch.setattr(prompted, "_DEFINITION", "copies")
    return run


@pytest.fixture
def drawn(run):
    return draw(Collector(run), load_split(run.records), 2, 30, 1)


def test_a_model_that_copies_its_prompt_gives_away_who_stood_there(copies):
    report = audit_prompt(copies, shots=2, trials=30)
    assert report.trials == 30 and report.counts == {"in the prompt": 60, "not in it": 60}
    for attempt in report.attempts:
        assert attempt.estimates["auc"].value > 0.9 and attempt.p_value == 1 / 500, attempt.name
        # After a prompt over which the coins decided nothing, there is nothing to find.
        assert abs(attempt.control["auc"].value - 0.5) < 4 * np.sqrt(121 / (12 * 60 * 60)), attempt.name
        # A prompt is one observation: thirty of them resolve no rate of false positives.
        assert attempt.estimates["auc"].n == 30 and attempt.estimates["tpr@0.1fpr"].value is None
    assert report.verdict.state == "leaks" and report.gate.passed
    written = (copies.path / "in-context.json").read_bytes()
    assert decode(written, PromptReport, "it") == report
    texts = [e.record.messages[0].content for e in load_split(copies.records).examples]
    assert not any(text[:15].encode() in written for text in texts)


def test_a_model_that_does_not_copy_gives_nothing_away(run):
    report = audit_prompt(run, shots=2, trials=30)
    assert report.verdict.state in ("no leak found", "inconclusive")
    assert [a.name for a in report.attempts] == ["in_context_loss", "repeat"]
    assert min(a.p_value for a in report.attempts) >= 0.01


def test_a_second_audit_runs_no_model_and_says_the_same(run, monkeypatch):
    def never(*args, **more):
        raise AssertionError("a model was run")

    before = audit_prompt(run, shots=2, trials=30)
    monkeypatch.setattr("sordino.collect.collect", never)
    monkeypatch.setattr("sordino.generate.greedy", never)
    monkeypatch.setattr(Trained, "tuned", property(never))
    after = audit_prompt(run, shots=2, trials=30)
    assert after.attempts == before.attempts and after.gate == before.gate


def test_who_is_drawn_was_not_trained_on_stands_in_one_trial_and_by_coin(run, drawn):
    again = draw(Collector(run), load_split(run.records), 2, 30, 1)
    other = draw(Collector(run), load_split(run.records), 2, 30, 2)
    assert all(np.array_equal(a, b) for a, b in zip(drawn.prompts, again.prompts, strict=True))
    assert not np.array_equal(drawn.member, other.member)
    assert not any(e.included for e in drawn.examples)
    assert len({e.group for e in drawn.examples}) == len(drawn.examples) == 120
    assert (np.bincount(drawn.trial, weights=drawn.member) == 2).all()
    tokenizer = Collector(run).serializer.tokenizer
    for number, prompt in enumerate(drawn.prompts):
        said = tokenizer.decode(prompt, skip_special_tokens=True)
        assert prompt[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in prompt
        for i in drawn.after(number, 0):
            assert (drawn.examples[i].record.messages[0].content in said) == drawn.member[i]
        for i in drawn.after(number, 1):
            assert drawn.examples[i].record.messages[0].content not in said


def test_prompts_read_once_give_what_whole_texts_give(run, drawn):
    collector = Collector(run)
    own, other = signals_of(collector, drawn)
    module, tokenizer = collector.tuned.module, collector.serializer.tokenizer
    for shift, signals in ((0, own), (1, other)):
        for i in (0, 1, 7, 119):
            prompt, ids = drawn.prompts[(drawn.trial[i] + shift) % 30], drawn.tokens[i].ids
            for before, found in ((prompt, signals.measured["prompt"][i]), (prompt[:1], -signals.nll[i])):
                whole = torch.from_numpy(np.concatenate([before, ids]).astype(np.int64))[None]
                with torch.no_grad():
                    logits = module(input_ids=whole, use_cache=False).logits[0, len(before) - 1 : -1]
                wanted = torch.log_softmax(logits.double(), -1)[torch.arange(len(ids)), whole[0, len(before) :]].mean()
                np.testing.assert_allclose(found, float(wanted), atol=1e-5)
            start = tokenizer(drawn.halves[i].prompt, add_special_tokens=False)["input_ids"]
            whole = np.concatenate([prompt, start])
            [said] = greedy(collector.tuned, [whole], [4])
            text = tokenizer.decode(np.concatenate([whole, said]), skip_special_tokens=True)
            assert text.split("\n\n")[-1].startswith(drawn.halves[i].prompt)
            written = drawn.halves[i].prompt + signals.written.greedy[i]
            assert written.startswith(text.split("\n\n")[-1][:8]) or tokenizer.eos_token_id in said


def test_coins_that_show_without_their_prompt_are_no_audit(copies, monkeypatch):
    def confused(collector, drawn):
        own, _ = signals_of(collector, drawn)
        return own, own  # the control sees the prompt over which its coins decided

    monkeypatch.setattr(in_context, "signals_of", confused)
    report = audit_prompt(copies, shots=2, trials=30)
    assert report.verdict.state == "invalid split" and report.gate.passed is False


def test_records_that_do_not_fit_are_counted_and_too_few_are_refused(run):
    with pytest.raises(AuditError, match=r"can stand in a prompt.* which makes \d prompts of 40"):
        audit_prompt(run, shots=40, trials=30)
    with pytest.raises(ConfigError, match="--shots is 0"):
        audit_prompt(run, shots=0)
    with pytest.raises(ConfigError, match="--trials is -1"):
        audit_prompt(run, trials=-1)
    collector = Collector(run)
    loose, tight = (draw(collector, load_split(run.records), shots, 10, 1) for shots in (1, 5))
    assert max(len(p) for p in tight.prompts) + max(len(t) for t in tight.tokens) + 8 <= CONTEXT
    [notice] = tight.notices
    assert notice.kind == "not-drawn" and notice.count > 0 and loose.notices == ()


def test_neither_classifiers_nor_servers_have_prompts_here(run, monkeypatch):
    collector = Collector(run)
    monkeypatch.setattr(collector.subject, "task", "classification", raising=False)
    with pytest.raises(AuditError, match="is a classifier"):
        in_context._check(collector)
    collector.subject = type("Server", (), {"task": "causal-lm"})()
    with pytest.raises(AuditError, match="on a server"):
        in_context._check(collector)


def test_a_model_from_elsewhere_is_asked_about_its_non_members(run, tmp_path, capsys):
    members, others = (
        write_rows(tmp_path / f"{name}.jsonl", [{"text": t} for t in rows(60, seed)])
        for name, seed in (("in", 7), ("out", 8))
    )
    base = Trained(run).config.model.path
    flags = ["--members", str(members), "--nonmembers", str(others), "--out", str(tmp_path / "runs")]
    code = _run(["audit", "--model", base, *flags, "--in-context", "--shots", "2", "--trials", "12", "--json"])
    report = decode(capsys.readouterr().out.encode(), PromptReport, "stdout")
    assert report.trials == 12 and code == (4 if report.verdict.state == "inconclusive" else 0)
    values = {"model": {"path": base}, "data": {"path": str(members)}, "nonmembers": str(others)}
    elsewhere = create_external(load_external({**values, "out": str(tmp_path / "more")}))
    drawn = draw(Collector(elsewhere), load_split(elsewhere.records), 2, 15, 1)
    assert {e.record.messages[0].content for e in drawn.examples} == set(rows(60, 8))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "full", "--in-context"], "--suite cannot be given for --in-context"),
        (["--plan", "--in-context"], "--in-context cannot be given for --plan"),
        (["--shots", "2"], "--shots cannot be given for an audit of training"),
        (["--in-context", "--model", "m", "--endpoint", "http://127.0.0.1:9/v1"], "is a server"),
        (["nowhere", "--in-context"], "There is no run at nowhere"),
        (["a", "b", "--in-context"], "2 run folders were given"),
    ],
)
def test_words_that_mean_nothing_are_explained(words, said, capsys):
    assert _run(["audit", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_table_for_people(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert _run(["audit", str(run.path), "--in-context", "--shots", "2", "--trials", "30"]) in (0, 4)
    out = capsys.readouterr().out
    assert "30 prompts of 2" in out and "in_context_loss" in out and "no ε follows" in out


# The attacks, by hand.


def test_scores_are_what_their_formulas_say():
    none = {name: np.zeros(3, np.float32) for name in ("mean", "variance")}
    none |= {name: np.zeros(3, np.int32) for name in ("position", "token", "rank", "top")}
    statistics = Statistics(offsets=np.array([0, 2, 3]), logprob=np.array([-1.0, -3.0, -4.0], np.float32), **none)
    signals = Signals(record_ids=("a", "b"), texts=("", ""), statistics=statistics)
    np.testing.assert_allclose(
        in_context_loss(replace(signals, measured={"prompt": np.array([-0.5, -4.5])})), [1.5, -0.5]
    )
    texts = Generated(
        prompts=["p", "p"], remainders=[" one two two", " "], samples=[(), ()], greedy=[" two two two one", "x"]
    )
    # Three words are truly there: the fourth that was written does not count, nor does the third "two".
    np.testing.assert_allclose(repeat(replace(signals, generated=texts)), [2 / 3, np.nan])


def test_the_test_inside_blocks_is_the_exact_one():
    rng = np.random.default_rng(0)
    scores, block = rng.normal(size=9), np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    member = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1], bool)
    ranks = np.argsort(np.argsort(scores)) * 1.0
    sums = []
    for parts in product(combinations(range(3), 1), combinations(range(3, 7), 2), combinations(range(7, 9), 1)):
        sums.append(ranks[[i for part in parts for i in part]].sum())
    exact = np.mean(np.array(sums) >= ranks[member].sum())
    order = rng.permutation(9)
    for at in (np.arange(9), order):
        overall, adjusted = max_t_within(scores[None, at], member[at], block[at], shuffles=20_000, seed=1)
        assert overall == adjusted[0] == pytest.approx(exact, abs=0.015)
    # What a whole block shares has no say, and of what does not differ there is nothing to say.
    moved = max_t_within(np.stack([scores, np.zeros(9)]), member, block, 999, 3)[1]
    assert moved[1] == 1.0


def test_a_p_value_inside_blocks_is_one():
    rng = np.random.default_rng(4)
    found = []
    for seed in range(300):
        block = np.repeat(np.arange(20), 4)
        scores = rng.normal(size=(2, 80)) + 3 * rng.normal(size=20)[block]
        member = rng.permuted(np.tile([True, True, False, False], (20, 1)), axis=1).ravel()
        found.append(max_t_within(scores, member, block, 99, seed)[0])
    assert np.mean(np.array(found) <= 0.1) <= 0.1 + 2 * np.sqrt(0.09 / 300)
    inside = np.tile([True, False], 30)
    assert max_t_within(np.where(inside, 1.0, 0.0)[None], inside, np.repeat(np.arange(15), 4), 199, 0)[0] == 1 / 200
