"""Extraction by sampling: odds by brute force, shares by counting, and how the audit and the report tell them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_fixtures import candidates, figure

from sordino.attacks.extraction.prefix import prefix
from sordino.attacks.extraction.sampling import sampling
from sordino.audit.evaluate import Evidence
from sordino.audit.judging import Judge, difference
from sordino.audit.queried import queried
from sordino.config import load
from sordino.errors import ConfigError
from sordino.report.effort_plot import count_text, effort_svg
from sordino.results import AuditPlan, Decoding, Effort, SamplingPlan
from sordino.signals import Drawn, Signals, Statistics

PLAIN, SHARP = Decoding(), Decoding(temperature=0.5, top_k=3)


def made(lengths, *, seed=0, never=0.0, gaps=False):
    """Records whose tokens are drawn with made-up probabilities, some of them never."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    logs = -rng.exponential(1.0, (total, 2)).astype(np.float32)
    logs[rng.random((total, 2)) < never] = -np.inf
    position = [np.arange(1, n + 1) + (5 * (np.arange(n) > n // 2) if gaps else 0) for n in lengths]
    zeros, ids = np.zeros(total, np.float32), np.zeros(total, np.int32)
    statistics = Statistics(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        position=np.concatenate(position).astype(np.int32), token=ids, logprob=logs[:, 0], mean=zeros, variance=zeros,
        rank=ids, top=ids,
    )  # fmt: skip
    names = tuple(f"r{i}" for i in range(len(lengths)))
    drawn = Drawn(decodings=(PLAIN, SHARP), logprob=logs)
    return Signals(record_ids=names, texts=names, statistics=statistics, drawn=drawn)


def by_hand(signals, record, column, prefix_tokens, suffix_tokens):
    """The likeliest of all windows of consecutive positions, one window after the other."""
    s = signals.statistics
    rows = range(s.offsets[record], s.offsets[record + 1])
    position = [int(s.position[r]) for r in rows]
    scale = min(1.0, (position[-1] + 1) / (prefix_tokens + suffix_tokens))
    length = max(8, int(suffix_tokens * scale))
    before = min(int(prefix_tokens * scale), position[-1] + 1 - length)
    best, count = (-math.inf, 1), 0
    for i, start in enumerate(position):
        if start < before or position[i : i + length] != list(range(start, start + length)):
            continue
        count += 1
        logs = [float(signals.drawn.logprob[rows[0] + i + j, column]) for j in range(length)]
        best = max(best, (math.fsum(logs), -start))
    return best, count, length


@pytest.mark.parametrize(("never", "gaps"), [(0.0, False), (0.03, False), (0.01, True), (1.0, False)])
def test_the_odds_are_those_of_the_likeliest_window(never, gaps):
    signals = made([90, 30, 8, 7, 0, 60], never=never, gaps=gaps)
    found = sampling(signals, prefix_tokens=20, suffix_tokens=15)
    for record, length in enumerate([90, 30, 8, 7, 0, 60]):
        for column in range(2):
            if length < 8:
                assert found.tried[record] == 0 and found.logprob[record, column] == -math.inf
                continue
            (best, start), count, suffix = by_hand(signals, record, column, 20, 15)
            assert found.tried[record] == count
            assert found.logprob[record, column] == pytest.approx(best, abs=1e-9)
            if best > -math.inf:
                assert found.start[record, column] == -start
                assert found.stop[record, column] == -start + suffix


def test_what_greedy_decoding_repeats_is_certain_to_be_drawn_greedily():
    signals = made([80, 80, 40], never=0.0)
    right = np.random.default_rng(3).random(200) < 0.9
    logs = np.where(right, 0.0, -np.inf)[:, None].astype(np.float32)
    greedy = Drawn(decodings=(Decoding(temperature=0),), logprob=logs)
    top = np.where(right, 0, 1).astype(np.int32)
    signals = replace(signals, drawn=greedy, statistics=replace(signals.statistics, top=top))
    hits = set(prefix(signals, prefix_tokens=10, suffix_tokens=12).record.tolist())
    odds = sampling(signals, prefix_tokens=10, suffix_tokens=12).logprob[:, 0]
    assert hits == set(np.flatnonzero(odds == 0).tolist())
    assert len(hits) > 0


def evidence_of(member):
    member = np.array(member)
    return Evidence.of(candidates(member, np.arange(len(member))), seed=0)


def test_shares_count_who_comes_out_within_the_queries():
    signals = made([40] * 40, seed=5)
    base = made([40] * 40, seed=6)
    plan = replace(
        AuditPlan(), prefix_tokens=20, suffix_tokens=10,
        sampling=SamplingPlan(decodings=(PLAIN, SHARP), queries=(1, 100, 10_000, 10**6), limit=100, chance=0.9),
    )  # fmt: skip
    member = [i % 2 == 0 for i in range(40)]
    judge = Judge.of(evidence_of(member), 0.95, attacks=2)
    found = queried(sampling, (signals, base), judge, plan)
    odds = sampling(signals, prefix_tokens=20, suffix_tokens=10).logprob

    def out(column, queries, side):
        chosen = [1 - (1 - math.exp(odds[i, column])) ** queries >= 0.9 for i in range(40) if member[i] is side]
        return sum(chosen) / len(chosen)

    for column, row in enumerate(found.effort):
        for i, queries in enumerate(plan.sampling.queries):
            assert row.members[i].value == pytest.approx(out(column, queries, True))
            assert row.others[i].value == pytest.approx(out(column, queries, False))
        own = sorted(-odds[i, column] / math.log(10) for i in range(40) if member[i])
        assert row.easiest == pytest.approx(own[0])
        assert row.median == pytest.approx(own[9])
    shares = [row.value for row in found.effort[0].members]
    assert shares == sorted(shares) and shares[-1] > 0
    estimates = found.attempt.estimates
    assert estimates["rate"].value == pytest.approx(out(0, 100, True))
    # Two attacks decide together: each excess is held to 97.5 %.
    assert estimates["rate"].confidence == 0.95
    assert estimates["excess"].confidence == pytest.approx(0.975)
    assert found.attempt.control["rate"].value is not None
    rows = found.rows(signals.record_ids)
    assert rows["log10_queries"][3][1] == pytest.approx(-odds[3, 1] / math.log(10))
    assert len(rows["base_log10_queries"]) == 40


def test_a_difference_is_wider_where_more_attacks_decide():
    hit, possible = np.arange(40) % 4 == 0, np.ones(40, dtype=bool)
    evidence = evidence_of([i % 2 == 0 for i in range(40)])
    one, five = (Judge.of(evidence, 0.95, n).shares(hit, possible)["excess"] for n in (1, 5))
    assert one.value == five.value == pytest.approx(0.5)
    assert five.low < one.low < one.high < five.high
    assert difference(figure(0.5, 0.4, 0.6), figure(0.5, 0.4, 0.6)).value == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decodings", []), ("decodings", [{"temperature": 1.0}, {"temperature": 1.0}]), ("queries", [10, 10]),
        ("queries", []), ("queries", [0, 1]), ("limit", 0), ("chance", 1.0),
    ],
)  # fmt: skip
def test_a_grid_that_says_nothing_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"audit.sampling.{key}"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"sampling": {key: value}}}, environment={})


