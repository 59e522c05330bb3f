"""The demonstration, made small: the same records twice, without and with differential privacy, side by side."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from sordino import demo
from sordino.commands import run_demo
from sordino.records.store import load as load_split
from sordino.run import Run


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a small demonstration, and what it printed."""
    folder, whole, private = tmp_path_factory.mktemp("demo"), demo.demo_config, demo.private_config

    def small(*arguments):
        config = whole(*arguments)
        return replace(
            config,
            canaries=replace(config.canaries, levels=(1, 8), per_level=2, digits=2),
            method=replace(config.method, rank=4, alpha=8.0),
            train=replace(config.train, epochs=1),
            audit=replace(config.audit, shuffles=99),
        )

    def smaller(plain):
        config = private(plain)
        return replace(config, train=replace(config.train, epochs=1, batch_size=6))

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        patch.setattr(demo, "CUSTOMERS", 24)
        patch.setattr(demo, "demo_config", small)
        patch.setattr(demo, "private_config", smaller)
        assert run_demo(folder / "out", 3) == 0
    return folder / "out", output.getvalue().splitlines()


@pytest.fixture(scope="module")
def runs(shown):
    """The plain run and the private one."""
    return [Run.open(next(shown[0].glob(f"*-{name}-*"))) for name in ("plain", "private")]


def test_it_names_one_page_that_leads_to_both_reports(shown, runs):
    folder, lines = shown
    page = folder / "side-by-side.html"
    assert lines[-1] == str(page) and "Side by side" in "".join(lines)
    text = page.read_text()
    for run in runs:
        assert f'href="{run.path.name}/report.html"' in text and (run.path / "report.html").exists()
    assert "before tuning" in text and "no claim" in text and "ε = " in text


def test_the_two_runs_differ_in_the_training_alone(runs):
    plain, private = runs
    assert load_split(plain.records).examples == load_split(private.records).examples
    assert (plain.private / "canaries.json").read_bytes() == (private.private / "canaries.json").read_bytes()
    assert not plain.card.privacy and 7 < private.card.privacy["epsilon"] <= 8
    [bound] = [gate for gate in private.audit.gates if gate.name == "bound"]
    assert bound.passed is not None, "the coins of the audit must fit the unit of the claim"


def test_the_untuned_model_is_read_once(runs):
    plain, private = ([json.loads(p.read_text()) for p in run.private.glob("signals/*/manifest.json")] for run in runs)
    lent = [m for m in private if "from" in m]
    assert len(lent) == len([m for m in plain if m.get("model") == "base"]) >= 2
    assert {m["model"] for m in lent} == {"base"} and {m["from"] for m in lent} == {runs[0].path.name}
    assert not any("from" in m for m in plain)


def test_the_settings_of_the_real_one_are_in_order(tmp_path):
    from sordino.config import check_values

    plain = demo.demo_config(tmp_path / "tickets.jsonl", tmp_path, 0)
    private = demo.private_config(plain)
    for config in (plain, private):
        check_values(config)
    assert private.dp is not None and private.dp.unit == "cluster" and private.dp.seed is None
    assert (private.seed, private.split, private.canaries) == (plain.seed, plain.split, plain.canaries)
