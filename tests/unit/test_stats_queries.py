"""How many samples it takes: golden numbers of 60 digits, and what a loop of samples gives."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sordino.errors import AuditError, ConfigError
from sordino.stats import log10_queries, queries, within

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "exposure_np.json").read_text())
CASES = [*GOLDEN["tiny_probabilities"], *(t for s in GOLDEN["n_p"]["settings"] for t in s["targets"])]


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c.get("case", c.get("target"))))
def test_the_numbers_are_those_of_sixty_digits(case):
    log_p = float(case["log_p"])
    for wanted, needed in case["needed_n"].items():
        count, digits = float(queries(log_p, float(wanted))), float(log10_queries(log_p, float(wanted)))
        if needed.get("log10_n") is None:
            assert count == digits == math.inf
            continue
        assert digits == pytest.approx(needed["log10_n"], rel=1e-9, abs=1e-12)
        if needed["n"] is not None:
            assert count == needed["n"]
        else:
            real = float(needed["n_real"])
            assert count == pytest.approx(real, rel=1e-9) if math.isfinite(real) else count == math.inf
    for n, probability in case["probability_at_n"].items():
        assert float(within(log_p, float(n))) == pytest.approx(probability, rel=1e-9, abs=0)


def test_there_are_cases_of_every_kind():
    logs = np.array([float(c["log_p"]) for c in CASES])
    assert (logs == 0).any() and np.isneginf(logs).any() and (logs < -1000).any()
    assert ((logs < -40) & (logs > -100)).any() and ((logs < 0) & (logs > -5)).any()


def test_the_number_is_the_least_that_does():
    logs = -np.geomspace(1e-3, 20, 40)
    for wanted in (0.1, 0.5, 0.9, 0.999):
        for log_p, n in zip(logs, queries(logs, wanted), strict=True):
            assert within(log_p, n) >= wanted * (1 - 1e-12)
            assert n == 1 or within(log_p, n - 1) < wanted


def test_one_formula_goes_over_into_the_other():
    for edge in (-40.0, -700.0, -math.log(2)):
        sides = np.array([edge - 1e-9, edge + 1e-9])
        for n in (1.0, 1e12, 1e300):
            below, above = within(sides, n)
            assert below == pytest.approx(above, rel=1e-6)
        below, above = log10_queries(sides, 0.95)
        assert below == pytest.approx(above, rel=1e-6, abs=1e-6)


def test_samples_come_as_often_as_it_says():
    rng, p = np.random.default_rng(0), 0.03
    n = int(queries(math.log(p), 0.5))
    hit = (rng.random((20_000, n)) < p).any(axis=1).mean()
    assert hit == pytest.approx(float(within(math.log(p), n)), abs=4 * math.sqrt(0.25 / 20_000))


def test_shapes_stay_and_nonsense_is_refused():
    assert queries(np.full((2, 3), -1.0), 0.5).shape == within(np.full((2, 3), -1.0), 4).shape == (2, 3)
    assert within(np.array([0.0, -math.inf]), 0).tolist() == [0.0, 0.0]
    for wanted in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="wanted probability"):
            queries(-1.0, wanted)
    with pytest.raises(ConfigError, match="number of queries"):
        within(-1.0, -1)
    for bad in (0.1, math.nan):
        with pytest.raises(AuditError, match="log-probability"):
            within(np.array([-1.0, bad]), 2)
