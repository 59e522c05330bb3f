"""Our attacks give the numbers of the public reference implementations; exposures those of enumeration.

`membership_scores.json` and `exposure_np.json` say in `meta` who produced each number, and how closely
it is to be met.
"""

import itertools
import json
import zlib as compression
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.attacks.base import find
from sordino.attacks.complexity import compressed_sizes
from sordino.attacks.extraction.exposure import Exposure, search
from sordino.attacks.frequencies import divergence, smoothed
from sordino.reduction import token_statistics
from sordino.signals import Ragged, Signals, Statistics


def golden(name):
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


SCORES, EXPOSURE = golden("membership_scores.json"), golden("exposure_np.json")
INPUTS, EXPECTED, RAW = SCORES["inputs"], SCORES["normalised"], SCORES["raw_reference_values"]
FLOAT64, FLOAT32 = torch.float64, torch.float32
SHARES = ("0.1", "0.2", "0.4", "1.0")


def statistics(rows):
    """Statistics of records given as (logits, ids, mask): the next token of each real token but the last."""
    parts, position, token = [], [], []
    for logits, ids, mask in rows:
        scored = np.flatnonzero(mask[:-1] & mask[1:])
        targets = torch.from_numpy(ids[scored + 1])
        # The whole padded row goes through; what stands under the padding is left out afterwards.
        found = token_statistics(logits[:-1].clone(), torch.from_numpy(ids[1:]))
        parts.append([column.numpy()[scored] for column in found])
        position.append((scored + 1 - scored[0]).astype(np.int32))
        token.append(targets.numpy().astype(np.int32))
    logprob, mean, variance, rank, top = (np.concatenate(column) for column in zip(*parts, strict=True))
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in position])]).astype(np.int64)
    return Statistics(
        offsets=offsets, position=np.concatenate(position), token=np.concatenate(token), logprob=logprob,
        mean=mean, variance=variance, rank=rank.astype(np.int32), top=top.astype(np.int32),
    )  # fmt: skip


def batch(logits, dtype):
    ids, mask = np.array(INPUTS["ids"]), np.array(INPUTS["attention_mask"])
    return [(torch.tensor(row, dtype=dtype), ids[i], mask[i]) for i, row in enumerate(logits)]


def unpadded(rows, dtype):
    pairs = [(torch.tensor(row["target_logits"], dtype=dtype), np.array(row["ids"])) for row in rows]
    return [(logits, ids, np.ones(len(ids), dtype=np.int64)) for logits, ids in pairs]


def signals_of(dtype, target=None):
    def bare(rows):
        texts = tuple(INPUTS["texts"])
        seen = {"compressed": compressed_sizes(texts)}
        return Signals(record_ids=("0", "1", "2"), texts=texts, statistics=statistics(rows), measured=seen)

    made = bare(target or batch(INPUTS["target_logits"], dtype))
    views = {"lowercase": bare(unpadded(INPUTS["lowercase_rows"], dtype))}
    return replace(made, base=bare(batch(INPUTS["reference_logits"], dtype)), views=views)


@pytest.fixture(scope="module", params=[FLOAT64, FLOAT32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def signals(dtype):
    return signals_of(dtype)


def near(found, expected, dtype, loose=2e-5):
    tolerance = 1e-9 if dtype == FLOAT64 else loose
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float64), rtol=tolerance, atol=tolerance)


def scores(name, signals, **parameters):
    return find("membership", name)(signals, **parameters)


def test_loss(signals, dtype):
    near(scores("loss", signals), EXPECTED["loss"], dtype)


def test_zlib(signals, dtype):
    # How short zlib makes a text depends on its version: theirs is undone, ours is put in.
    ours = [len(compression.compress(text.encode())) for text in INPUTS["texts"]]
    near(scores("zlib", signals) * ours / INPUTS["zlib_lengths"], EXPECTED["zlib"], dtype)


def test_lowercase(signals, dtype):
    near(scores("lowercase", signals), EXPECTED["lowercase"], dtype, 1e-4)


def test_reference(signals, dtype):
    near(scores("reference", signals), EXPECTED["reference_difference"], dtype)


def test_reference_ratio(signals, dtype):
    loss, difference = np.array(EXPECTED["loss"]), np.array(EXPECTED["reference_difference"])
    near(scores("reference_ratio", signals), (difference - loss) / -loss, dtype, 1e-4)
    near(scores("reference", signals, kind="ratio"), (difference - loss) / -loss, dtype, 1e-4)