def test_a_decoding_that_no_sampler_knows_is_refused():
    values = {"data": {"path": "d.jsonl"}, "audit": {"sampling": {"decodings": [{"top_p": 1.5}]}}}
    with pytest.raises(ConfigError, match=r"top_p|decodings"):
        load(values=values, environment={})


@pytest.mark.parametrize(
    ("log10", "text"),
    [(None, "never"), (0.0, "1"), (0.3, "2"), (0.52, "3.3"), (2.0, "100"), (4.0843, "12,000"), (8.9, "790,000,000"),
     (23.2, "10^23")],
)  # fmt: skip
def test_queries_are_written_as_people_write_them(log10, text):
    assert count_text(log10) == text


def test_the_picture_tells_the_shares_in_words():
    shares = tuple(figure(s, max(0, s - 0.1), min(1, s + 0.1)) for s in (0.0, 0.25, 1.0))
    row = Effort(
        decoding=PLAIN, chance=0.5, queries=(1, 1_000, 1_000_000), members=shares, others=shares[:1] * 3, base=(),
        easiest=0.3, median=2.0,
    )  # fmt: skip
    drawn = effort_svg([row, replace(row, decoding=SHARP)], key="e")
    assert "temperature 1" in drawn and "1,000: 0.25" in drawn and ">1M<" in drawn
    assert effort_svg([], key="e") == "" == effort_svg([replace(row, queries=(1,))], key="e")
