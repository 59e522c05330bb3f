"""Unlearning on the command line: from a plan to a certificate that is checked, and ways to use it wrongly."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sordino.cli import main
from sordino.deletions import Deletions
from sordino.records.store import load
from sordino.run import Run

FLAGS = (
    "--train.epochs", "1", "--train.batch_size", "16", "--train.learning_rate", "2e-2", "--train.max_length", "24",
    "--canaries.per_level", "0", "--split.candidates", "0.4", "--split.near_duplicates", "0", "--model.device", "cpu",
)  # fmt: skip
QUICK = ("--method", "grad_diff", "--setting", "epochs=1", "--setting", "learning_rate=1e-3")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tickets, small_model, forked) -> Path:
    """A folder where a run was trained on the tickets of 150 customers."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(tickets, folder / "tickets.csv")
    (folder / "run.yaml").write_text(
        f"data: {{path: tickets.csv, text: text, unit: customer}}\nmodel: {{path: {small_model}}}\n"
    )
    ended = forked("train", "run.yaml", *FLAGS, cwd=folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def trained(desk) -> Run:
    [path] = (desk / "runs").glob("*-run-*")
    return Run.open(path)


@pytest.fixture(scope="module")
def people(trained) -> dict[str, list[str]]:
    """Customers that were trained on, and that were not."""
    examples = load(trained.records).examples
    trained_on = dict.fromkeys(e.record.unit for e in examples if e.included)
    return {"in": [*trained_on], "out": [*dict.fromkeys(e.record.unit for e in examples if not e.included)]}


def called(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return SimpleNamespace(code=left.value.code, out=captured.out, err=captured.err)


@pytest.fixture
def sordino_at(capsys, monkeypatch):
    """`sordino_at(folder)(*words)` is the command line in this process."""

    def at(folder):
        monkeypatch.chdir(folder)
        return lambda *words: called(capsys, *words)

    return at


@pytest.fixture
def copied(desk, tmp_path) -> Path:
    """A folder with a copy of the run, about which nothing was ever asked."""
    shutil.copytree(desk / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("deletions", "*.old"))
    return tmp_path


@pytest.fixture(scope="module")
def certified(tmp_path_factory, desk, trained, people, forked) -> SimpleNamespace:
    """A folder where one customer was forgotten, from plan to certificate, and what each command said."""
    folder = tmp_path_factory.mktemp("certified")
    shutil.copytree(trained.path, folder / "runs" / trained.path.name)
    run, said = Path("runs") / trained.path.name, {}
    commands = {
        "plan": ("plan", run, "--subject", people["in"][0], *QUICK),
        "run": ("run", run),
        "verify": ("verify", run, "--no-robustness"),
        "certify": ("certify", run, "--key", "key.pem", "--issuer", "Us"),
    }
    for name, words in commands.items():
        said[name] = forked("unlearn", *words, "--json", cwd=folder)
    found = SimpleNamespace(folder=folder, run=run, said=said)
    if said["certify"].code == 0:
        [found.certificate] = (folder / "runs" / "deletions").glob("*/certificate.json")
    return found


def explained(ended, *texts: str, secret: str = "") -> None:
    """Expect exit code 2, one error in words for people, nothing on stdout, and no name."""
    assert ended.code == 2, ended.out + ended.err
    assert ended.out == "" and "Traceback" not in ended.err
    message, *hint = [line for line in ended.err.splitlines() if line.startswith(("error: ", "  "))]
    assert message.startswith("error: ") and hint and ended.err.count("error: ") == 1, ended.err
    assert not secret or secret not in ended.err
    for text in texts:
        assert text in ended.err, ended.err


def test_a_request_goes_from_plan_to_certificate(certified, people):
    said = certified.said
    assert {name: ended.code for name, ended in said.items()} == {"plan": 0, "run": 0, "verify": 4, "certify": 0}, [
        ended.err for ended in said.values()
    ]
    plan, card, verification, certificate = (json.loads(ended.out) for ended in said.values())
    assert (plan["method"], plan["tier"], plan["settings"]["epochs"]) == ("grad_diff", "approximate", 1)
    assert card["parent"] == certified.run.name and card["unlearning"]["request"] == plan["request"]
    assert verification["outcome"] == "inconclusive" and verification["reasons"]
    assert {"before", "after", "do nothing"} <= {row["name"].replace("_", " ") for row in verification["rows"]}
    assert certificate == json.loads(certified.certificate.read_text()) and certificate["issuer"] == "Us"
    for ended in said.values():
        assert people["in"][0] not in ended.out + ended.err
    assert not any(e.record.unit == people["in"][0] for e in load(child_of(certified).records).examples)


def child_of(certified) -> Run:
    return Run.open(certified.folder / "runs" / json.loads(certified.said["run"].out)["name"])


def test_a_certificate_is_checked_and_any_change_fails(certified, sordino_at, tmp_path):
    here = sordino_at(certified.folder)
    sound = here("unlearn", "check", certified.certificate, "--key", "key.pem")
    assert sound.code == 0 and "failed" not in sound.out and "Signed with the trusted key" in sound.out
    plain = json.loads(certified.certificate.read_text())
    plain["cost"]["tokens"] += 1
    (tmp_path / "certificate.json").write_text(json.dumps(plain))
    changed = here("unlearn", "check", tmp_path, "--json")
    found = json.loads(changed.out)
    assert changed.code == 3 and found["sound"] is False
    assert {one["name"] for one in found["checks"] if one["state"] == "failed"} >= {"id", "signature"}
    other = here("unlearn", "check", certified.certificate, "--key", "0" * 64)
    assert other.code == 3


def test_what_was_done_is_done_once_and_its_evidence_stays(certified, sordino_at):
    here, run = sordino_at(certified.folder), certified.run
    folder = certified.certificate.parent
    kept = {p.name: p.read_bytes() for p in folder.glob("*.json")}
    explained(here("unlearn", "run", run), "carried out already (certified)")
    explained(here("unlearn", "verify", run), "is certified")
    explained(here("unlearn", "certify", run, "--key", "key.pem"), "certified already", "--purge")
    explained(here("unlearn", "plan", run, "--request", folder.name, "--method", "retrain"), "carried out already")
    assert kept == {p.name: p.read_bytes() for p in folder.glob("*.json")}


def test_a_purge_after_the_certificate_is_certified_anew_and_said_once_and_for_all(certified, sordino_at, tmp_path):
    shutil.copytree(certified.folder, tmp_path / "desk")
    here, run = sordino_at(tmp_path / "desk"), certified.run
    listed = here("unlearn", "certify", run, "--key", "key.pem", "--purge", "--dry-run", "--json")
    holdings = json.loads(listed.out)
    assert (
        listed.code == 0
        and {"weights", "records"} <= {one["kind"] for one in holdings}
        and run.joinpath("weights").exists()
    )
    for _ in range(2):
        done = here("unlearn", "certify", run, "--key", "key.pem", "--purge", "--json")
        assert done.code == 0, done.err
        removed = {one["path"] for one in json.loads(done.out)["purge"] if one["removed"]}
        assert removed == {one["path"] for one in holdings if one["removable"]} and not run.joinpath("weights").exists()
    assert here("unlearn", "check", next(Path("runs/deletions").glob("*/certificate.json"))).code == 0


def test_the_ledger_and_who_comes_back(certified, sordino_at, people):
    here = sordino_at(certified.folder)
    [row] = json.loads(here("unlearn", "ledger", "--json").out)
    assert (row["state"], row["run"], row["count"]) == ("certified", certified.run.name, 1)
    name = people["in"][0]
    explained(here("unlearn", "ledger", "--reconsent", name), "without --reason", secret=name)
    explained(here("unlearn", "ledger", "--reason", "x"), "without --reconsent")
    explained(here("unlearn", "ledger", "--reconsent", people["in"][1], "--reason", "x"), "1 of 1 names")
    explained(
        here("unlearn", "ledger", "--reconsent", name, "--reason", f"{name} said so"), "holds a name", secret=name
    )
    explained(here("unlearn", "ledger", "elsewhere"), "no folder elsewhere")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([], ["nothing is named"]),
        (["--subject", "Zebedee Quill"], ["1 of 1 subjects are unknown", "places 1"]),
        (["--record", "Zebedee Quill"], ["1 of 1 records are unknown"]),
        (["--subject", "IN", "--subject", "Zebedee Quill"], ["1 of 2 subjects", "places 2"]),
        (["--record", "IN"], ["They name subjects"]),
        (["--subject", "OUT"], ["Nothing of those who ask was trained on"]),
        (["--subject", "IN", "--record", "x"], ["--subject and --record are given together"]),
        (["--subject", "IN", "--kind", "record"], ["--kind record was given without --names"]),
        (["--subject", "IN", "--request", "x"], ["--request and --subject are given together"]),
        (["--names", "absent"], ["absent cannot be read"]),
        (["--names", "blank"], ["blank holds no name"]),
        (["--names", "list"], ["in place 2"]),
        (["--names", "bytes"], ["bytes cannot be read"]),
        (["--subject", "IN", "--search", "-1"], ["--search is -1"]),
        (["--subject", "IN", "--method", "retrain", "--search", "3"], ["3 trials", "no settings to search"]),
        (["--subject", "IN", "--epsilon", "1"], ["belong together"]),
        (["--subject", "IN", "--epsilon", "nan", "--delta", "1e-5"], ["--epsilon is nan"]),
        (["--subject", "IN", "--setting", "epochs=1"], ["--setting was given without --method"]),
        (["--subject", "IN", "--method", "npoo"], ["no method 'npoo'", "'npo'"]),
        (["--subject", "IN", "--method", "npo", "--setting", "betta=1"], ["no setting 'betta'", "'beta'"]),
        (["--subject", "IN", "--method", "npo", "--setting", "epochs=many"], ["epochs of npo is 'many'"]),
        (["--subject", "IN", "--method", "npo", "--setting", "beta=-1"], ["beta of npo is -1", "more than 0"]),
        (["--subject", "IN", "--method", "npo", "--setting", "beta=1", "--setting", "beta=1"], ["given twice"]),
        (["--subject", "IN", "--method", "shards"], ["not trained in shards"]),
        (["--subject", "IN", "--method", "alt_po"], ["plain text"]),
        (["--subject", "IN", "--method", "dpo"], ["`rejected`"]),
        (["--subject", "IN", "--method", "npo", "--at-least", "exact"], ["Its tier is approximate"]),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else None,
)  # fmt: skip
def test_a_request_that_cannot_be_meant_is_not_received(desk, trained, people, sordino_at, words, texts):
    here = sordino_at(desk)
    Path("blank").write_text("\n\n")
    Path("list").write_text('["a", 1.5]')
    Path("bytes").write_bytes(b"\xff\xfe\x80")
    stands = {"IN": people["in"][0], "OUT": people["out"][0]}
    ended = here("unlearn", "plan", trained.path, *(stands.get(word, word) for word in words))
    explained(ended, *texts, secret="Zebedee Quill")
    assert people["in"][0] not in ended.err
    assert not (desk / "runs" / "deletions").exists()


def test_commands_out_of_their_order_are_explained(copied, trained, people, sordino_at):
    here, run = sordino_at(copied), Path("runs") / trained.path.name
    for command in (["run", run], ["verify", run], ["certify", run, "--key", "k.pem"]):
        explained(here("unlearn", *command), "0 requests that could be meant", "`sordino unlearn plan`")
    assert here("unlearn", "plan", run, "--subject", people["in"][0], *QUICK).code == 0
    explained(here("unlearn", "verify", run), "was not carried out (planned)", "unlearn run")
    explained(here("unlearn", "certify", run, "--key", "k.pem"), "was not verified (planned)", "unlearn verify")
    assert not Path("k.pem").exists()
    assert here("unlearn", "plan", run, "--subject", people["in"][1], "--at-least", "exact").code == 0
    explained(here("unlearn", "run", run), "2 requests that could be meant")
    explained(here("unlearn", "run", run, "--request", "2"), "2 requests that could be meant")
    explained(here("unlearn", "run", run, "--request", "x"), "no request 'x'")
    first, second = Deletions.open("runs").open_requests()
    again = here("unlearn", "plan", run, "--request", first.id, "--method", "npo", "--json")
    assert again.code == 0 and json.loads(again.out)["method"] == "npo"
    assert [(one.state, one.data["method"]) for one in Deletions.open("runs").requests()] == [
        ("planned", "npo"), ("planned", "retrain"),
    ]  # fmt: skip
    assert second.data["method"] == "retrain"


def test_runs_that_nothing_can_be_asked_of_are_explained(copied, trained, people, sordino_at):
    here, run = sordino_at(copied), Run.open(copied / "runs" / trained.path.name)
    words = ("--subject", people["in"][0])
    explained(here("unlearn", "plan", "nowhere", *words), "no run at nowhere")
    card = json.loads((run.path / "run.json").read_text())
    for status, text in (("external", "trained elsewhere"), ("unlearning", "unlearn run"), ("training", "--resume")):
        (run.path / "run.json").write_text(json.dumps({**card, "status": status}))
        explained(here("unlearn", "plan", run.path, *words), text)
    for some in (("--method", "npo", "--seeds", "0"), ("--method", "shards"), ("--method", "npo", "--setting", "b=1")):
        explained(here("unlearn", "qualify", trained.path, *some))


def test_keys_and_certificates_that_are_none_are_explained(certified, sordino_at, tmp_path):
    here = sordino_at(certified.folder)
    (tmp_path / "open.pem").write_bytes((certified.folder / "key.pem").read_bytes())
    (tmp_path / "open.pem").chmod(0o644)
    (tmp_path / "other.pem").write_text("no key")
    (tmp_path / "other.pem").chmod(0o600)
    (tmp_path / "cut.json").write_text(certified.certificate.read_text()[:100])
    run = certified.run
    for name, text in (("open.pem", "mode 644"), ("other.pem", "no private key"), ("none/k.pem", "no folder")):
        explained(here("unlearn", "certify", run, "--purge", "--key", tmp_path / name), text)
    assert (certified.folder / run / "weights").exists()
    for words, text in (
        ([tmp_path / "absent.json"], "no certificate"), ([tmp_path / "cut.json"], "cut.json"),
        ([certified.folder / run / "run.json"], "not a valid Certificate"),
        ([certified.certificate, "--key", "abc"], "neither a public key"),
    ):  # fmt: skip
        explained(here("unlearn", "check", *words), text)


def test_an_unlearning_that_is_killed_goes_on(copied, trained, people, forked):
    run = Path("runs") / trained.path.name
    assert forked("unlearn", "plan", run, "--subject", people["in"][0], *QUICK, cwd=copied).code == 0
    killed = forked("unlearn", "run", run, cwd=copied, death=("in a step", 1))
    assert killed.code == -9
    [row] = Deletions.open(copied / "runs").requests()
    assert row.state == "planned" and len(list((copied / "runs").glob("*-run-*"))) == 2
    done = forked("unlearn", "run", run, "--json", cwd=copied)
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "trained" and len(list((copied / "runs").glob("*-run-*"))) == 2
    assert (copied / run / "weights").exists()
