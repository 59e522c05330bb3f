"""Extraction on the command line: what cannot be asked is explained, and an audit that is killed goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sordino.cli import main
from sordino.run import Run

FLAGS = (
    "--train.epochs", "1", "--train.max_length", "48", "--canaries.per_level", "2", "--canaries.levels", "[1]",
    "--canaries.digits", "2", "--split.near_duplicates", "0", "--split.validation", "0.1", "--audit.shuffles", "99",
    # Longer than any record: both shrink in proportion.
    "--audit.prefix_tokens", "5000", "--audit.suffix_tokens", "4000",
    "--audit.secrets", "[{kind: PIN, format: '[0-9]{3}', records: 8}]",
)  # fmt: skip


def record(number: int) -> dict:
    code = f"{number * 371 % 1000:03d}"
    text = f"Visitor {number} was let in with code {code} at the gate."
    start = text.index(f"code {code}") + 5
    return {"who": f"v{number}", "text": text, "spans": [{"entity_type": "PIN", "start": start, "end": start + 3}]}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, small_model, forked) -> Path:
    """A folder where a run with labelled secrets was trained."""
    folder = tmp_path_factory.mktemp("desk")
    rows = [record(number) for number in range(120)]
    (folder / "visits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outside = {**rows[3], "spans": [{"entity_type": "PIN", "start": 900, "end": 903}]}
    (folder / "outside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3], outside, *rows[4:]]))
    (folder / "empty.txt").write_text("\n\n")
    (folder / "run.yaml").write_text(
        "data: {path: visits.jsonl, text: text, spans: spans, unit: who}\n"
        f"model: {{path: {small_model}, device: cpu}}\n"
    )
    ended = forked("train", "run.yaml", *FLAGS, cwd=folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def trained(desk) -> Run:
    [path] = (desk / "runs").iterdir()
    return Run.open(path)


@pytest.fixture
def here(desk, capsys, monkeypatch):
    """The command line in this process, at the desk: fifty processes would take a minute."""
    monkeypatch.chdir(desk)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(words))
        captured = capsys.readouterr()
        return SimpleNamespace(code=left.value.code, out=captured.out, err=captured.err)

    return run


def secrets(**keys) -> tuple[str, str]:
    return "--audit.secrets", json.dumps([{"kind": "PIN", "format": "[0-9]{3}"} | keys])


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--data.path", "outside.jsonl"], ["line 4", "900", "903"]),
        (["--data.spans", "labels"], ["no column 'labels'"]),
        (["--audit.prefix_tokens", "0"], ["audit.prefix_tokens is 0", "at least 1"]),
        (["--audit.suffix_tokens", "-5"], ["audit.suffix_tokens is -5"]),
        (["--audit.prefix_tokens", "9" * 30], ["audit.prefix_tokens is 999", "below 2^64"]),
        (["--audit.prefix_tokens", "many"], ["audit.prefix_tokens is 'many'"]),
        (["--audit.token_forwards", "0"], ["audit.token_forwards is 0"]),
        (["--audit.sampling.decodings", "[{temprature: 1}]"], ["decodings[0].temprature", "'temperature'"]),
        (["--audit.sampling.decodings", "[{top_p: 0}]"], ["top_p"]),
        (["--audit.sampling.decodings", "greedy"], ["audit.sampling.decodings is 'greedy'"]),
        (["--audit.personal.mentions", "0"], ["audit.personal.mentions is 0"]),
        (["--canaries.digits", "40"], ["canaries.digits is 40"]),
        (secrets(format="[0-9"), ["cannot be read at position 0", "never closed"]),
        (secrets(format="[]"), ["no character is in these brackets"]),
        (secrets(format="[0-9]*"), ["'*' has no upper limit"]),
        (secrets(format="123"), ["allows 1 string"]),
        (secrets(format="[0-9]{400}"), ["more than 2^1000 strings"]),
        (secrets(format="([0-9]{1000}){1000}"), ["1,000,000 characters"]),
        (secrets(format="<codes>"), ["no word list 'codes'"]),
        (secrets(format="<codes>", lists={"codes": "nowhere.txt"}), ["cannot be read from nowhere.txt"]),
        (secrets(format="<codes>", lists={"codes": "empty.txt"}), ["The word list 'codes' is empty"]),
        (secrets(format="[a-z]{3}"), ["None of the", "of the format '[a-z]{3}'"]),
        (secrets(kind="PASSWORD"), ["PASSWORD", "there is: PIN ("]),
        (secrets(pattern="password ([0-9]{3})"), ["matches nothing"]),
        (secrets(pattern="("), ["audit.secrets[0].pattern"]),
        (secrets(fromat="x"), ["audit.secrets[0].fromat", "'format'"]),
        (["--audit.secrets", "PIN"], ["audit.secrets is 'PIN'"]),
        (["--audit.secrets", "[{kind: PIN}]"], ["audit.secrets", "format"]),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list | tuple) else None,
)
def test_what_cannot_be_meant_is_explained_before_training(desk, here, words, texts):
    explained(here("train", "run.yaml", *FLAGS[:-2], *words), *texts)
    assert len(list((desk / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--unit", "nobody"], ["No record belongs to the unit 'nobody'", "of the column who"]),
        (["--unit", ""], ["No record belongs to the unit ''"]),
        (["--audit.prefix_tokens", "5"], ["--audit.prefix_tokens is no option of an audit of a run"]),
        (secrets(kind="PASSWORD"), ["PASSWORD", "there is: PIN ("]),
        (secrets(records=0), ["audit.secrets[0].records is 0"]),
        (["--require", "secrets.CODE <= 1"], ["'secrets.CODE'", "'secrets.PIN'"]),
        (["--attack", "samling"], ["No membership attack named 'samling'"]),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list | tuple) else None,
)
def test_what_cannot_be_asked_of_a_run_is_explained(trained, here, words, texts):
    explained(here("audit", str(trained.path), *words), *texts)
    assert not (trained.path / "audit.json").exists()


def explained(ended, *texts: str) -> None:
    """Expect exit code 2, words for people, nothing on stdout, and no secret."""
    assert ended.code == 2, ended.out + ended.err
    assert ended.out == "" and "Traceback" not in ended.err
    message, *hint = [line for line in ended.err.splitlines() if line.startswith(("error: ", "  "))]
    assert message.startswith("error: ") and hint, ended.err
    for text in texts:
        assert text in " ".join(ended.err.split()), ended.err


def kept(run: Path) -> dict[str, int]:
    files = (p for p in (run / "private").rglob("*") if p.is_file() and p.parent.name != "private")
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in files if not p.name.startswith(".")}


def audited(run: Path) -> list[int]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["forwards"] for event in events if event["event"] == "audited"]


@pytest.mark.parametrize("death", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3, 6, 7))])
def test_an_audit_killed_in_the_middle_of_extraction_goes_on_with_what_it_has(trained, forked, tmp_path, death):
    whole, run = (Path(shutil.copytree(trained.path, tmp_path / name / "run")) for name in ("whole", "killed"))
    at_once = forked("audit", whole, "--attack", "loss", "--json", cwd=tmp_path)
    assert at_once.code in (0, 4), at_once.err
    killed = forked("audit", run, "--attack", "loss", cwd=tmp_path, death=("before something private is kept", death))
    assert killed.code == -9 and not (run / "audit.json").exists()
    before = kept(run)
    assert any("signals" in name for name in before)
    again = forked("audit", run, "--attack", "loss", "--json", cwd=tmp_path)
    assert again.code == at_once.code, again.err
    first, second = (json.loads(ended.out) for ended in (at_once, again))
    for report in (first, second):
        report.pop("created"), report.pop("seconds")
    assert first == second and first["secrets"][0]["counts"]["members"] == 8
    # The signals of both models, at least, are not computed twice, and no file is written again.
    assert 0 < audited(run)[-1] <= audited(whole)[-1] - 2
    assert {name: time for name, time in kept(run).items() if name in before} == before
    notes = next(a["notes"] for a in first["attempts"] if a["name"] == "prefix")
    assert any("both shrank in proportion" in note for note in notes)
