"""`sordino audit --plan`: what a wanted figure takes, without a run, a model or torch."""

import json
import os
import subprocess
import sys

import pytest

from sordino import stats
from sordino.audit.planning import Wanted, needs
from sordino.cli import _run
from sordino.errors import ConfigError


def test_every_figure_says_what_it_takes():
    general, gaussian, tight, row, best, area, best_area = needs(Wanted())
    assert "one-run" in general.wanted and "randomised response of ε = 4" in general.how
    assert general.coins < tight.coins < gaussian.coins and "f-dp" in tight.wanted
    assert (row.nonmembers, best.nonmembers) == (2000, 3000)
    assert row.members < best.members == -(-row.members * 3 // 2)
    assert stats.smallest_detectable_auc(area.members, area.nonmembers) <= 0.55
    assert best_area.members == -(-area.members * 3 // 2)
    for one in (row, best, area, best_area):
        assert one.coins == 2 * max(one.members, one.nonmembers)


def test_more_is_asked_for_more():
    def coins(**wanted):
        return [n.coins for n in needs(Wanted(**wanted))]

    few, many = coins(), coins(power=0.95, fpr=0.001, tpr=0.05, auc=0.52)
    assert all(a < b for a, b in zip(few, many, strict=True))
    assert coins(truth=8)[1] < few[1]


def test_what_no_number_of_coins_reaches_is_said():
    near = needs(Wanted(epsilon=2, truth=2.1))[1]
    assert near.coins is near.members is None and "not with 200,000 coins" in near.how


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"truth": 1.0}, "true ε is 1"), ({"auc": 0.5}, "auc is 0.5"), ({"fpr": 0.0}, "fpr is 0"), ({"tpr": 1.0}, "tpr"),
     ({"delta": 0.0}, "delta is 0"), ({"power": 1.5}, "power is 1.5"), ({"epsilon": 0.0}, "ε")],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wanted, words):
    with pytest.raises(ConfigError, match=words):
        needs(Wanted(**wanted))


def test_the_command_prints_a_table_or_json(capsys):
    assert _run(["audit", "--plan", "--fpr", "0.1", "--epsilon", "1", "--truth", "8"]) == 0
    table = capsys.readouterr().out
    assert "non-members" in table and "200" in table and "AUC 0.55" in " ".join(table.split())
    assert _run(["audit", "--plan", "--json", "--tpr", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wanted"]["tpr"] == 0.2 and len(found["needs"]) == 7


@pytest.mark.parametrize(
    "words", [["--fpr", "0.1"], ["run", "--power", "0.9"], ["run", "--plan"], ["--plan", "--model", "gpt2"]]
)
def test_a_plan_and_an_audit_are_not_asked_for_at_once(words, capsys):
    assert _run(["audit", *words]) == 2
    assert "cannot be given for" in capsys.readouterr().err


def test_planning_loads_no_torch():
    code = (
        "import sys; from sordino.cli import _run; code = _run(['audit', '--plan', '--json']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
