"""Roles and coins: their shares, their fairness, who shares one, and when a split is refused."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import binomtest, chi2_contingency

from sordino.errors import ConfigError, DataError
from sordino.records import DataConfig, Dataset, Example, Message, Record, SplitConfig, coin, read, split
from sordino.records.placed import tallied

WORDS = [f"w{n}" for n in range(4000)]


def dataset(*rows):
    """A data set of (unit, text); records are numbered."""
    records = tuple(Record(id=str(n), messages=(Message("text", t),), unit=u) for n, (u, t) in enumerate(rows))
    return Dataset(records=records, unit_kind="record", notices=(), source="x")


def unlike(count, seed=0):
    rng = random.Random(seed)
    return [(f"u{n}", " ".join(rng.choices(WORDS, k=20))) for n in range(count)]


def placed(rows, config=None, seed=1):
    return split(dataset(*rows), config or SplitConfig(near_duplicates=0), seed)


def notices(made):
    return {notice.kind: notice for notice in made.notices}


BIG = [(f"unit-{n}", f"text {n}") for n in range(20_000)]


def test_roles_have_their_shares():
    made = placed(BIG, SplitConfig(candidates=0.3, validation=0.2, near_duplicates=0))
    roles = Counter(example.role for example in made.examples)
    for role, share in (("candidate", 0.3), ("validation", 0.2), ("train", 0.5)):
        assert binomtest(roles[role], len(BIG), share).pvalue > 1e-3


def test_the_coin_is_fair_and_independent_of_the_role():
    made = placed(BIG, SplitConfig(candidates=0.5, validation=0.2, near_duplicates=0))
    assert binomtest(len(made.members), len(made.members) + len(made.nonmembers), 0.5).pvalue > 1e-3
    table = Counter((example.role, coin(1, example.record.unit)) for example in made.examples)
    counts = [[table[role, side] for side in (False, True)] for role in ("train", "candidate", "validation")]
    assert chi2_contingency(counts).pvalue > 1e-3


def test_coins_of_two_seeds_are_independent():
    pairs = Counter((coin(1, unit), coin(2, unit)) for unit, _ in BIG)
    assert chi2_contingency([[pairs[a, b] for b in (False, True)] for a in (False, True)]).pvalue > 1e-3


def test_coins_stay_the_same_under_a_new_version():
    assert "".join("01"[coin(7, f"u{n}")] for n in range(32)) == "01110100011101110100101101101110"


def test_included_says_who_is_trained_on():
    made = placed(BIG[:400])
    assert all(e.included for e in made.examples if e.role == "train")
    assert not any(e.included for e in made.examples if e.role in ("validation", "excluded"))
    assert all(e.included == coin(1, e.record.unit) for e in made.examples if e.role == "candidate")
    assert set(made.training) == {e for e in made.examples if e.role == "train"} | set(made.members)
    assert not set(made.training) & {*made.nonmembers, *made.validation}
    assert [e.record.id for e in made.examples] == [str(n) for n in range(400)]


def test_seeds_differ_and_repeat():
    assert placed(BIG[:200], seed=3) == placed(BIG[:200], seed=3)
    assert placed(BIG[:200], seed=3).training != placed(BIG[:200], seed=4).training
    assert placed(BIG[:200], seed=-(10**40)).training != placed(BIG[:200], seed=10**40).training


def test_changing_a_share_keeps_validation_and_coins():
    few, many = (placed(BIG[:500], SplitConfig(candidates=c, near_duplicates=0)) for c in (0.3, 0.9))
    assert {e.record.id for e in few.validation} == {e.record.id for e in many.validation}
    assert set(few.members) <= set(many.members)
    assert set(few.nonmembers) <= set(many.nonmembers)


def test_all_candidates():
    made = placed(BIG[:300], SplitConfig(candidates=1.0, validation=0, near_duplicates=0))
    assert {e.role for e in made.examples} == {"candidate"}


def test_a_unit_shares_one_placement():
    rows = [(f"u{n % 200}", text) for n, (_, text) in enumerate(unlike(600))]
    made = placed(rows, SplitConfig())
    by_unit = {}
    for example in made.examples:
        by_unit.setdefault(example.record.unit, set()).add((example.role, example.included, example.group))
    assert all(len(placements) == 1 for placements in by_unit.values())
    assert "near-duplicates" not in notices(made)


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(near_duplicates=0)])
def test_equal_texts_share_a_coin_even_without_near_duplicates(config):
    rows = [row for unit, text in unlike(150) for row in ((unit, text), (f"{unit} again", text))]
    made = placed(rows, config)
    for first, second in zip(made.examples[::2], made.examples[1::2], strict=True):
        assert (second.role, second.included, second.group) == (first.role, first.included, first.record.unit)
    assert notices(made)["near-duplicates"].count == 300
    assert notices(made)["near-duplicates"].message == "300 units form 150 clusters of duplicates, each with one coin."


def test_near_duplicates_join_the_oldest_unit():
    rows = [row for unit, text in unlike(150) for row in ((unit, text), (f"{unit} again", f"{text} more"))]
    for first, second in zip(*[iter(placed(rows, SplitConfig()).examples)] * 2, strict=True):
        assert (second.role, second.included, second.group) == (first.role, first.included, first.record.unit)


def bridges(config, count=120):
    """For every two units a third with the texts of both, long enough to be near to each."""
    halves = unlike(2 * count)
    rows = list(halves)
    for n in range(count):
        rows += [(f"bridge{n}", halves[2 * n][1]), (f"bridge{n}", halves[2 * n + 1][1])]
    return placed(rows, config), 2 * count


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(near_duplicates=0)])
def test_a_record_between_two_placements_is_excluded_and_between_equal_ones_merges(config):
    made, start = bridges(config)
    excluded = merged = 0
    for n in range(start // 2):
        left, right = made.examples[2 * n], made.examples[2 * n + 1]
        first, second = made.examples[start + 2 * n : start + 2 * n + 2]
        assert (first.role, first.included) == (left.role, left.included)
        if (left.role, left.included) == (right.role, right.included):
            merged += 1
            assert {left.group, right.group, first.group, second.group} == {left.record.unit}
        else:
            excluded += 1
            assert (second.role, second.included, second.group) == ("excluded", False, second.record.unit)
            assert left.group != right.group
    assert excluded > 10
    assert merged > 10
    assert notices(made)["excluded-records"].count == excluded


def test_system_prompts_make_no_cluster():
    shared = Message("system", " ".join(WORDS[:200]))
    records = tuple(
        Record(id=unit, messages=(shared, Message("user", "?"), Message("assistant", text)), unit=unit)
        for unit, text in unlike(100)
    )
    made = split(Dataset(records=records, unit_kind="record", notices=(), source="x"), SplitConfig(), 1)
    assert len({example.group for example in made.examples}) == 100


def test_a_template_is_noticed():
    rng = random.Random(0)
    template = rng.choices(WORDS, k=100)
    rows = unlike(200) + [(f"t{n}", " ".join([*template, rng.choice(WORDS)])) for n in range(40)]
    notice = notices(placed(rows, SplitConfig()))["large-cluster"]
    assert notice.count == 40
    assert notice.message == (
        "One cluster of near-duplicates holds 40 of 240 units. If the texts follow a template, "
        "raise split.near_duplicates, or set it to 0 to compare whole texts only."
    )
    assert "large-cluster" not in notices(placed(rows[:-20], SplitConfig()))


def test_what_an_audit_can_resolve_is_said():
    made = placed(BIG[:1000], SplitConfig(candidates=0.5, near_duplicates=0))
    notice = notices(made)["audit-power"]
    out, inside = len(made.nonmembers), len(made.members)
    assert notice.count == out
    half_width = 1.96 * ((inside + out + 1) / (12 * inside * out)) ** 0.5
    assert f"false-positive rates under {10 / out:.2g} cannot be resolved" in notice.message
    assert f"about ±{half_width:.2g}." in notice.message
    assert "audit-power" not in notices(placed(BIG[:6000]))


@pytest.mark.parametrize(
    ("rows", "config", "expected"),
    [
        (
            BIG[:20],
            SplitConfig(),
            "audit needs 20, 10 on each side. Set split.candidates: 1.0, add records, or set",
        ),
        (BIG[:15], SplitConfig(candidates=1, validation=0), "The split has 15 candidate groups"),
        (
            BIG[:15],
            SplitConfig(candidates=1, validation=0),
            "each side. Add records, or set split.candidates: 0",
        ),
        (
            BIG[:3],
            SplitConfig(candidates=0, validation=1),
            "None of the 3 units is left to train on. Add records",
        ),
    ],
)
def test_too_few_units(rows, config, expected):
    with pytest.raises(DataError) as caught:
        placed(rows, config)
    assert expected in str(caught.value)


def test_each_side_needs_ten():
    made = {seed: Counter(coin(seed, unit) for unit, _ in BIG[:20]) for seed in range(40)}
    lopsided = next(seed for seed, sides in made.items() if sides[True] < 10)
    even = next(seed for seed, sides in made.items() if sides[True] == 10)
    config = SplitConfig(candidates=1, validation=0, near_duplicates=0)
    inside = made[lopsided][True]
    with pytest.raises(DataError, match=rf"20 candidate groups \({inside} in, {20 - inside} out\)"):
        placed(BIG[:20], config, lopsided)
    assert len(placed(BIG[:20], config, even).members) == 10


def test_no_candidates_is_a_choice():
    made = placed(BIG[:5], SplitConfig(candidates=0, validation=0, near_duplicates=0))
    assert (len(made.training), list(notices(made))) == (5, ["no-audit"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SplitConfig(candidates=1.2), r"split.candidates is 1.2. Set a share from 0 to 1."),
        (SplitConfig(validation=-0.1), r"split.validation is -0.1."),
        (SplitConfig(near_duplicates=80), r"split.near_duplicates is 80."),
        (SplitConfig(candidates=float("nan")), r"split.candidates is nan."),
        (SplitConfig(candidates=0.7, validation=0.4), r"\(0.7\) and split.validation \(0.4\) add up to 1.1."),
    ],
)
def test_shares_that_cannot_be(config, expected):
    with pytest.raises(ConfigError, match=expected):
        placed(BIG[:100], config)


def canary(name, role="canary"):
    record = Record(id=name, messages=(Message("text", "secret"),), unit=name)
    return Example(record=record, role=role, included=True, group=name, repetitions=4)


def test_canaries_are_appended():
    made = placed(BIG[:200])
    with_them = made.with_canaries([canary("c1")])
    assert with_them.canaries == (canary("c1"),)
    assert with_them.examples[:-1] == made.examples
    assert (with_them.members, with_them.training[-1]) == (made.members, canary("c1"))
    with pytest.raises(DataError, match="Canary '7' has the id of another record"):
        made.with_canaries([canary("7")])
    with pytest.raises(DataError, match="Canary 'c1' has the id"):
        made.with_canaries([canary("c1"), canary("c1")])
    with pytest.raises(DataError, match="Record 'c1' has the role 'train', not 'canary'"):
        made.with_canaries([canary("c1", role="train")])


def test_read_and_split_agree_on_units(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for _, text in unlike(400)))
    data = read(DataConfig(path="a.txt", unit_rows=4), tmp_path)
    made = split(data, SplitConfig(), 1)
    assert {example.group for example in made.examples} == set(data.units)


def test_tallies_are_those_of_counting_one_by_one():
    made = placed(unlike(120), seed=3)
    first = made.examples[0]
    canary = [replace(first, record=replace(first.record, id=f"canary-{i}", unit=f"c{i}"), role="canary",
                      included=bool(i % 2), repetitions=i) for i in range(1, 5)]  # fmt: skip
    examples = [*made.examples, *canary]
    own = [e for e in examples if e.role != "canary"]
    expected = {
        "records": len(own), "units": len({e.record.unit for e in own}), "trained": sum(e.included for e in own),
        "members": sum(e.role == "candidate" and e.included for e in own),
        "non-members": sum(e.role == "candidate" and not e.included for e in own),
        "coins": len({e.group for e in own if e.role == "candidate"}),
        "validation": sum(e.role == "validation" for e in own), "excluded": sum(e.role == "excluded" for e in own),
        "canaries": 4, "canary copies": 1 + 3,
    }  # fmt: skip
    assert tallied(made.with_canaries(canary).examples) == expected
    assert tallied(tuple(examples)) == expected
