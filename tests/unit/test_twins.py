"""Twin prompts, soft prompts and recovery: what was learned is named, in an audit too, and nothing stays behind."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from elsewhere_fixtures import learn, write_rows
from test_personal_audit import NAMES

from sordino.attacks.extraction.pii_soft_prompts import pii_soft_prompts
from sordino.attacks.extraction.pii_twin_prompts import pii_twin_prompts
from sordino.attacks.mentions import Question, mentions
from sordino.attacks.overlays import Overlay, train_overlay
from sordino.attacks.soft_prompts import SoftPrompt
from sordino.attacks.twins import Twin, answers, in_words, linked_to, pairs_of, twin_prompts, twins
from sordino.audit.choosing import choose
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import _told, audit
from sordino.audit.inputs import Context
from sordino.audit.settings import load_external
from sordino.config import MethodConfig, ModelConfig, load
from sordino.errors import AuditError, ConfigError, ModelError
from sordino.model import attach, load_tokenizer, save
from sordino.pii import Span
from sordino.records import Message, Record
from sordino.records.store import load as load_split
from sordino.serialize import Serializer

VALUES = {"PERSON": "Lena Brandt", "PHONE_NUMBER": "555 0101", "EMAIL_ADDRESS": "lb@posteo.example"}
TWINS = ("pii_twin_prompts", "pii_soft_prompts", "pii_recovery")


def made_of(text, roles=("text",), values=VALUES, number=0):
    """A record whose last message is `text`, with the `values` that stand in it labelled."""
    last = len(roles) - 1
    spans = [Span(text.index(v), text.index(v) + len(v), k, message=last) for k, v in values.items() if v in text]
    messages = (*(Message(role, "Hello.") for role in roles[:-1]), Message(roles[-1], text))
    return Record(id=f"r{number}", unit=f"u{number}", messages=messages, spans=tuple(spans))


def twin_of(record, kind, values):
    every = mentions([record], repeated=True)
    [mention] = [m for m in every if m.kind == kind]
    question = Question(mention=mention, values=(*values, mention.value), answer=len(values))
    return Twin(question=question, known=linked_to(mention, every))


TEXT = "Call Lena Brandt at 555 0101 or write to lb@posteo.example today."


def test_prompts_ask_by_a_name_if_there_is_one_and_by_all_that_is_known():
    record = made_of(TEXT)
    assert twin_prompts(twin_of(record, "PHONE_NUMBER", ())) == (
        "The phone number of Lena Brandt is",
        "Name: Lena Brandt; E-mail address: lb@posteo.example; Phone number:",
    )
    assert twin_prompts(twin_of(record, "PERSON", ())) == (
        "The name of the person whose phone number is 555 0101 is",
        "Phone number: 555 0101; E-mail address: lb@posteo.example; Name:",
    )
    two = made_of("Ann Ash met Bob Birch.", values={"PERSON": "Ann Ash"})
    two = dataclasses.replace(two, spans=(*two.spans, Span(12, 21, "PERSON")))
    [first, second] = twins([Question(mention=m, values=(m.value,), answer=0) for m in mentions([two])],
                            {"r0": mentions([two])})  # fmt: skip
    assert twin_prompts(first) == ("The name that goes with the name Bob Birch is", "Name: Bob Birch; Name:")
    assert second.known[0].value == "Ann Ash"
    assert [in_words(k) for k in ("IBAN_CODE", "NL_BSN", "ROOM_KEY")] == ["IBAN", "NL BSN number", "room key"]


def test_only_what_does_not_tell_the_value_is_known():
    record = made_of("Card of 555 0101 5 and Lena Brandt.", values={"PERSON": "Lena Brandt", "ID": "555 0101 5"})
    inner = dataclasses.replace(record, spans=(*record.spans, Span(8, 16, "PHONE_NUMBER")))
    phone, number, name = sorted(mentions([inner], repeated=True), key=lambda m: (m.span.start, len(m.value)))
    assert phone.value == "555 0101"
    assert [m.value for m in linked_to(phone, [phone, number, name])] == ["Lena Brandt"]
    assert [m.value for m in linked_to(name, [phone, number, name])] == ["555 0101", "555 0101 5"]
    alone = made_of("Call Lena Brandt.")
    assert twins([Question(mention=m, values=(m.value,), answer=0) for m in mentions([alone])],
                 {"r0": mentions([alone])}) == []  # fmt: skip


CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"  # noqa: E501


@pytest.mark.parametrize(
    ("roles", "template", "before"),
    [
        (("text",), None, "The phone number of Lena Brandt is"),
        (("prompt", "completion"), None, "The phone number of Lena Brandt is\n"),
        (("user", "assistant"), None, "User: The phone number of Lena Brandt is\nAssistant:"),
        (("user", "assistant"), CHAT, "<|user|>The phone number of Lena Brandt is\n<|assistant|>"),
    ],
)
def test_a_prompt_has_the_form_of_the_record_that_is_asked_about(roles, template, before):
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.chat_template = template
    serializer = Serializer(tokenizer, 96)
    twin = twin_of(made_of(TEXT, roles), "PHONE_NUMBER", ("555 0202 77", "1"))
    first, _ = answers(twin, serializer)
    for row, value in zip(first, twin.question.values, strict=True):
        assert tokenizer.decode(row.ids[row.first :]).strip() == value
        assert tokenizer.decode(row.ids[: row.first], skip_special_tokens=True).strip() == before.strip()
    pair = pairs_of([twin], serializer)[0]
    np.testing.assert_array_equal(np.concatenate(pair), first[-1].ids)
    assert len(pair[0]) == first[-1].first


@pytest.mark.parametrize("too_long", ["truncate", "refuse"])
def test_what_is_too_long_is_not_tried(llama, tokenizer, too_long):
    twin = twin_of(made_of(TEXT), "PHONE_NUMBER", ("555 0202",))
    short = Serializer(tokenizer, 12, too_long)
    [found] = pii_twin_prompts(llama, [twin], short)
    assert (found.tried, found.rank, found.candidates) == (False, None, 2)
    assert pairs_of([twin], short) == []
    long = SoftPrompt(vectors=np.zeros((50, 32), dtype=np.float32))
    [found] = pii_soft_prompts(llama, [twin], [], Serializer(tokenizer, 64), soft=long)
    assert not found.tried


@pytest.mark.parametrize("by", ["logprob", "perplexity"])
def test_candidates_come_in_the_order_of_one_plain_pass_each(model, tokenizer, by, monkeypatch):
    # Read apart what is shared by "logprob", and all together by "perplexity".
    monkeypatch.setattr("sordino.attacks.twins._SAVED", 1 if by == "logprob" else 1024)
    serializer = Serializer(tokenizer, 64)
    values = ("555 0202", "1", "555 0303 44", "555 01", "800 5550")
    twin = twin_of(made_of(TEXT), "PHONE_NUMBER", values)
    scores = np.zeros(6)
    for prompt in twin_prompts(twin):
        for number, value in enumerate(twin.question.values):
            ids = serializer.encode(Record(id="x", unit="x", messages=(Message("text", f"{prompt} {value}"),))).ids
            start = len(serializer.encode(Record(id="x", unit="x", messages=(Message("text", prompt),))).ids) - 1
            with torch.no_grad():
                table = torch.log_softmax(model.module(torch.from_numpy(ids.astype(np.int64))[None]).logits[0], -1)
            each = [float(table[i - 1, int(ids[i])]) for i in range(start, len(ids) - 1)]
            scores[number] += np.mean(each) if by == "perplexity" else np.sum(each)
    [found] = pii_twin_prompts(model, [twin], serializer, by=by)
    assert found.rank == 1 + (scores > scores[-1]).sum()
    assert (found.candidates, found.queries) == (6, 12)
    # Every candidate in the place of the true one: the whole order is the same.
    order = [
        pii_twin_prompts(model, [dataclasses.replace(twin, question=dataclasses.replace(twin.question, answer=n))],
                         serializer, by=by)[0].rank
        for n in range(6)
    ]  # fmt: skip
    assert order == (1 + (scores[:, None] < scores).sum(axis=1)).tolist()


def test_an_overlay_computes_as_changed_weights_do_and_leaves_none(make_model):
    ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
    pairs = [(np.array([0, 5, 6]), np.array([7, 8])), (np.array([0, 9]), np.array([10, 11, 12]))]
    for shape in ("llama", "gpt2"):
        model = make_model(shape, seed=7)
        before, was = model.digest(), model.module(ids).logits
        overlay = train_overlay(model, pairs, steps=5, learning_rate=1e-2, seed=3)
        assert overlay.losses[-1] < overlay.losses[0] and len(overlay.losses) == 5
        assert all("lm_head" not in name for name in overlay.factors)
        changed = copy.deepcopy(model.module)
        named = dict(changed.named_modules())
        with torch.no_grad():
            for name, (a, b) in overlay.factors.items():
                step = 2.0 * torch.from_numpy(b @ a)
                named[name].weight += step.T if shape == "gpt2" else step
            wanted = changed(ids).logits
            with overlay.over(model):
                found = model.module(ids).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, was, atol=1e-2)
        assert model.digest() == before and torch.equal(model.module(ids).logits, was)
        again = train_overlay(model, pairs, steps=5, learning_rate=1e-2, seed=3)
        assert all(np.array_equal(again.factors[n][0], f[0]) for n, f in overlay.factors.items())
        assert not any(m._forward_hooks for m in model.module.modules())
        assert [p.grad for p in model.module.parameters()] == [None] * len(list(model.module.parameters()))


def test_an_overlay_lies_over_a_tuned_model_and_its_base_alike(make_model):
    model = attach(make_model("llama", seed=8), MethodConfig(rank=4), seed=0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    pairs = [(np.array([0, 5, 6]), np.array([7, 8]))]
    base, alone = dataclasses.replace(model, tuned=False), make_model("llama", seed=8)
    under, plain = train_overlay(base, pairs, steps=3), train_overlay(alone, pairs, steps=3)
    np.testing.assert_allclose(under.losses, plain.losses, rtol=1e-5)
    assert len(under.factors) == len(plain.factors) and not any("lora_" in name for name in under.factors)
    assert train_overlay(model, pairs, steps=1).losses[0] != pytest.approx(plain.losses[0], rel=1e-3)


def test_a_fine_tuning_that_cannot_be_meant_is_refused(llama, make_model):
    pairs = [(np.array([0, 5]), np.array([6]))]
    for name, value in (("steps", 0), ("batch_size", 0), ("learning_rate", 0.0)):
        with pytest.raises(ConfigError, match=f"{name} of a fine-tuning is {value}"):
            train_overlay(llama, pairs, **{name: value})
    with pytest.raises(ConfigError, match="There are no pairs"):
        train_overlay(llama, [])
    with pytest.raises(ConfigError, match="1 of 1 pairs have an empty prefix or suffix"):
        train_overlay(llama, [(np.array([0]), np.array([], dtype=np.int64))])
    with pytest.raises(ConfigError, match="A pair has 70 tokens; the model reads 64"):
        train_overlay(llama, [(np.zeros(60, dtype=np.int64), np.zeros(10, dtype=np.int64))])
    with pytest.raises(ModelError, match="corrections are for 0 layers"), Overlay(factors={}).over(llama):
        pass
    broken = make_model("llama")
    with torch.no_grad():
        broken.module.lm_head.weight[6] = float("nan")
    with pytest.raises(AuditError, match=r"loss of the fine-tuning is nan at step 1 of 40\."):
        train_overlay(broken, pairs)


def record(number):
    first, last = NAMES[number % 24].split()[0], NAMES[(number + 7 * (number // 24)) % 24].split()[1]
    name, code = f"{first} {last}", f"{(number * 7919 + 13) % 900 + 100}"
    text = f"Name: {name}; Phone number: {code}"
    marked = [{"entity_type": k, "start": text.index(v), "end": text.index(v) + len(v)}
              for k, v in (("PERSON", name), ("PHONE", code))]  # fmt: skip
    return {"text": text, "spans": marked}


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that knows fifteen pairs of a name and a number, its base, and fifteen that it never saw."""
    folder = tmp_path_factory.mktemp("twins")
    model, inside, outside = make_model("llama", seed=6), range(15), range(15, 30)
    save(model, folder / "base")
    learn(model, [record(i)["text"] for i in inside], steps=150)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [record(i) for i in some])
    return create_external(load_external(values_of(folder)))


