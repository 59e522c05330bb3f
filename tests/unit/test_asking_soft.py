"""Soft prompts against records, in an audit: what is trained on, the controls, what resumes, what is left as it was."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere_fixtures import write_rows
from safetensors.numpy import load_file

from sordino.attacks import soft_prompts
from sordino.attacks.extraction.soft_prompt import soft_prompt
from sordino.attacks.soft_prompts import SoftPrompt
from sordino.audit.asking.soft_prompt import carry_out, lacking
from sordino.audit.collecting import Collector
from sordino.audit.evaluate import Evidence
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.inputs import Context
from sordino.audit.judging import Judge
from sordino.audit.settings import load_external
from sordino.config import load
from sordino.deployed import takes_embeddings
from sordino.errors import AuditError, ConfigError
from sordino.generate import greedy
from sordino.model import save
from sordino.records.store import load as load_split

WORDS = ("river", "stone", "market", "window", "garden", "letter", "bridge", "winter", "candle", "mirror", "forest")
# What stood before every record in training, and no adversary knows.
HIDDEN = [1400]
BEFORE, AFTER = 9, 10


def text(number):
    """Words that no other number has in this order, and no personal data."""
    rng = np.random.default_rng(number)
    return " ".join(WORDS[i] for i in rng.permutation(len(WORDS))[:8].tolist())


def learn_behind(model, known, steps):
    """Fit `model` to texts that stand behind what is hidden."""
    start = [model.tokenizer.bos_token_id]
    rows = [torch.tensor(HIDDEN + start + model.tokenizer(one).input_ids) for one in known]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    labels[:, : len(HIDDEN) + 1] = -100
    optimizer = torch.optim.Adam(model.module.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(steps):
            loss = model.module(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module", autouse=True)
def only_this():
    """Other attacks that ask the models have tests of their own, and take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sordino.audit.asking.names", lambda: ("soft_prompt",))
        patch.setattr("sordino.audit.choosing.PERSONAL", ())
        yield


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that learned 34 texts behind others, its base, and 34 texts that it never saw; half of each are known."""
    folder = tmp_path_factory.mktemp("soft")
    model, inside, outside = make_model("llama", seed=3), range(0, 68, 2), range(1, 68, 2)
    save(model, folder / "base")
    learn_behind(model, [text(i) for i in inside], steps=70)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [{"text": text(i)} for i in some])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text"}, "near_duplicates": 0, "known": 0.5,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {
            "shuffles": 199, "prefix_tokens": BEFORE, "suffix_tokens": AFTER, "fpr": [0.1],
            "near_bound": {"records": 1, "beam": 1},
            "soft_prompt": {"tokens": 1, "steps": 40, "learning_rate": 0.1},
        },
    }  # fmt: skip
    return create_external(load_external(values))


@pytest.fixture(scope="module")
def first(run):
    """The report, what soft prompts were trained on, and the digests of both models before."""
    pairs, subject = [], Collector(run).reader
    before = subject.tuned.digest(), subject.untuned.digest()
    with pytest.MonkeyPatch.context() as patch:
        honest = soft_prompts.train_soft_prompt

        def training(model, known, **more):
            pairs.append([(prefix.tolist(), suffix.tolist()) for prefix, suffix in known])
            return honest(model, known, **more)

        patch.setattr(soft_prompts, "train_soft_prompt", training)
        report = audit(run, attacks=["loss"], suite="all")
    return report, pairs, before


@pytest.fixture(scope="module")
def report(first):
    return first[0]


@pytest.fixture(scope="module")
def context(run, first):
    """What the attack is made from, opened anew."""
    collector, placed = Collector(run), load_split(run.records)
    known = [e for e in placed.examples if e.role in ("train", "validation")]
    return Context(collector=collector, examples=list(placed.candidates), known=known, plan=run.card.plan, seed=0)


def named(report):
    [found] = [a for a in report.attempts if a.name == "soft_prompt"]
    return found


def windows(context, examples):
    """The first passage of each record: all are long enough for the lengths asked for."""
    rows = [context.collector.encode(e).ids.tolist() for e in examples]
    return [(row[:BEFORE], row[BEFORE : BEFORE + AFTER]) for row in rows]


def test_what_plain_decoding_does_not_give_comes_out_of_the_model_that_knows_it_and_of_no_other(report):
    found = named(report)
    assert found.records == 34
    assert found.estimates["rate"].value > 0.7 and found.estimates["excess"].low > 0
    assert found.estimates["gain"].value > 0.4
    assert found.estimates["non-members"].value == 0
    assert found.control["rate"].value == found.control["plain"].value == 0
    assert report.metrics["extraction.soft_prompt.gain"] == found.estimates["gain"]
    [told] = [c for c in report.claims if "behind a soft prompt" in c.statement]
    assert told.status == "contradicted" and "the model repeats a passage of" in told.evidence
    assert "the membership of other records" in report.threat_model["Knows"]


def test_either_soft_prompt_is_trained_on_the_known_members_alone(first, context):
    wanted = windows(context, context.members)
    assert len(wanted) == 17 and first[1] == [wanted, wanted]
    judged = {tuple(suffix) for _, suffix in windows(context, context.examples)}
    assert not judged & {tuple(suffix) for _, suffix in wanted}


def test_figures_are_those_of_decoding_by_hand(run, report, context):
    made = {}
    for path in (run.private / "signals").glob("*/manifest.json"):
        note = json.loads(path.read_text())
        if note.get("definition") == "soft prompt/1":
            made[note["model"]] = torch.from_numpy(load_file(path.parent / "arrays.safetensors")["vectors"])
    asked, subject = windows(context, context.examples), context.collector.reader
    member = np.array([e.included for e in context.examples])
    for which, model, estimates in (
        ("tuned", subject.tuned, named(report).estimates), ("base", subject.untuned, named(report).control)
    ):  # fmt: skip
        hits = {}
        for name, vectors in (("soft", made[which]), ("plain", made[which][:0])):
            said = torch.tensor([prefix for prefix, _ in asked])
            with torch.no_grad():
                for _ in range(AFTER):
                    after = model.module.get_input_embeddings()(said)
                    rows = torch.cat([vectors.expand(len(said), -1, -1), after], dim=1)
                    said = torch.cat([said, model.module(inputs_embeds=rows).logits[:, -1:].argmax(-1)], dim=1)
            suffixes = [suffix for _, suffix in asked]
            hits[name] = np.array([a == b for a, b in zip(said[:, BEFORE:].tolist(), suffixes, strict=True)])
        assert estimates["rate"].value == hits["soft"][member].mean()
        assert estimates["non-members"].value == hits["soft"][~member].mean()
        assert estimates["plain"].value == hits["plain"][member].mean()
        gain = hits["soft"][member].mean() - hits["plain"][member].mean()
        assert estimates["gain"].value == pytest.approx(gain)
        if which == "tuned":
            rows = json.loads((run.private / "soft_prompt.json").read_text())
            came = [e.record.id for e, hit in zip(context.examples, hits["soft"], strict=True) if hit]
            assert [row["record_id"] for row in rows] == came


def test_a_second_audit_trains_nothing_and_a_lost_part_alone_is_decoded_again(run, report, monkeypatch):
    asked = []

    @functools.wraps(soft_prompt.run)
    def counting(model, soft, prefixes, lengths, **more):
        asked.append(len(prefixes))
        return soft_prompt.run(model, soft, prefixes, lengths, **more)

    def refusing(*args, **more):
        raise AssertionError("a soft prompt was trained again")

    monkeypatch.setattr(soft_prompts, "train_soft_prompt", refusing)
    monkeypatch.setattr(
        "sordino.attacks.extraction.soft_prompt.soft_prompt", replace(soft_prompt, run=counting)
    )  # fmt: skip
    files = sorted((run.private / "soft_prompt").glob("*/32-34.json"))
    assert len(files) == 2  # 34 records of either model, 32 a part
    files[0].unlink()
    assert named(audit(run, attacks=["loss"], suite="all")) == named(report) and asked == [2]


def test_both_models_are_as_they_were(run, first):
    subject = Collector(run).reader
    assert (subject.tuned.digest(), subject.untuned.digest()) == first[2]


def test_without_an_untuned_model_there_is_no_control(context, report):
    judge = Judge.of(Evidence.of(context.examples, 0), 0.95, 1)
    plan = replace(context.plan, soft_prompt=replace(context.plan.soft_prompt, records=3, steps=2))
    tuned, _ = context.collector.signals(context.examples, {})
    found = carry_out(replace(context, plan=plan), soft_prompt, (tuned, None), judge)
    assert found.control == {} and found.records == 6 and found.estimates["rate"].n == 3
    assert any("6 records were drawn, at most 3 on either side" in note for note in found.notes)


def test_what_is_missing_is_said(context, tmp_path, monkeypatch):
    import transformers

    assert lacking(context) == ""
    few = replace(context, known=context.members[:3])
    assert "at least 16 records" in lacking(few) and lacking(few).endswith("not 3 (give --known a share)")
    # 62 vectors leave no room in a context of 64.
    wide = replace(context, plan=replace(context.plan, soft_prompt=replace(context.plan.soft_prompt, tokens=62)))
    assert "room for the soft prompt, not 0" in lacking(wide)

    class Deaf:
        def forward(self, input_ids=None):
            """Read token ids alone."""

    monkeypatch.setattr(transformers, "DeafForCausalLM", Deaf, raising=False)
    for name, takes in (("DeafForCausalLM", False), ("LlamaForCausalLM", True), ("NowhereForCausalLM", True)):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        assert takes_embeddings(tmp_path) is takes
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["DeafForCausalLM"]}))
    monkeypatch.setattr(context.collector.reader, "folder", tmp_path)
    assert "reads embeddings" in lacking(context)


def test_no_vectors_are_plain_decoding(llama):
    prefixes = [np.array(ids, dtype=np.int32) for ids in ([0, 5, 6], [0, 9], [0, 7, 8])]
    none = SoftPrompt(vectors=np.zeros((0, 32), dtype=np.float32))
    found = soft_prompt(llama, none, prefixes, [4, 6, 2])
    wanted = [row.tolist() for row in greedy(llama, prefixes, [4, 6, 2])]
    assert [row.tolist() for row in found.soft] == [row.tolist() for row in found.plain] == wanted
    with pytest.raises(AuditError, match="1 of 2 prefixes are empty"):
        soft_prompt(llama, none, [prefixes[0], prefixes[0][:0]], [1, 1])


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokens", 0), ("tokens", 2000), ("steps", 0), ("learning_rate", 0.0), ("smoothing", -0.1), ("records", 0)],
)
def test_budgets_that_cannot_be_meant_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"audit\.soft_prompt\.{key} is {value}"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"soft_prompt": {key: value}}}, environment={})
