"""The command line from the first file to the last report, and every way it may be used wrongly."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sordino.commands import exit_code
from sordino.results import Estimate, Requirement
from sordino.run import Run

FLAGS = (
    "--train.epochs", "4", "--train.batch_size", "16", "--train.learning_rate", "2e-2", "--train.max_length", "40",
    "--canaries.per_level", "2", "--canaries.levels", "[1, 16]", "--canaries.digits", "2",
    "--split.candidates", "0.4", "--split.near_duplicates", "0", "--audit.token_forwards", "2000",
    "--audit.shuffles", "99", "--audit.prefix_tokens", "12",
    "--audit.suffix_tokens", "6", "--model.device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tickets, small_model, sordino) -> Path:
    """A folder where somebody has initialised and trained, with the real executable."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(tickets, folder / "tickets.csv")
    begun = sordino("init", "tickets.csv", cwd=folder)
    assert begun.code == 0 and begun.out == "run.yaml\n"
    assert "customer" in begun.err and "sordino train run.yaml" in begun.err
    trained = sordino("train", "run.yaml", *FLAGS, "--model.path", small_model, "--json", cwd=folder)
    assert trained.code == 0, trained.err
    (folder / "trained.json").write_text(trained.out)
    return folder


@pytest.fixture(scope="module")
def trained(desk) -> Run:
    """The run on the desk."""
    [path] = (desk / "runs").iterdir()
    return Run.open(path)


@pytest.fixture(scope="module")
def audited(desk, trained, forked):
    """How the first audit of that run ended, as JSON."""
    ended = forked("audit", trained.path, "--json", cwd=desk)
    assert ended.code in (0, 4), ended.err
    return ended


def explained(ended, *texts: str) -> None:
    """Expect exit code 2, words for people, nothing on stdout."""
    assert ended.code == 2, ended.out + ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    message, *hint = [line for line in ended.err.splitlines() if line.startswith(("error: ", "  "))]
    assert message.startswith("error: ") and hint, ended.err
    for text in texts:
        assert text in ended.err


def test_training_prints_the_card(desk, trained):
    card = json.loads((desk / "trained.json").read_text())
    assert card["status"] == "trained" and card["name"] == trained.path.name
    assert card == json.loads((trained.path / "run.json").read_text())
    assert card["data"]["unit"] == "customer" and card["data"]["counts"]["units"] == 150
    assert card["config"]["train"]["learning_rate"] == 0.02 and card["config"]["audit"]["guess_share"] == 0.2


def test_only_private_holds_private_text(trained, audited):
    shown = [p for p in trained.path.rglob("*") if p.is_file() and trained.private not in p.parents]
    assert {p.name for p in shown} >= {"run.json", "audit.json", "report.html", "events.jsonl", "loss.json"}
    rows = (trained.path.parents[1] / "tickets.csv").read_text().splitlines()[1:50]
    texts = [row.split(",", 1)[1].strip('"')[:60] for row in rows]
    for path in shown:
        content = path.read_bytes()
        assert not any(text.encode() in content for text in texts), path
    assert trained.private.stat().st_mode & 0o777 == 0o700


def test_the_audit_is_json_and_counts_its_passes(trained, audited):
    report = json.loads(audited.out)
    assert report == json.loads((trained.path / "audit.json").read_text())
    assert report["verdict"]["state"] in ("leaks", "no leak found", "inconclusive")
    assert {"loss", "reference", "prefix"} <= {a["name"] for a in report["attempts"]}
    assert audits(trained)[0]["forwards"] > 0
    assert "Traceback" not in audited.err


def audits(run: Run) -> list[dict]:
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "audited"]


def test_a_second_audit_runs_no_model_and_finds_the_same(desk, trained, audited, forked):
    ended = forked("audit", trained.path, "--json", cwd=desk)
    assert ended.code == audited.code
    assert audits(trained)[-1]["forwards"] == 0
    first, second = json.loads(audited.out), json.loads(ended.out)
    for report in (first, second):
        report.pop("created"), report.pop("seconds")
    assert first == second