@pytest.mark.parametrize("share", SHARES)
def test_min_k(signals, dtype, share):
    near(scores("min_k", signals, k=float(share)), EXPECTED[f"min_k_{share}"], dtype)


@pytest.mark.parametrize("share", SHARES)
def test_min_k_plus_plus(signals, dtype, share):
    near(scores("min_k_plus_plus", signals, k=float(share)), EXPECTED[f"min_k_plus_plus_{share}"], dtype, 1e-4)


def test_windows(signals, dtype):
    near(scores("windows", signals), EXPECTED["wbc"], dtype)
    sizes = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
    each = np.stack([scores("windows", signals, sizes=(size,)) for size in sizes], axis=1)
    near(each, [row["per_window"] for row in RAW["wbc"]], dtype)


@pytest.mark.parametrize("case", sorted(SCORES["wbc_edge_cases"]))
def test_windows_of_short_texts_and_ties(case):
    expected = SCORES["wbc_edge_cases"][case]

    def bare(losses):
        some = np.zeros(len(losses), dtype=np.int32)
        logprob = -np.array(losses)
        made = Statistics(
            offsets=np.array([0, len(losses)]), position=some, token=some, logprob=logprob, mean=logprob,
            variance=-logprob, rank=some, top=some,
        )  # fmt: skip
        return Signals(record_ids=("0",), texts=("",), statistics=made)

    made = replace(bare(expected["target_token_losses"]), base=bare(expected["reference_token_losses"]))
    assert scores("windows", made).tolist() == [expected["score"]]


def mean_logprob(rows, dtype, scored=0):
    """The mean ln p of each row's tokens, from the token number `scored` on (0: all but the first)."""
    found = statistics(unpadded(rows, dtype))
    offsets = found.offsets
    first = max(1, scored) - 1
    return [found.logprob[a + first : b].astype(np.float64).mean() for a, b in itertools.pairwise(offsets)]


def test_neighbourhood(signals, dtype):
    rows = [mean_logprob(rows, dtype) for rows in INPUTS["neighbour_rows"]]
    made = replace(signals, measured={"neighbours": -np.array(rows)})
    near(scores("neighbourhood", made), EXPECTED["neighbourhood_mean_difference"], dtype)
    near(scores("neighbourhood", made), RAW["mink_plus_plus"]["neighbor"], dtype)
    # A public tool takes the best of the neighbours instead of their mean: another attack, with other numbers.
    best = -np.array(rows).max(axis=1) - signals.nll
    assert np.abs(scores("neighbourhood", made) - best).max() > 0.01


def test_recall(signals, dtype):
    after = mean_logprob(INPUTS["conditional_rows"], dtype, len(INPUTS["prefix_ids"]))
    near(after, RAW["recall_official"]["conditional_ll"], dtype)
    made = replace(signals, measured={"prefixes": np.stack([after, -signals.nll], axis=1)})
    near(scores("recall", made), EXPECTED["recall"], dtype)
    near(-scores("recall", made), RAW["mimir"]["recall"], dtype)  # lower = member there


def test_surp(signals, dtype):
    near(scores("surp", signals, k=0.4, entropy=2.0), EXPECTED["surp_k40_entropy2.0"], dtype)
    for k, entropy in itertools.product((20, 40, 100), (1.0, 2.0, 3.0)):
        wanted = np.array([row[f"k{k}_entropy{entropy}"] for row in RAW["sok_surp"]])
        # Where nothing surprises the tool gives −100, and a share of less than a token is no token to it.
        told = wanted != -100
        near(scores("surp", signals, k=k / 100, entropy=entropy)[told], wanted[told], dtype)


@pytest.mark.parametrize(("cap", "key"), [(0.01, "a0.01"), (0.1, "a0.1"), (1e9, "uncapped")])
def test_dc_pdd(signals, dtype, cap, key):
    frequency = smoothed(np.array(INPUTS["token_counts_for_dc_pdd"]))
    near(divergence(signals.statistics, frequency, cap), EXPECTED[f"dc_pdd_{key}"], dtype)


def test_pac(signals, dtype):
    """PAC is no attack here (it was made for pretraining data), but our lowest means give its numbers."""

    def distance(logprob):
        return -Ragged(-np.asarray(logprob.values), logprob.offsets).lowest_mean(0.4) - logprob.lowest_mean(0.3)

    own = distance(signals.logprob)
    near(own, [row["kmin0.3_kmax0.4"]["polarized_distance"] for row in RAW["sok_pac"]], dtype)
    rows = [statistics(unpadded(rows, dtype)) for rows in INPUTS["neighbour_rows"]]
    adjacent = np.stack([distance(Ragged(found.logprob, found.offsets)) for found in rows])
    near(adjacent, [row["kmin0.3_kmax0.4"]["adjacent"] for row in RAW["sok_pac"]], dtype)
    near(own - adjacent.mean(axis=1), EXPECTED["pac_kmin0.3_kmax0.4"], dtype)


