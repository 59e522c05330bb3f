"""For any data: appending records moves nobody, no duplicate straddles the coin, and units stay whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.records import Dataset, Message, Record, SplitConfig, split
from sordino.records.clusters import index_texts, jaccard
from sordino.records.columns import record_rows
from sordino.records.split import PLACEMENTS, _place

# Few words and few units, so that near-duplicates, bridges and mixed units are common.
words = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8).map(" ".join)
bases = st.sampled_from([" ".join(f"{letter}{n}" for n in range(20)) for letter in "pqr"])
texts = st.one_of(words, bases, st.tuples(bases, words).map(" ".join), st.tuples(bases, bases).map(" ".join))
rows = st.lists(st.tuples(st.integers(0, 25), texts), min_size=1, max_size=40)
thresholds = st.sampled_from([0, 0.4, 0.8, 1.0])
seeds = st.integers(0, 2**64)


def place(chosen, threshold, seed):
    """(role, included, group) of each row, by the rule alone: small data have too few coins for an audit."""
    records = [Record(id=str(n), messages=(Message("text", t),), unit=str(u)) for n, (u, t) in enumerate(chosen)]
    config = SplitConfig(candidates=0.6, validation=0.2, near_duplicates=threshold)
    placed = _place(record_rows(records), config, seed)
    return [(*PLACEMENTS[p], g) for p, g in zip(placed.placement.tolist(), placed.founder.tolist(), strict=True)]


@settings(max_examples=60, deadline=None)
@given(rows, thresholds, seeds, st.data())
def test_appending_records_moves_nobody(chosen, threshold, seed, data):
    old = data.draw(st.integers(0, len(chosen)))
    before = place(chosen[:old], threshold, seed)
    after = place(chosen, threshold, seed)[:old]
    assert [placement[:2] for placement in before] == [placement[:2] for placement in after]


@settings(max_examples=60, deadline=None)
@given(rows, thresholds, seeds)
def test_no_duplicate_and_no_unit_straddles(chosen, threshold, seed):
    placed = place(chosen, threshold, seed)
    for i, (unit, text) in enumerate(chosen):
        for j in range(i):
            same = unit == chosen[j][0] or text == chosen[j][1]
            near = threshold > 0 and jaccard(text, chosen[j][1]) >= threshold
            if (same or near) and "excluded" not in (placed[i][0], placed[j][0]):
                assert placed[i] == placed[j]


@settings(max_examples=50, deadline=None)
@given(rows, thresholds, seeds)
def test_only_conflicts_are_excluded(chosen, threshold, seed):
    placed = place(chosen, threshold, seed)
    for i, (unit, text) in enumerate(chosen):
        if placed[i][0] == "excluded":
            touched = {
                placed[j][:2]
                for j in range(i)
                if placed[j][0] != "excluded"
                and (
                    unit == chosen[j][0]
                    or text == chosen[j][1]
                    or (threshold > 0 and jaccard(text, chosen[j][1]) >= threshold)
                )
            }
            assert len(touched) > 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(texts, st.text(max_size=12)), max_size=25), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_near_duplicates_are_exact(chosen, threshold):
    index = index_texts(chosen, threshold)
    for i, text in enumerate(chosen):
        expected = [j for j in range(i) if jaccard(text, chosen[j]) >= threshold]
        assert sorted(index.adjacent(i)) == expected
        index.add(i)


@settings(max_examples=15, deadline=None)
@given(rows, seeds)
def test_the_public_split_follows_the_rule(chosen, seed):
    """With enough lone units added for an audit, `split` says of every row what the rule says."""
    padded = chosen + [(100 + n, f"filler {n:05d} {n * 7919}") for n in range(150)]
    records = tuple(Record(id=str(n), messages=(Message("text", t),), unit=str(u)) for n, (u, t) in enumerate(padded))
    made = split(
        Dataset(records=records, unit_kind="record", notices=(), source="x"),
        SplitConfig(candidates=0.6, validation=0.2),
        seed,
    )
    rule = place(padded, 0.8, seed)
    assert [(e.role, e.included) for e in made.examples] == [placement[:2] for placement in rule]
    for example, (role, _, group) in zip(made.examples, rule, strict=True):
        assert example.group == (example.record.unit if role == "excluded" else str(padded[group][0]))
