"""What CONTRIBUTING.md says of adding an attack is done to the letter, and works."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from attack_checks import MEMBERSHIP_CHECKS, given, synthetic

from sordino.attacks.base import GROUP, discover
from sordino.errors import AuditError

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language):
    """The one code block in `language`."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
    return found


def install(folder, name, points):
    """What pip leaves behind of a package that has the guide's file and `points`."""
    (folder / f"{name}.py").write_text(block("python"), encoding="utf-8")
    info = folder / "somebodys_attack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-attack\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")


@pytest.fixture
def example(tmp_path, monkeypatch):
    (name,) = re.findall(r"`src/sordino/attacks/membership/(\w+)\.py`", GUIDE)
    assert name not in discover("membership")
    install(tmp_path, name, tomllib.loads(block("toml"))["project"]["entry-points"][GROUP])
    monkeypatch.syspath_prepend(tmp_path)
    yield discover("membership")[name]
    sys.modules.pop(name, None)


@pytest.mark.parametrize("check", MEMBERSHIP_CHECKS, ids=lambda check: check.__name__)
def test_the_example_passes_every_check(example, check):
    check(example)


def test_the_example_is_a_score_of_its_own(example):
    signals = synthetic(1.0)
    mine = example(given(signals, example)).argsort()
    for attack in discover("membership").values():
        if attack.name != example.name:
            assert (attack(given(signals, attack)).argsort() != mine).any()


def test_the_example_is_what_its_docstring_says(example):
    import numpy as np

    signals = synthetic(1.0)
    rows = np.split(signals.statistics.rank, signals.statistics.offsets[1:-1])
    np.testing.assert_allclose(example(signals), [-np.mean([np.log(1 + r) for r in row]) for row in rows])


def test_two_attacks_of_one_name_are_refused(tmp_path, monkeypatch):
    install(tmp_path, "somebody", {"loss": "sordino.attacks.membership.loss:loss"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AuditError, match=r"Two attacks are named 'loss'.*Uninstall or rename one"):
        discover("membership")


def test_files_that_the_guide_names_exist():
    root = Path(__file__).parents[2] / "src" / "sordino"
    named = set(re.findall(r"`([a-z_]+/(?:[a-z_]+\.py|[a-z_]+/)?|[a-z_]+\.py)`", GUIDE))
    assert {"stats/", "records/readers.py", "collect.py", "attacks/extraction/"} <= named
    assert [name for name in named if not (root / name).exists()] == []