def test_con_recall(signals, dtype):
    # No public numbers: the paper's formula, and what it comes to without members before the record.
    after, other = np.array([-3.0, -2.0, -5.0]), np.array([-1.0, -2.5, -4.0])
    columns = {"prefixes": after, "member_prefixes": other}
    made = replace(signals, measured={n: np.stack([c, -signals.nll], axis=1) for n, c in columns.items()})
    near(scores("con_recall", made), (after - 0.5 * other) / -signals.nll, dtype)
    near(scores("con_recall", made, gamma=0.0), scores("recall", made), dtype)


@pytest.mark.parametrize(("drop_first", "key"), [(True, "drop_first"), (False, "all")])
def test_error_zone(signals, dtype, drop_first, key):
    found = scores("error_zone", signals, drop_first=drop_first)
    parts = [row[f"parts_{key}"] for row in RAW["ez_mia"]]
    near(found, [(p["positive_sum"] + 1e-12) / (p["negative_sum"] + 1e-12) for p in parts], dtype, 1e-4)
    near(found, EXPECTED[f"ez_{key}"], dtype, 1e-4)


def test_the_numbers_tell_attacks_apart(signals):
    # Were two of these alike, the tests above could not tell one attack from another.
    names = ("loss", "zlib", "lowercase", "reference", "reference_ratio", "min_k", "min_k_plus_plus", "windows")
    rows = [scores(name, signals) for name in (*names, "error_zone")]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(rows, 2)) > 0.01


def test_junk_under_the_padding_does_not_matter(signals, dtype):
    logits = np.array(INPUTS["target_logits"])
    padding = np.array(INPUTS["attention_mask"]) == 0
    assert padding.any()
    logits[padding] = np.random.default_rng(0).normal(size=(padding.sum(), logits.shape[-1])) * 50
    other = signals_of(dtype, batch(logits.tolist(), dtype))
    for name in ("loss", "min_k", "min_k_plus_plus", "windows", "error_zone", "reference"):
        np.testing.assert_allclose(scores(name, other), scores(name, signals), rtol=1e-9)


def bigram(model, scale):
    start = np.array(model["initial_log_probs"]) * scale
    table = np.array(model["transition_log_probs"]) * scale
    if scale == 1e6:
        # Whole micro-nats: sums are exact, so ties are ties.
        start, table = np.rint(start), np.rint(table)

    def following(paths, parent, token):
        return start[token] if paths.shape[1] == 0 else table[paths[parent, -1], token]

    return following


@pytest.fixture(scope="module", params=[0, 1], ids=["no ties", "ties"])
def language(request):
    model = EXPOSURE["exposure"][request.param]
    rows = np.array(list(itertools.product(range(model["alphabet"]), repeat=model["length"])), dtype=np.int32)
    assert len(rows) == model["candidates"]
    return model, rows


def test_ranks_and_exposures_are_those_of_enumeration(language):
    model, rows = language
    for canary in model["canaries"]:
        target = int(np.flatnonzero((rows == canary["canary"]).all(axis=1))[0])
        better, _ = search(rows, target, bigram(model, 1e6), 10**9)
        assert better == canary["strictly_better"]
        found = Exposure(
            rank=better + 1.0, low=better + 1.0, high=better + 1.0, space=len(rows), exact=True, forwards=0
        )
        assert found.rank == canary["rank"]
        assert abs(found.bits - canary["exposure"]) <= 1e-12


def test_ranks_in_nats_are_right_where_nothing_ties(language):
    model, rows = language
    for canary in (c for c in model["canaries"] if c["tied_including_itself"] == 1):
        target = int(np.flatnonzero((rows == canary["canary"]).all(axis=1))[0])
        assert search(rows, target, bigram(model, 1.0), 10**9)[0] == canary["strictly_better"]


def test_a_likely_secret_costs_less_than_enumeration(language):
    model, rows = language
    best = min(model["canaries"], key=lambda c: c["rank"])
    target = int(np.flatnonzero((rows == best["canary"]).all(axis=1))[0])
    following = bigram(model, 1e6)
    _, spent = search(rows, target, following, 10**9)
    assert spent < 500
    assert search(rows, target, following, spent)[0] == best["strictly_better"]
    assert search(rows, target, following, spent - 1)[0] is None
