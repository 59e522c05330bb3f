"""A model trained elsewhere: whose records they are, what may be said, and that nothing is claimed beyond it."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elsewhere_fixtures import learn, texts, write_rows

from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit, audit_model
from sordino.audit.placing import place
from sordino.audit.settings import load_external
from sordino.deployed import quantize_int8
from sordino.errors import AuditError, ConfigError, DataError, ModelError, RunError
from sordino.model import attach, save
from sordino.records import DataConfig, Example, read
from sordino.records.store import load as load_split
from sordino.report import render_table, write_report

SMALL = {"audit": {"shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1]}, "max_length": 64}
KNOWN, UNKNOWN = texts(0, 60), texts(5000, 60)


@pytest.fixture(scope="module")
def desk(make_model, tmp_path_factory) -> Path:
    """A folder with a model, the same fitted to the members, and both files of records."""
    folder = tmp_path_factory.mktemp("elsewhere")
    model = make_model("llama", seed=3)
    save(model, folder / "base")
    learn(model, KNOWN)
    save(model, folder / "tuned")
    write_rows(folder / "in.jsonl", [{"body": t, "who": f"a{i // 2}"} for i, t in enumerate(KNOWN)])
    write_rows(folder / "out.jsonl", [{"body": t, "who": f"b{i // 2}"} for i, t in enumerate(UNKNOWN)])
    return folder


def values(desk: Path, **more) -> dict:
    found = {
        "model": {"path": str(desk / "tuned"), "device": "cpu"},
        "data": {"path": str(desk / "in.jsonl"), "text": "body"},
        "nonmembers": str(desk / "out.jsonl"), "out": str(desk / "runs"), **SMALL,
    }  # fmt: skip
    return found | more


@pytest.fixture(scope="module")
def audited(desk) -> tuple:
    """The audit of the fitted model beside its base."""
    run = create_external(load_external(values(desk, base=str(desk / "base"))))
    return run, audit(run)


def test_a_model_that_knows_its_members_leaks_and_no_epsilon_is_told(audited):
    _, report = audited
    assert report.verdict.state == "leaks" and not report.trained_here
    assert report.metrics["membership.loss.auc"].low > 0.8
    assert not [name for name in report.metrics if name.startswith(("epsilon", "canaries", "utility"))]
    assert {g.name: g.passed for g in report.gates} == {"blind": True, "base": True, "canaries": None}
    assert {"reference", "min_k_plus_plus", "prefix"} <= {a.name for a in report.attempts}
    assert report.metrics["membership.delta_auc"].low > 0.1


def test_nothing_is_claimed_that_is_not_there(audited):
    run, report = audited
    page = re.sub(r"<[^>]*>", " ", write_report(run).read_text())
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_table(report))
    said = " ".join([page, console.export_text(), json.dumps([c.statement for c in report.claims])])
    for words in (
        "held out by coin",
        "canaries show",
        "coins in",
        "0 coins",
        "A coin decided",
        "fixed before training",
        "differentially private",
        "ε ≥",
    ):
        assert words not in said, words
    assert "trained elsewhere" in page


def test_a_second_audit_uses_the_same_folder_and_runs_no_model(desk, audited, monkeypatch):
    import sordino.deployed

    run, report = audited
    monkeypatch.setattr(sordino.deployed, "load_deployed", lambda *a, **k: pytest.fail("a model was loaded"))
    again = create_external(load_external(values(desk, base=str(desk / "base"))))
    assert again.path == run.path
    second = audit(again)
    assert replace(second, created="", seconds={}) == replace(report, created="", seconds={})
    last = json.loads((run.path / "events.jsonl").read_text().splitlines()[-1])
    assert last["forwards"] == 0


def test_without_a_base_some_attacks_are_named_as_not_run(desk):
    run = audit_model(
        str(desk / "tuned"), members=str(desk / "in.jsonl"), nonmembers=str(desk / "out.jsonl"),
        data={"text": "body", "unit": "who"}, out=str(desk / "runs"), **SMALL,
    )  # fmt: skip
    report = run.audit
    assert report.verdict.state == "leaks"
    assert next(g for g in report.gates if g.name == "base").passed is None
    assert "no untuned model" in " ".join(report.verdict.reasons)
    assert {"error_zone", "reference", "windows"} & {a.name for a in report.attempts} == set()
    for name in ("error_zone", "reference", "reference_ratio", "windows"):
        assert f"The attack {name}: it needs the untuned base model." in report.untested
    assert report.counts["groups in"] == 30 and report.attempts[0].control == {}
    assert "membership.delta_auc" not in report.metrics
    write_report(run)


def test_an_untuned_model_is_never_called_clean(desk):
    config = load_external(values(desk, model={"path": str(desk / "base"), "device": "cpu"}))
    report = audit(create_external(config))
    assert report.verdict.state == "inconclusive"
    assert "not shown to work" in " ".join(report.verdict.reasons)
    assert {c.status for c in report.claims} == {"unresolved"}


def test_files_that_differ_void_the_membership_figures(desk, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", [{"body": f"{t} Kind regards, the desk."} for t in UNKNOWN])
    config = load_external(values(desk, nonmembers=str(other), base=str(desk / "base")))
    run = create_external(config)
    report = audit(run, require=["membership.auc <= 0.01"])
    assert report.verdict.state == "invalid split"
    assert {name for name in report.metrics if name.startswith("membership")} == {"membership.delta_auc"}
    assert [r.status for r in report.requirements] == ["inconclusive"]
    from sordino.commands import exit_code

    assert exit_code(report) == 4
    page = write_report(run).read_text()
    assert "The texts alone tell members from non-members" in page and "withheld" in page
    assert all(c.status != "contradicted" for c in report.claims if "Nobody" in c.statement)


def test_a_requirement_on_what_is_not_there_is_refused(audited):
    run, _ = audited
    with pytest.raises(ConfigError, match=r"No audit figure is called 'epsilon.lower'"):
        audit(run, require=["epsilon.lower <= 1"])


def test_an_adapter_brings_its_base(desk, make_model, tmp_path):
    from sordino.config import MethodConfig, ModelConfig
    from sordino.model import load

    base = load(ModelConfig(path=str(desk / "base"), device="cpu"))
    tuned = attach(base, MethodConfig(rank=16, alpha=64.0), 0)
    learn(tuned, KNOWN, 60)
    save(tuned, tmp_path / "adapter")
    config = load_external(
        values(desk, model={"path": str(desk / "base"), "device": "cpu"}, adapter=str(tmp_path / "adapter"))
    )
    run = create_external(config)
    report = audit(run)
    assert report.metrics["membership.reference.auc"].low > 0.6
    assert next(g for g in report.gates if g.name == "base").passed is True
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        create_external(load_external(values(desk, model={"path": str(tmp_path / "adapter")})))
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "adapter" / "adapter_config.json").read_text().replace('"lora_alpha": 64.0', '"lora_alpha": 63.0')
    )
    with pytest.raises(RunError, match="has changed since"):
        audit(run)


def test_a_base_that_reads_other_tokens_is_refused(desk, tmp_path):
    import shutil

    other = Path(shutil.copytree(desk / "base", tmp_path / "other"))
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][: len(rules["model"]["merges"]) // 4]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ModelError, match=r"reads \d+ of 120 records as other tokens"):
        create_external(load_external(values(desk, base=str(other))))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"adapter": "a", "base": "b"}, "--adapter and --base"),
        ({"adapter": "a", "quantize": "int8-dynamic"}, "--quantize is for whole models"),
        ({"tokenizer": "t"}, "there is no --endpoint"),
        ({"endpoint": "http://x", "adapter": "a"}, "--adapter is for a model that is loaded here"),
        ({"endpoint": "localhost:80", "tokenizer": "t"}, "--endpoint is 'localhost:80'"),
        ({"near_duplicates": 2.0}, "near_duplicates is 2.0"),
        ({"audit": {"shuffles": 99}}, "audit.shuffles is 99"),
        ({"datta": 1}, "Unknown configuration key 'datta'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_what_cannot_go_together_is_said(desk, more, match):
    with pytest.raises(ConfigError, match=match):
        load_external(values(desk, **more))


def test_an_attack_that_was_asked_for_and_cannot_run_is_an_error(desk):
    run = create_external(load_external(values(desk)))
    with pytest.raises(AuditError, match="'reference' cannot be carried out here: it needs the untuned base model"):
        audit(run, attacks=["reference"])


# Placing: who counts as a member, and who as neither.


def sets(tmp_path, inside, outside, **config):
    made = []
    for name, rows in (("in", inside), ("out", outside)):
        made.append(read(DataConfig(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)), text="t", **config)))
    return made


def roles(split, kept=True) -> list[Example]:
    return [e for e in split.examples if (e.role == "candidate") == kept]


def test_copies_and_near_copies_across_the_files_are_left_out_on_both_sides(tmp_path):
    inside, outside = texts(0, 30), texts(900, 30)
    long = " ".join(texts(7000, 3))
    inside += ["the same in both", long + " one"]
    outside += ["the same in both", long + " two"]
    found = place(*sets(tmp_path, [{"t": t} for t in inside], [{"t": t} for t in outside]), 0.8)
    left = [e.record.messages[0].content for e in roles(found, kept=False)]
    assert sorted(left) == sorted(["the same in both"] * 2 + [long + " one", long + " two"])
    assert not any(e.included for e in roles(found, kept=False))
    counts = {n.kind: n.count for n in found.notices if n.kind.endswith("across")}
    assert counts == {"copies-across": 2, "near-duplicates-across": 2}
    off = place(*sets(tmp_path, [{"t": t} for t in inside], [{"t": t} for t in outside]), 0)
    assert {n.kind for n in off.notices if n.kind.endswith("across")} == {"copies-across"}


def test_units_and_near_duplicates_of_a_side_are_one_group(tmp_path):
    inside = [{"t": t, "u": f"a{i // 2}", "n": str(i)} for i, t in enumerate(texts(0, 40))]
    outside = [{"t": t, "u": f"b{i // 2}", "n": str(i)} for i, t in enumerate(texts(900, 40))]
    inside.append({"t": inside[0]["t"] + " again", "u": "a7", "n": "x"})
    found = place(*sets(tmp_path, inside, outside, unit="u", id="n"), 0.8)
    groups = {e.record.messages[0].content: e.group for e in found.members}
    assert groups[inside[0]["t"]] == groups[inside[1]["t"]] == groups[inside[-1]["t"]] == groups[inside[14]["t"]]
    assert len({e.group for e in found.members}) == 19 and len({e.group for e in found.nonmembers}) == 20
    assert len({e.record.id for e in found.examples}) == len(found.examples)  # ids of both files were the same


def test_units_on_both_sides_are_left_out(tmp_path):
    inside = [{"t": t, "u": f"a{i}"} for i, t in enumerate(texts(0, 20))] + [{"t": "mine one", "u": "both"}]
    outside = [{"t": t, "u": f"b{i}"} for i, t in enumerate(texts(900, 20))] + [{"t": "yours two", "u": "both"}]
    found = place(*sets(tmp_path, inside, outside, unit="u"), 0.8)
    assert {e.record.unit for e in roles(found, kept=False)} == {"both"}


def test_too_little_is_said_with_its_reason(tmp_path):
    same = [{"t": t} for t in texts(0, 30)]
    with pytest.raises(DataError, match="leaves 0 independent members") as error:
        place(*sets(tmp_path, same, same), 0.8)
    assert "60 records of both files" in error.value.hint


def test_swapped_files_turn_the_scores_around(desk, audited):
    _, report = audited
    swapped = values(desk, base=str(desk / "base"), nonmembers=str(desk / "in.jsonl"))
    swapped["data"] = {"path": str(desk / "out.jsonl"), "text": "body"}
    other = audit(create_external(load_external(swapped)))
    ours, theirs = (next(a for a in r.attempts if a.name == "loss").estimates["auc"] for r in (report, other))
    np.testing.assert_allclose(theirs.value, 1 - ours.value, atol=1e-9)


# The form in which a model is deployed.


def nll(desk, **more) -> np.ndarray:
    run = create_external(load_external(values(desk, **more)))
    collector = Collector(run)
    assert collector.subject.manifest()["dtype"] == more.get("dtype", "auto")
    return collector.signals([e for e in load_split(run.records).examples if e.role == "candidate"], {})[0].nll


@pytest.mark.parametrize(
    ("more", "most"),
    [({"dtype": "bfloat16"}, 0.1), ({"dtype": "float16"}, 0.02), ({"quantize": "int8-dynamic"}, 0.3)],
)
def test_a_model_is_audited_in_the_numbers_it_is_deployed_in(desk, more, most):
    exact, found = nll(desk, dtype="float32"), nll(desk, **more)
    assert found.dtype == np.float64 and np.isfinite(found).all()
    assert 0 < np.abs(found - exact).max() < most


def test_a_model_stored_in_bfloat16_is_audited_in_it(desk, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(desk / "tuned", tmp_path / "half"))
    tensors = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    half = {"path": str(folder), "device": "cpu"}
    np.testing.assert_array_equal(nll(desk, model=half), nll(desk, dtype="bfloat16"))


def test_what_cannot_be_loaded_as_deployed_is_refused_with_a_way(desk, make_model, tmp_path):
    import shutil

    def opened(path):
        return create_external(load_external(values(desk, model={"path": str(path), "device": "cpu"})))

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.gguf").touch()
    for path in (tmp_path / "m", tmp_path / "m" / "model.gguf"):
        with pytest.raises(ModelError, match="is GGUF") as error:
            opened(path)
        assert "--endpoint" in error.value.hint
    folder = Path(shutil.copytree(desk / "tuned", tmp_path / "packed"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match=r"quantised \(gptq\), and gptqmodel is not installed"):
        opened(folder)
    with pytest.raises(ModelError, match="There is no model folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="in linear layers"):
        quantize_int8(make_model("gpt2").module)


# The command line.


def sordino(desk, monkeypatch, capsys, *words) -> tuple[int, str, str]:
    from sordino.cli import _run

    monkeypatch.chdir(desk)
    code = _run(["audit", *words])
    return code, *capsys.readouterr()


FILES = ("--members", "in.jsonl", "--nonmembers", "out.jsonl", "--data.text", "body")
KEYS = ("--audit.shuffles", "199", "--audit.fpr", "[0.1]", "--max_length", "64", "--model.device", "cpu")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--model", "tuned", "--base", "base"], 0),
        (["--model", "tuned", "--base", "base", "--require", "membership.auc <= 0.2"], 3),
        (["--model", "base"], 4),
        pytest.param(["--model", "base", "--require", "membership.auc <= 0.2"], 3, marks=pytest.mark.slow),
    ],
)
def test_exit_codes(desk, monkeypatch, capsys, words, code):
    found, out, err = sordino(desk, monkeypatch, capsys, *words, *FILES, *KEYS, "--json")
    assert found == code, err
    report = json.loads(out)
    assert report["trained_here"] is False and report["verdict"]["state"] == (
        "leaks" if "tuned" in words else "inconclusive"
    )
    [run] = [p for p in (desk / "runs").iterdir() if p.name == report["run"]]
    assert (run / "report.html").exists() and (run / "private").stat().st_mode & 0o777 == 0o700
    # The run folder is one like any other.
    again, out, _ = sordino(desk, monkeypatch, capsys, str(run), "--json")
    assert again == (code if "--require" not in words else 4 if "base" in words[1] else 0)
    assert json.loads(out)["verdict"] == report["verdict"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model", "tuned"], "--members is missing"),
        (["--model", "tuned", "--members", "in.jsonl"], "--nonmembers is missing"),
        (["--members", "in.jsonl", "--nonmembers", "out.jsonl"], "--model is missing"),
        (["runs", *FILES], "runs is a run folder, and --members is for a model from elsewhere"),
        (["--data.text", "body"], "--data.text is no option of an audit of a run"),
        (["--model", "tuned", *FILES, "--data.txt", "body"], "Unknown configuration key 'data.txt'"),
        (["--model", "tuned", *FILES, "--quantize", "int3"], "int3"),
        (["--model", "nowhere/at/all", *FILES], "There is no model folder nowhere/at/all"),
        (
            ["--model", "tuned", "--members", "in.jsonl", "--nonmembers", "none.jsonl", "--data.text", "body"],
            "none.jsonl",
        ),
        (["a", "b"], "2 run folders were given"),
        (
            ["--model", "served", "--endpoint", "http://127.0.0.1:9", *FILES, "--requests.attempts", "1"],
            "gave no answer in 1 attempts",
        ),
        (["--model", "tuned", *FILES, "--access", "text"], "--access text is for a server"),
        (["--model", "tuned", *FILES, "--samples", "0"], "samples is 0"),
    ],
)
def test_mistakes_are_explained(desk, monkeypatch, capsys, words, text):
    code, out, err = sordino(desk, monkeypatch, capsys, *words)
    assert (code, out) == (2, "") and text in err and "Traceback" not in err


# Records whose membership the adversary knows.


def test_known_records_are_drawn_by_the_seed_a_group_at_a_time_and_never_judged(tmp_path):
    rows = [[{"t": t, "u": f"{s}{i // 2}"} for i, t in enumerate(texts(n, 60))] for s, n in (("a", 0), ("b", 9000))]
    data = sets(tmp_path, *rows, unit="u")
    found, again, other = (place(*data, 0.8, known=0.25, seed=seed) for seed in (1, 1, 2))
    roles = {e.record.id: e.role for e in found.examples}
    assert {e.record.id: e.role for e in again.examples} == roles != {e.record.id: e.role for e in other.examples}
    for side, role in ((True, "train"), (False, "validation")):
        groups = {
            r: {e.group for e in found.examples if e.role == r and e.included == side} for r in (role, "candidate")
        }
        assert len(groups[role]) == 8 and len(groups["candidate"]) == 22 and not groups[role] & groups["candidate"]
    assert [n.count for n in found.notices if n.kind == "known"] == [32]
    assert {e.role for e in place(*data, 0.8).examples} == {"candidate"}
    with pytest.raises(ConfigError, match=r"known is 0\.6"):
        load_external({"model": {"path": "x"}, "data": {"path": "y"}, "nonmembers": "z", "known": 0.6})


def test_attacks_that_learn_from_known_records_find_a_leak_elsewhere(desk):
    names = ["recall", "con_recall", "quantile", "neighbourhood", "spv"]
    settings = dict(SMALL["audit"], inputs={"neighbours": 3, "shots": 2})
    run = create_external(load_external(values(desk, base=str(desk / "base"), known=0.4, audit=settings)))
    report = audit(run, attacks=names)
    assert report.counts["groups in"] == 36 and report.counts["known"] == 48 and not report.utility
    found = {a.name: a.estimates["auc"].value for a in report.attempts if a.family == "membership"}
    assert set(names) <= set(found)
    assert min(found[n] for n in ("quantile", "neighbourhood", "spv")) > 0.7
    assert "by LoRA with default settings" in " ".join(next(a for a in report.attempts if a.name == "spv").notes)
    with pytest.raises(AuditError, match="known not to be trained on"):
        audit(create_external(load_external(values(desk, base=str(desk / "base")))), attacks=["recall"])
