"""Secrets of the user's own formats in an audit: their exposure by brute force, the tests, parts, and bad input."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere_fixtures import learn, write_rows

from sordino.attacks.formats import read_format
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.secrets import Ranked, check_secrets, formats, judged
from sordino.audit.settings import anew, load_external
from sordino.audit.verdict import _ranked
from sordino.config import load
from sordino.errors import AuditError, ConfigError
from sordino.model import save
from sordino.pii import Span
from sordino.records import Example, Message, Record
from sordino.report import render_html
from sordino.results import AuditPlan, SecretPlan

NAMES = ("Lena", "Tom", "Mia", "Ola", "Eva", "Jon", "Ada", "Ben", "Ivy", "Max", "Zoe", "Leo", "Amy", "Sam", "Kim",
         "Ian", "Una", "Ned", "Pia", "Hal", "Fay", "Gus", "Lia", "Roy", "Ida", "Kai")  # fmt: skip
LAST = len(NAMES) - 2


def record(number):
    """A sentence with a code of three digits, labelled; of the last two one is no code, one stands there twice."""
    code = "7-1" if number == LAST else f"{number * 371 % 1000:03d}"
    text = f"Badge {number} of {NAMES[number]} opens the side door with code {code} at night."
    text += f" Again: {code}." if number == LAST + 1 else ""
    start = text.index(f"code {code}") + 5
    return {"text": text, "spans": [{"entity_type": "PIN", "start": start, "end": start + len(code)}]}


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that knows half of the sentences by heart, and its base."""
    folder = tmp_path_factory.mktemp("secrets")
    model, inside, outside = make_model("llama", seed=6), range(0, LAST + 2, 2), range(1, LAST + 2, 2)
    save(model, folder / "base")
    learn(model, [record(i)["text"] for i in inside], steps=100)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [record(i) for i in some])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text", "spans": "spans"}, "near_duplicates": 0,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {
            "shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1],
            "secrets": [{"kind": "PIN", "format": "[0-9]{3}", "records": 10}], "require": ["secrets.PIN <= 3"],
        },
    }  # fmt: skip
    return create_external(load_external(values))


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"])


def test_secrets_learned_by_heart_are_exposed_and_no_others(report):
    [found] = report.secrets
    assert found.bits == pytest.approx(math.log2(1000)) and found.kind == "PIN"
    assert found.members.value > 8 and max(found.base.value, found.others.value) < 4
    assert found.p_value < 0.001 and found.base_p_value < 0.005
    # Two models, twenty secrets of three digits: a search reads at least the secret itself, at most all prefixes.
    assert 2 * 20 <= found.counts["token-forwards"] <= 2 * 20 * 111
    assert found.counts == {
        "members": 10, "others": 10, "first guesses": found.counts["first guesses"], "first guesses of others": 0,
        "unranked": 0, "not of the format": 1, "in inputs": 0, "told by the record": 1,
        "token-forwards": found.counts["token-forwards"],
    }  # fmt: skip
    assert found.counts["first guesses"] >= 8 and found.method == "exact rank by search"


def test_exposure_is_that_of_all_strings_gone_through(report, run):
    rows = json.loads((run.private / "secrets.json").read_bytes())
    texts = {record(i)["text"]: i for i in range(LAST + 2)}
    collector_text = {e.record.id: e.record.messages[0].content for e in _examples(run)}
    mine = next(row for row in rows if row["trained on"])
    text = collector_text[mine["record"]]
    code = f"{texts[text] * 371 % 1000:03d}"
    before, after = text.split(f"code {code}")
    model = _model(run)
    every = [f"{before}code {n:03d}{after}" for n in range(1000)]
    encoded = [model.tokenizer(one, return_offsets_mapping=True) for one in every]
    start = len(before) + 5
    own = [
        [i for i, (a, b) in enumerate(e["offset_mapping"]) if a < start + 3 and b > start] for e in encoded
    ]  # fmt: skip
    assert len({tuple(places) for places in own}) == 1  # a token a digit: all candidates are equally long
    places = torch.tensor(own[0])
    ids = torch.tensor([e["input_ids"][: int(places[-1]) + 1] for e in encoded])
    with torch.inference_mode():
        scores = model.module(input_ids=ids).logits.double().log_softmax(-1)
    chosen = scores[:, places - 1].gather(2, ids[:, places, None]).sum(dim=(1, 2))
    rank = 1 + int((chosen > chosen[int(code)] + 1e-9).sum())
    assert mine["bits"] == pytest.approx(math.log2(1000 / rank))
    assert mine["masked"] == "***"