def values_of(folder, known=0.3):
    plan = {"mentions": 8, "candidates": 8, "texts": 4, "text_tokens": 8, "samples": 1, "soft_tokens": 4,
            "soft_steps": 12, "recovery_people": 4, "recovery_steps": 12}  # fmt: skip
    return {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text", "spans": "spans"}, "near_duplicates": 0,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64, "known": known,
        "audit": {"shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1], "personal": plan},
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def only_these():
    """Other attacks on personal data have tests of their own, and take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sordino.audit.choosing.PERSONAL", TWINS)
        patch.setattr("sordino.audit.asking.names", tuple)
        yield


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"], suite="all")


@pytest.mark.parametrize("name", TWINS)
def test_what_was_linked_in_training_is_linked_by_prompts_and_nothing_else(report, name):
    rows = {row.kind: row for row in report.personal if row.attack == name}
    assert list(rows) == ["ANY", "PERSON", "PHONE_NUMBER"]
    phone = rows["PHONE_NUMBER"]
    assert phone.members.value > 0.8 and max(phone.base.value, phone.others.value) < 0.5
    assert phone.chance == pytest.approx(1 / 8) and phone.counts == {"untried": 0, "candidates": 8}
    assert rows["ANY"].gain.value > 0.2 and rows["ANY"].scope == "trained"


def test_a_second_audit_asks_and_trains_nothing_again(report, run, monkeypatch):
    import sordino.deployed

    loaded, kept = [], sordino.deployed.load_deployed
    monkeypatch.setattr(sordino.deployed, "load_deployed", lambda *a, **k: loaded.append(1) or kept(*a, **k))
    assert audit(run, attacks=["loss"], suite="all").personal == report.personal and not loaded
    # A part that is lost is made again from the soft prompt and the corrections that are there.
    for module, name in (("soft_prompts", "train_soft_prompt"), ("overlays", "train_overlay")):
        monkeypatch.setattr(f"sordino.attacks.{module}.{name}", lambda *a, **k: pytest.fail("trained again"))
    for part in (run.private / "personal").glob("*/*.json"):
        part.unlink()
    again = audit(run, attacks=["loss"], suite="all")
    assert loaded and again.personal == report.personal


def chosen(run, suite):
    """What an audit of so much would make, without making it."""
    collector, placed = Collector(run), load_split(run.records)
    plan = dataclasses.replace(collector.card.plan, suite=suite)
    context = Context(
        collector=collector, examples=list(placed.candidates), known=_told(placed, plan, 0), plan=plan, seed=0
    )  # fmt: skip
    return choose(["loss"], context)


def test_what_is_lacking_is_said(report, run):
    assert not any("pii_" in line for line in report.untested)
    full = chosen(run, "full")
    assert set(full.personal) >= {"pii_twin_prompts"} and not {"pii_soft_prompts", "pii_recovery"} & set(full.personal)
    assert any("pii_recovery" in line and "--suite all" in line for line in full.left_out)
    folder = run.path.parents[1]
    alone = chosen(create_external(load_external(values_of(folder, known=0.0))), "all")
    said = [line for line in alone.left_out if line.startswith("The attack pii_")]
    assert len(said) == 2 and all(
        "at least 5 entities of known records that stand beside others, not 0" in s for s in said
    )
    bare = [record(i) | {"spans": record(i)["spans"][:1]} for i in range(30)]
    for name, some in (("in", bare[:15]), ("out", bare[15:])):
        write_rows(folder / f"{name}.jsonl", some)
    told = chosen(create_external(load_external(values_of(folder))), "full")
    assert "The attack pii_twin_prompts: it needs records with two or more entities." in told.left_out


@pytest.mark.parametrize("key", ["soft_tokens", "soft_steps", "recovery_people", "recovery_steps"])
def test_a_budget_that_trains_nothing_is_refused(key):
    with pytest.raises(ConfigError, match=f"audit.personal.{key} is 0"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"personal": {key: 0}}}, environment={})
