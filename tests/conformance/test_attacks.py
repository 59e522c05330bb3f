"""Every attack that can be found, ours or installed, against its controls; a new one needs no new test."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_checks import (
    LABELS,
    MEMBERSHIP_CHECKS,
    has_one_name,
    says_what_it_is,
    sees_no_labels,
    statistics,
    synthetic,
)

from sordino.attacks.base import Attack, discover, find, membership
from sordino.attacks.extraction.exposure import exposure
from sordino.attacks.extraction.prefix import prefix
from sordino.attacks.passages import SHORTEST
from sordino.attacks.spaces import secret_space
from sordino.canaries import Canary
from sordino.collect import collect
from sordino.errors import AuditError
from sordino.generate import greedy
from sordino.records import Message, Record
from sordino.serialize import Serializer
from sordino.signals import Signals

MEMBERSHIP, EXTRACTION = discover("membership"), discover("extraction")
OURS = (
    "con_recall",
    "correctness",
    "dataset_inference",
    "dc_pdd",
    "error_zone",
    "gradient_norm",
    "lira",
    "lira_offline",
    "loss",
    "lowercase",
    "min_k",
    "min_k_plus_plus",
    "modified_entropy",
    "neighbourhood",
    "one_step",
    "petal",
    "preference_chosen",
    "preference_margin",
    "preference_rejected",
    "quantile",
    "recall",
    "reference",
    "reference_ratio",
    "rmia",
    "rmia_offline",
    "rmia_ratio",
    "samia",
    "spv",
    "surp",
    "tuned_gradient_norm",
    "user_inference",
    "windows",
    "zlib",
)


@pytest.mark.parametrize("check", MEMBERSHIP_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("attack", MEMBERSHIP.values(), ids=MEMBERSHIP)
def test_membership(attack, check):
    check(attack)


@pytest.mark.parametrize("attack", EXTRACTION.values(), ids=EXTRACTION)
def test_extraction_attacks_say_what_they_are(attack):
    says_what_it_is(attack)
    assert attack.name == attack.run.__name__
    assert not LABELS & set(inspect.signature(attack.run).parameters)


@pytest.mark.parametrize("attack", discover("in-context").values(), ids=lambda a: a.name)
@pytest.mark.parametrize("check", [has_one_name, says_what_it_is, sees_no_labels], ids=lambda c: c.__name__)
def test_attacks_on_the_prompt_say_what_they_are(attack, check):
    check(attack)


def test_the_attacks_that_ship_are_found():
    assert set(OURS) <= set(MEMBERSHIP)
    assert {"prefix", "exposure", "verbatim"} <= set(EXTRACTION)
    assert list(MEMBERSHIP) == sorted(MEMBERSHIP)
    assert all(name == attack.name for name, attack in MEMBERSHIP.items())
    has_one_name(prefix)


def test_arithmetic_attacks_import_no_torch():
    code = (
        "import importlib, json, sys\n"
        f"for name in {[a.run.__module__ for a in MEMBERSHIP.values()] + [prefix.run.__module__]}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'{name} imports torch')\n"
        "print(json.dumps('done'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert json.loads(done.stdout) == "done"


def test_a_name_that_is_not_there_gets_a_suggestion():
    with pytest.raises(AuditError, match=r"No membership attack named 'mink'\. Did you mean 'min_k'\?"):
        find("membership", "mink")


@pytest.mark.parametrize(
    ("returned", "match"),
    [(np.zeros(3), "returned shape"), (np.full(200, np.inf), "infinite score"), (np.zeros((200, 1)), "returned shape")],
)
def test_the_checks_catch_an_attack_that_returns_something_else(returned, match):
    from attack_checks import scores

    def broken(signals: Signals):
        return returned

    with pytest.raises(AuditError, match=match):
        scores(membership(paper="2026")(broken), synthetic(0.0))


def inverted(signals: Signals):
    """Score a record by its loss, the wrong way round."""
    return signals.nll


def cheating(signals: Signals):
    """Score a record by where it stands, which its company decides."""
    return -(np.arange(len(signals)) % 2).astype(np.float64)


@pytest.mark.parametrize(("wrong", "caught"), [(inverted, {"finds_members"}), (cheating, {"keeps_order"})])
def test_the_controls_catch_attacks_that_are_wrong(wrong, caught):
    failed = set()
    for check in MEMBERSHIP_CHECKS:
        try:
            check(membership(paper="2026")(wrong))
        except AssertionError:
            failed.add(check.__name__)
    assert caught <= failed


# Extraction: windows that come out word for word.


def planted(runs, lengths):
    """Signals in which exactly the tokens of `runs` (record, first position, stop) are the likeliest ones."""
    total = sum(lengths)
    logits = np.zeros((total, 8))
    tokens = np.random.default_rng(0).integers(0, 8, total)
    logits[np.arange(total), (tokens + 1) % 8] = 5.0
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for record, first, stop in runs:
        rows = np.arange(starts[record] + first - 1, starts[record] + stop - 1)
        logits[rows] = 0.0
        logits[rows, tokens[rows]] = 5.0
    names = tuple(map(str, range(len(lengths))))
    return Signals(record_ids=names, texts=names, statistics=statistics(logits, tokens, lengths))


def test_prefix_finds_the_planted_windows_and_no_other():
    # Position p of a record is its p-th token; the first scored one is 1.
    lengths = [80, 80, 80, 80, 80, 6]
    runs = [(0, 30, 50), (1, 30, 49), (2, 5, 25), (3, 20, 41), (4, 61, 81), (5, 1, 7)]
    found = prefix(planted(runs, lengths), prefix_tokens=20, suffix_tokens=20)
    hits = list(zip(found.record.tolist(), found.start.tolist(), found.stop.tolist(), strict=True))
    # Record 1 is a token short, record 2 comes too early for its prefix, record 5 is not tried.
    assert hits == [(0, 30, 50), (3, 20, 40), (4, 61, 81)]
    assert found.tried.tolist() == [42] * 5 + [0]


def test_prefix_tries_every_window_of_short_records_in_proportion():
    found = prefix(planted([(0, 1, 41)], [40, 20, 9]), prefix_tokens=50, suffix_tokens=50)
    assert (found.record.tolist(), found.start.tolist(), found.stop.tolist()) == ([0], [20], [40])
    # 41 tokens: 20 before, 20 of passage; 21 tokens: 10 and 10; 10 tokens: 2 and the least, 8.
    assert found.tried.tolist() == [2, 2, 1]


def test_prefix_does_not_cross_a_gap_in_what_is_scored():
    signals = planted([(0, 1, 81)], [80])
    position = signals.statistics.position.copy()
    position[40:] += 5  # tokens 41 to 45 are somebody's question
    made = replace(signals, statistics=replace(signals.statistics, position=position))
    found = prefix(made, prefix_tokens=20, suffix_tokens=20)
    naive = [s for s in position if s >= 20 and all(s + j in position for j in range(20))]
    assert found.tried.tolist() == [len(naive)]


@pytest.fixture(scope="module")
def memorised(make_model, tokenizer):
    """A model fitted to five short records until it knows some of their passages by heart."""
    model, serializer = make_model("llama", seed=4), Serializer(tokenizer, 64)
    texts = [
        "Anna called about the blue van that was left at the gate on Monday morning.",
        "The reference of this order is 77 31 90 and it has been paid for twice by now.",
        "Please send the second key to the house at the end of the lane, not to us.",
        "We have moved the meeting with Tom to the small room over the old kitchen.",
        "Nobody knew where the parcel from Lyon had gone before the snow was cleared.",
    ]
    tokens = [serializer.encode(Record(id=t, unit=t, messages=(Message("text", t),))) for t in texts]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    width = max(map(len, tokens))
    ids = torch.full((5, width), -100)
    for row, item in enumerate(tokens):
        ids[row, : len(item)] = torch.from_numpy(item.ids.astype(np.int64))
    with torch.enable_grad():
        for _ in range(60):
            loss = model.module(input_ids=ids.clamp_min(2), labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, tokens


def by_decoding(model, item, before, suffix):
    """The first window of `suffix` tokens that argmax decoding repeats, one token at a time."""
    ids = torch.from_numpy(item.ids.astype(np.int64))
    for start in range(max(1, before), len(ids) - suffix + 1):
        said = ids[:start]
        for _ in range(suffix):
            said = torch.cat([said, model.module(input_ids=said[None]).logits[0, -1].argmax()[None]])
        if torch.equal(said, ids[: start + suffix]):
            return start
    return None


@pytest.mark.parametrize(("before", "suffix"), [(4, 8), (8, 8), (6, 10)])
def test_prefix_finds_what_greedy_decoding_says(memorised, before, suffix):
    model, tokens = memorised
    made = collect(model, tokens)
    names = tuple(t.text for t in tokens)
    found = prefix(Signals(record_ids=names, texts=names, statistics=made), prefix_tokens=before, suffix_tokens=suffix)
    with torch.no_grad():
        expected = [by_decoding(model, item, before, suffix) for item in tokens]
    assert suffix >= SHORTEST
    assert found.record.tolist() == [i for i, start in enumerate(expected) if start is not None]
    assert found.start.tolist() == [start for start in expected if start is not None]
    assert len(found.record) > 0
    said = greedy(
        model, [tokens[r].ids[:s] for r, s in zip(found.record, found.start, strict=True)], [suffix] * len(found.record)
    )
    for record, start, text in zip(found.record, found.start, said, strict=True):
        assert text.tolist() == tokens[record].ids[start : start + suffix].tolist()


# Exposure: the rank of a secret among all that it could have been.

BEFORE, AFTER = "The door opens with code ", " until the end of May."


def canary_record(secret):
    return Record(id=secret, unit=secret, messages=(Message("text", BEFORE + secret + AFTER),))


def canary(secret):
    return Canary(id=secret, secret=secret, before=BEFORE, after=AFTER, repetitions=1, included=True)


def enumerated(model, serializer, space, count):
    """ln p of every secret in turn, each record tokenised whole and read whole."""
    first = len(space.context)
    whole = np.stack([serializer.encode(canary_record(f"{i:03d}")).ids for i in range(count)]).astype(np.int64)
    assert (whole[:, :first] == space.context).all()
    last = first + space.rows.shape[1]
    own = []
    with torch.no_grad():
        for ids in torch.from_numpy(whole).split(250):
            logp = torch.log_softmax(model.module(input_ids=ids).logits[:, first - 1 : last - 1].double(), -1)
            own.append(logp.gather(-1, ids[:, first:last, None])[..., 0].sum(-1))
    return whole[:, first:last], torch.cat(own).numpy()


@pytest.fixture(scope="module")
def listed(model, tokenizer):
    """All thousand secrets: their tokens and their ln p."""
    serializer = Serializer(tokenizer, 64)
    return enumerated(model, serializer, secret_space(canary_record("123"), canary("123"), serializer), 1000)


@pytest.mark.parametrize("secret", ["000", "417", "905"])
def test_exposure_is_exact(model, tokenizer, listed, secret):
    serializer, (rows, logp) = Serializer(tokenizer, 64), listed
    space = secret_space(canary_record(secret), canary(secret), serializer)
    assert sorted(map(tuple, rows.tolist())) == [tuple(row) for row in space.rows.tolist()]
    assert rows[int(secret)].tolist() == space.rows[space.target].tolist()
    (found,) = exposure(model, [space])
    rank = 1 + int((logp > logp[int(secret)]).sum())
    assert (found.rank, found.exact, found.space) == (rank, True, 1000)
    assert found.bits == pytest.approx(np.log2(1000) - np.log2(rank))
    assert found.forwards <= 1 + 10 + 2 * 100 + 1 + 1 + 2


def test_an_exposure_that_would_cost_too_much_is_estimated_with_an_interval(llama, tokenizer):
    serializer = Serializer(tokenizer, 64)
    spaces = [secret_space(canary_record(s), canary(s), serializer) for s in ("000", "417", "905", "222")]
    exact = exposure(llama, spaces)
    found = exposure(llama, spaces, token_forwards=5, sample=300)
    for estimated, true in zip(found, exact, strict=True):
        assert not estimated.exact
        assert estimated.low <= true.rank <= estimated.high
        assert 1 <= estimated.low <= estimated.rank <= estimated.high <= 1000
        assert estimated.low < estimated.high


def test_candidates_of_a_tokenizer_that_merges_digits_are_its_own(shared_data):
    from transformers import GPT2Tokenizer

    folder = shared_data / "data" / "tokenizers" / "gpt2"
    tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    serializer = Serializer(tokenizer, 64)
    space = secret_space(canary_record("417"), canary("417"), serializer)
    expected = set()
    after = len(tokenizer(AFTER, add_special_tokens=False)["input_ids"]) + 1
    for number in range(1000):
        ids = serializer.encode(canary_record(f"{number:03d}")).ids.tolist()
        assert ids[: len(space.context)] == space.context.tolist()
        expected.add(tuple(ids[len(space.context) : -after]))
    assert {tuple(i for i in row if i >= 0) for row in space.rows.tolist()} == expected
    assert len(space.rows) == 1000
    assert tokenizer.decode([i for i in space.rows[space.target] if i >= 0]).strip() == "417"


def test_attacks_are_attacks():
    assert all(isinstance(a, Attack) for a in (*MEMBERSHIP.values(), *EXTRACTION.values()))