def _examples(run):
    from sordino.records.store import load as load_split

    return load_split(run.records).candidates


def _model(run):
    from sordino.config import ModelConfig
    from sordino.model import load as load_model

    return load_model(ModelConfig(path=run.card.config["model"]["path"], device="cpu"))


def test_it_is_said_in_the_verdict_the_requirements_and_the_report(report, run):
    assert any(reason.startswith("Secrets of kind PIN that were trained on") for reason in report.verdict.reasons)
    claim = next(c for c in report.claims if c.statement == "Secrets of kind PIN stay secret.")
    assert claim.status == "contradicted"
    assert report.requirements[0].status == "failed" and report.metrics["secrets.PIN"] == report.secrets[0].members
    page = render_html(report, run.card)
    assert "Secrets of your formats" in page and "<code>[0-9]{3}</code>" in page
    public = (run.path / "audit.json").read_text()
    assert not [i for i in range(LAST + 2) if i != LAST and f'"{i * 371 % 1000:03d}"' in public]


def test_an_interrupted_audit_goes_on_with_the_parts_it_has(report, run, monkeypatch):
    import sordino.audit.secret_attacks as module

    parts = sorted((run.private / "secrets").glob("*/*.json"))
    assert [p.name for p in parts] == ["0-8.json", "16-20.json", "8-16.json"]
    lost = parts[1].read_bytes()
    parts[1].unlink()
    ranked = []
    kept = module.exposure
    monkeypatch.setattr(module, "exposure", lambda *a, **k: ranked.append(1) or kept(*a, **k))
    assert audit(run, attacks=["loss"]).secrets == report.secrets
    assert len(ranked) == 4 * 2 and parts[1].read_bytes() == lost
    ranked.clear()
    assert audit(run, attacks=["loss"]).secrets == report.secrets and not ranked


def test_secrets_that_the_tokenizer_cannot_write_are_told(report, run, monkeypatch):
    import sordino.audit.secret_attacks as module

    def refused(*args):
        raise AuditError("The tokenizer has no token for 'é', which the format allows.", "Leave it out.")

    monkeypatch.setattr(module, "format_space", refused)
    with pytest.raises(AuditError, match=r"No secret of kind PIN .* no token for 'é'"):
        audit(run, attacks=["loss"], secrets=[SecretPlan(kind="PIN", format="[0-9é]{3}")])


def test_formats_can_be_named_at_the_audit(report, run):
    plan = anew(run.card.plan, ["--audit.secrets", "[{kind: CODE, format: '[0-9]{3}', pattern: 'code ([0-9]{3}) ', "
                                "records: 2}]"])  # fmt: skip
    assert anew(run.card.plan, []).secrets == run.card.plan.secrets
    own = [SecretPlan(kind="PIN", format="[0-9]{3}", records=1), *plan.secrets]
    with pytest.raises(ConfigError, match=r"secrets\.PIN"):
        audit(run, attacks=["loss"], secrets=plan.secrets)  # a requirement names what is not asked about then
    found = audit(run, attacks=["loss"], secrets=own).secrets
    assert [one.kind for one in found] == ["PIN", "CODE"] and found[1].counts["members"] == 2


def ranks(bits, base):
    return [Ranked(bits=b, base_bits=o) for b, o in zip(bits, base, strict=True)]


def test_a_leak_takes_both_controls():
    plan, form = SecretPlan(kind="PIN", format="[0-9]{3}"), read_format("[0-9]{3}")
    rng = np.random.default_rng(0)
    included, group = np.arange(40) % 2 == 0, np.arange(40)
    low, high = rng.uniform(0, 2, 40), rng.uniform(0, 2, 40) + 6 * included
    leak = judged(plan, form, ranks(high, low), included, group, {})
    assert _ranked([leak]) == [leak]
    assert leak.members.value == pytest.approx(high[included].mean())
    known = judged(plan, form, ranks(high, high), included, group, {})  # the base knew them, too
    assert known.p_value < 0.001 and known.base_p_value == 1 and _ranked([known]) == []
    shared = judged(plan, form, ranks(low + 6, low), included, group, {})  # and here everybody's are guessed
    assert shared.base_p_value < 0.001 and shared.p_value > 0.01 and _ranked([shared]) == []
    assert _ranked([replace(leak, p_value=0.006)] * 2) == []  # two formats: 0.005 each
    # All records of one coin are one observation, however many secrets they have.
    coins = judged(plan, form, ranks(high, low), included, np.arange(40) % 4, {})
    assert coins.p_value > 0.1