def test_a_second_audit_does_not_even_load_one(trained, audited, monkeypatch):
    import sordino.collect
    import sordino.generate
    import sordino.model
    from sordino.audit.flow import audit

    for owner, name in (
        (sordino.model, "load"), (sordino.model, "restore"), (sordino.collect, "collect"),
        (sordino.generate, "greedy"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: pytest.fail("a model was used"))
    assert audit(trained).verdict.state == json.loads(audited.out)["verdict"]["state"]


def test_the_table_and_the_report(desk, trained, audited, forked):
    table = forked("audit", trained.path, cwd=desk)
    assert table.code == audited.code
    assert "reference" in table.out and "Controls" in table.out and "{" not in table.out
    page = forked("report", cwd=desk)  # the newest run, since none is named
    assert page.code == 0 and page.out == f"runs/{trained.path.name}/report.html\n"
    html = (trained.path / "report.html").read_text()
    assert "<script" not in html and "default-src 'none'" in html and trained.path.name in html
    other = forked("report", trained.path, "--reveal", "--out", "shown.html", cwd=desk)
    assert other.code == 0 and other.out == "shown.html\n"
    assert (desk / "shown.html").stat().st_mode & 0o777 == 0o600
    assert "private text" in other.err


@pytest.mark.parametrize(
    ("requirements", "code"),
    [
        (["membership.auc <= 1", "utility.perplexity <= 1e9"], None),
        (["membership.auc >= 0", "utility.perplexity <= 1", "membership.tpr@0.001fpr <= 1"], 3),
        pytest.param(["membership.tpr@0.002fpr <= 1"], 4, marks=pytest.mark.slow),
        (["straddling"], 4),
    ],
    ids=lambda v: "; ".join(v) if isinstance(v, list) else str(v),
)
def test_exit_codes_say_how_the_requirements_went(desk, trained, audited, forked, requirements, code):
    report = json.loads(audited.out)
    found = report["metrics"]["utility.perplexity"]
    middle = f"utility.perplexity <= {(found['low'] + found['high']) / 2!r}"
    texts = [middle if r == "straddling" else r for r in requirements]
    ended = forked("audit", trained.path, *(w for r in texts for w in ("--require", r)), "--json", cwd=desk)
    if code is None:  # met: the verdict alone decides
        code = 4 if report["verdict"]["state"] == "inconclusive" else 0
    assert ended.code == code, ended.err
    assert [r["text"] for r in json.loads(ended.out)["requirements"]] == texts


def test_every_combination_of_verdict_and_requirements_has_its_code(trained, audited):
    report, figure = trained.audit, Estimate(value=0.5, low=0.4, high=0.6, n=9, method="m")

    def code(state: str, *statuses: str) -> int:
        requirements = tuple(Requirement(text="t", status=s, estimate=figure, finding="f") for s in statuses)
        return exit_code(replace(report, verdict=replace(report.verdict, state=state), requirements=requirements))

    assert [code("leaks"), code("no leak found"), code("no leak found", "met", "met")] == [0, 0, 0]
    assert [code("inconclusive"), code("invalid split"), code("leaks", "inconclusive")] == [4, 4, 4]
    assert [code("inconclusive", "failed"), code("leaks", "met", "failed", "inconclusive")] == [3, 3]


def test_only_the_attacks_asked_for(desk, trained, audited, forked):
    ended = forked("audit", trained.path, "--attack", "zlib", "--json", cwd=desk)
    names = [a["name"] for a in json.loads(ended.out)["attempts"] if a["family"] == "membership"]
    assert names == ["reference", "zlib"]


def test_listing_attacks_needs_no_run(desk, forked):
    ended = forked("audit", "--list", "--json", cwd=desk)
    assert ended.code == 0 and {"loss", "exposure"} <= {row["name"] for row in json.loads(ended.out)}
    assert "min_k" in forked("audit", "--list", cwd=desk).out


def test_a_dry_run_reads_no_weights(desk, small_model, forked, tmp_path):
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"poison")
    ended = forked("train", "run.yaml", *FLAGS, "--model.path", model, "--dry-run", "--json", cwd=desk)
    assert ended.code == 0, ended.err
    plan = json.loads(ended.out)
    counts = json.loads((desk / "trained.json").read_text())
    assert {k: plan[k] for k in counts["data"]["counts"]} == counts["data"]["counts"]
    assert plan["steps"] == counts["training"]["step"]
    assert plan["tokens an epoch"] * 4 == counts["training"]["tokens"]
    assert (plan["parameters"], plan["trainable"]) == (counts["model"]["parameters"], counts["model"]["trainable"])
    assert len(list((desk / "runs").iterdir())) == 1
    words = forked("train", "run.yaml", *FLAGS, "--model.path", model, "--dry-run", cwd=desk)
    assert "steps" in words.out and "canaries" in words.out
    explained(forked("train", "run.yaml", "--model.path", model, cwd=desk), "cannot be loaded", str(model))
    for path in (desk / "runs").iterdir():  # the run that could not start is no newest run for others
        if path.name != Path(counts["name"]).name:
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["trian"], ["trian", "train"]),
        (["audit", "--requrie", "x"], ["--requrie"]),
        (["audit", "--require"], ["--require"]),
        (["train"], ["No configuration was given", "sordino init"]),
        (["train", "nowhere.yaml"], ["no configuration file nowhere.yaml"]),
        (["train", "run.yaml", "--train.epoch", "3"], ["'train.epoch'", "'epochs'"]),
        (["train", "run.yaml", "--train.epochs", "no"], ["train.epochs", "False"]),
        (["train", "run.yaml", "--train.epochs"], ["--train.epochs has no value"]),
        (["train", "run.yaml", "--data.path", "nowhere.csv"], ["nowhere.csv does not exist"]),
        (["train", "run.yaml", "--data.text", "txet"], ["no column 'txet'", "'text'"]),
        (["train", "run.yaml", "--data.path", "bad.csv"], ["bad.csv, line 3", "fields"]),
        (["train", "run.yaml", "--data.path", "few.csv", "--seed", "1"], ["candidate groups", "split.candidates"]),
        (["train", "run.yaml", "--model.path", "./nowhere"], ["There is no model folder ./nowhere"]),
        (["train", "run.yaml", "--model.device", "abacus"], ["model.device is 'abacus'"]),
        (["train", "run.yaml", "--train.max_length", "9999"], ["train.max_length is 9999", "128"]),
        (["train", "run.yaml", "--method.targets", "[q_porj]"], ["'q_porj'", "'q_proj'"]),
        (["train", "run.yaml", "--audit.headline", "lossy"], ["'lossy'", "'loss'"]),
        (["train", "run.yaml", "--audit.require", "[auc is low]"], ["'auc is low'", "cannot be read"]),
        (["train", "run.yaml", "--resume", "runs"], ["--resume takes the configuration from the run"]),
        (["train", "--resume", "nowhere"], ["There is no run at nowhere"]),
        (["train", "--resume", "runs"], ["runs is not a run folder", "run.json"]),
        (["audit", "nowhere"], ["There is no run at nowhere"]),
        (["audit", "empty"], ["empty is not a run folder"]),
        (["report", "prepared"], ["prepared has not been audited", "sordino audit"]),
        (["audit", "prepared"], ["prepared is not trained to its end (prepared)", "--resume prepared"]),
        (["init", "tickets.csv"], ["run.yaml exists already", "--force"]),
        (["init", "nowhere.csv", "--out", "new.yaml"], ["nowhere.csv does not exist"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_wrong_use_is_explained(desk, trained, small_model, forked, words, texts):
    (desk / "bad.csv").write_text("customer,text\na,one\nb,two,three\n")
    (desk / "few.csv").write_text("customer,text\n" + "".join(f"{i},text number {i}\n" for i in range(9)))
    (desk / "empty").mkdir(exist_ok=True)
    if not (desk / "prepared").exists():
        shutil.copytree(trained.path, desk / "prepared")
        card = json.loads((desk / "prepared" / "run.json").read_text()) | {"status": "prepared"}
        (desk / "prepared" / "run.json").write_text(json.dumps(card))
        (desk / "prepared" / "audit.json").unlink(missing_ok=True)
    model = ("--model.path", small_model) if words[:2] == ["train", "run.yaml"] and "--resume" not in words else ()
    where = len(words) if "--model.path" in words else 2
    before = {p.name for p in (desk / "runs").iterdir()}
    explained(forked(*words[:where], *(model if where == 2 else ()), *words[where:], cwd=desk), *texts)
    for path in (desk / "runs").iterdir():
        if path.name not in before:
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("requirement", "texts"),
    [
        ("membership.acu <= 0.5", ["'membership.acu'", "'membership.auc'"]),
        ("membership.tpr@2fpr <= 0.5", ["'membership.tpr@2fpr'"]),
        ("membership.auc = 0.5", ["cannot be read", "membership.tpr@0.01fpr <= 0.05"]),
        ("membership.auc <= half", ["'membership.auc <= half'"]),
        ("membership.auc <= 1e", ["not a number"]),
        ("canaries.exposure@3 <= 1", ["'canaries.exposure@3'", "canaries.exposure@"]),
    ],
)
def test_requirements_that_mean_nothing(desk, trained, forked, requirement, texts):
    explained(forked("audit", trained.path, "--require", requirement, cwd=desk), *texts)


def test_an_attack_that_does_not_exist(desk, trained, forked):
    explained(
        forked("audit", trained.path, "--attack", "mink", cwd=desk), "No membership attack named 'mink'", "'min_k'"
    )


def edit_adapter(run: Path) -> None:
    path = run / "weights" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit_scale(run: Path) -> None:
    path = run / "weights" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 32.0', '"lora_alpha": 31.0'))


def edit_tokenizer(run: Path) -> None:
    path = run / "weights" / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    path.write_text(json.dumps(rules))


def edit_config(run: Path) -> None:
    card = json.loads((run / "run.json").read_text())
    card["config"]["train"]["epochs"] = "many"
    (run / "run.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("edit", "texts"),
    [
        (edit_adapter, ["The weights in", "are not those that training wrote"]),
        (edit_scale, ["The weights in", "are not those that training wrote"]),
        (edit_tokenizer, ["The tokenizer in", "is not the one"]),
        (edit_config, ["run.json is damaged", "epochs"]),
        (lambda run: (run / "run.json").write_text("{}"), ["schema None"]),
        (lambda run: (run / "run.json").write_text("{"), ["is damaged"]),
        (lambda run: (run / "private" / "records.parquet").write_bytes(b"x"), ["records.parquet", "damaged"]),
        (lambda run: (run / "private" / "records.parquet").unlink(), ["records.parquet does not exist"]),
        (lambda run: (run / "private" / "canaries.json").write_text("["), ["canaries.json", "damaged"]),
        (lambda run: (run / "private" / "canaries.json").unlink(), ["canaries.json"]),
        (lambda run: shutil.rmtree(run / "private"), ["has no folder private/"]),
        (lambda run: shutil.rmtree(run / "weights"), ["weights"]),
        (
            lambda run: [p.write_bytes(b"x") for p in run.glob("private/signals/*/statistics.safetensors")],
            ["signals", "are damaged", "Delete that folder"],
        ),
    ],
    ids=[
        "adapter", "scale", "tokenizer", "config", "empty card", "half a card", "records", "no records", "canaries",
        "no canaries", "no private", "no weights", "signals",
    ],
)  # fmt: skip
def test_a_run_edited_by_hand_is_refused(desk, trained, audited, forked, tmp_path, edit, texts):  # noqa: PLR0917
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    edit(run)
    explained(forked("audit", run, cwd=tmp_path), *texts)


def test_a_trained_run_is_not_trained_again(desk, trained, forked):
    explained(forked("train", "--resume", trained.path, cwd=desk), "is trained already", "sordino audit")


def test_no_run_here(forked, tmp_path):
    explained(forked("audit", cwd=tmp_path), "There is no run in runs")


def test_help_and_version_import_nothing_heavy():
    heavy = ("torch", "transformers", "peft", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "yaml")
    program = f"import sys, sordino.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["audit", "--help"], ["--version"], []])
def test_help_is_on_stdout(forked, tmp_path, words):
    ended = forked(*words, cwd=tmp_path)
    assert ended.code == 0 and ended.err == "" and len(ended.out) > 4