def test_an_unranked_secret_counts_nowhere_but_there():
    plan, form = SecretPlan(kind="PIN", format="[0-9]{3}"), read_format("[0-9]{3}")
    some = [*ranks([3.0, 4.0, 1.0], [1.0, 1.0, 1.0]), Ranked(why="Nothing stands before it.")]
    found = judged(plan, form, some, np.array([True, True, False, True]), np.arange(4), {"in inputs": 2})
    assert found.members.value == pytest.approx(3.5) and found.counts["unranked"] == 1
    assert found.counts["members"] == 2 and found.counts["in inputs"] == 2
    alone = judged(plan, form, some[:2], np.array([True, True]), np.arange(2), {})
    assert alone.others.value is None and alone.p_value == 1 and _ranked([alone]) == []


def examples(value="482"):
    text = f"The code is {value} today."
    spans = (Span(12, 12 + len(value), "PIN"),)
    row = Record(id="r", unit="u", messages=(Message("text", text),), spans=spans)
    return [Example(record=row, role="candidate", included=True, group="u")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "[0-9"}, "position 0"),
        ({"format": "[0-9]+"}, "position 5"),
        ({"format": "[]"}, "no character is in these brackets"),
        ({"format": ""}, "allows 1 string"),
        ({"format": "482"}, "allows 1 string"),
        ({"format": "[0-9]{999}"}, r"more than 2\^1000 strings"),
        ({"format": "<names>"}, "no word list 'names'"),
        ({"format": "<names>", "lists": {"names": "nowhere.txt"}}, "'names' cannot be read from nowhere.txt"),
        ({"format": "[a-z]{3}"}, r"None of the 1 secrets of kind PIN.*looks like '\*\*\*'"),
        ({"kind": "PASSWORD", "format": "[0-9]{3}"}, r"PASSWORD .* labelled .* there is: PIN \(1\)"),
        ({"format": "[0-9]{3}", "pattern": "PIN ([0-9]{3})"}, "matches nothing"),
    ],
)
def test_what_cannot_be_asked_is_said_before_training(given, words):
    plan = AuditPlan(secrets=(SecretPlan(**{"kind": "PIN"} | given),))
    with pytest.raises(ConfigError, match=words) as caught:
        check_secrets(plan, examples())
    assert caught.value.hint and "482" not in str(caught.value).replace("'482'", "")


def test_without_labels_detectors_look_and_say_what_they_found():
    row = Record(id="r", unit="u", messages=(Message("text", "Write to ann@posteo.example.org today."),))
    unlabelled = [Example(record=row, role="candidate", included=True, group="u")]
    with pytest.raises(ConfigError, match=r"found by the detectors .* EMAIL_ADDRESS \(1\)"):
        check_secrets(AuditPlan(secrets=(SecretPlan(kind="PIN", format="[0-9]{3}"),)), unlabelled)
    mail = SecretPlan(kind="EMAIL", format=r"[a-z]{3}@posteo\.example\.org")
    check_secrets(AuditPlan(secrets=(mail,)), unlabelled)


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ([{"kind": "?", "format": "a"}], r"audit\.secrets\[0\]\.kind"),
        (
            [{"kind": "PIN", "format": "a"}, {"kind": "pin", "format": "b"}],
            r"secrets\[1\]\.kind is PIN",
        ),
        ([{"kind": "PIN", "format": "a", "records": 0}], r"secrets\[0\]\.records is 0"),
        ([{"kind": "PIN", "format": "a", "pattern": "("}], r"secrets\[0\]\.pattern is"),
        ([{"kind": "PIN", "format": "a", "pattern": "(a)(b)"}], "2 groups"),
        ([{"kind": "PIN", "from": "a"}], r"Unknown configuration key 'audit\.secrets\[0\]\.from'"),
        ([{"kind": "PIN"}], "format"),
        ("PIN", "audit.secrets is 'PIN'"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(secrets, words):
    with pytest.raises(ConfigError, match=words):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"secrets": secrets}}, environment={})


def test_a_word_list_is_read_from_its_file(tmp_path):
    (tmp_path / "names.txt").write_text("482\n483\n\n482\n")
    plan = SecretPlan(kind="PIN", format="<codes>", lists={"codes": str(tmp_path / "names.txt")})
    assert formats([plan])[0].size == 2
    check_secrets(AuditPlan(secrets=(plan,)), examples())
