"""A model behind a server: the same scores as here, nothing asked twice, and errors that say what to do."""

import json
import threading

import numpy as np
import pytest
from elsewhere_fixtures import Stub, serving, texts, write_rows

from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.completions import Completions, Unsupported, prompt_logprobs
from sordino.config import ModelConfig
from sordino.errors import AuditError, ConfigError
from sordino.model import load
from sordino.records.store import load as load_split
from sordino.serialize import lowercase

TINY = "sordino-tiny"


@pytest.fixture(scope="module")
def bundled():
    return load(ModelConfig(device="cpu"))


@pytest.fixture
def stub(bundled):
    with serving(Stub(model=bundled)) as made:
        yield made


def config(folder, stub, **more):
    for name, start in (("in", 0), ("out", 5000)):
        write_rows(folder / f"{name}.jsonl", [{"text": t} for t in texts(start, 14)])
    values = {
        "model": {"path": "served"}, "data": {"path": str(folder / "in.jsonl")}, "endpoint": stub.url,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "tokenizer": TINY,
        "audit": {"shuffles": 199, "fpr": [0.1]}, "requests": {"attempts": 3},
    }  # fmt: skip
    return load_external(values | more)


def examples(run):
    return [e for e in load_split(run.records).examples if e.role == "candidate"]


@pytest.mark.parametrize("refuses_zero", [False, True])
def test_scores_over_the_endpoint_are_those_of_the_model_here(stub, tmp_path, refuses_zero):
    stub.refuses_zero = refuses_zero
    run = create_external(config(tmp_path, stub, base=TINY))
    there, base = Collector(run).signals(examples(run), {"lowercase": lowercase})
    assert base is not None  # the same model, read here
    for first, second in ((there, base), (there.views["lowercase"], base.views["lowercase"])):
        np.testing.assert_allclose(first.logprob.values, second.logprob.values, atol=1e-4)
        np.testing.assert_array_equal(first.statistics.token, second.statistics.token)
        same = np.asarray(second.statistics.top) == second.statistics.token
        np.testing.assert_array_equal(np.asarray(first.statistics.top) == first.statistics.token, same)
        assert np.isnan(first.statistics.mean).all() and (first.statistics.rank == -1).all()


def test_an_audit_names_what_the_server_does_not_tell_and_asks_nothing_twice(stub, tmp_path):
    run = create_external(config(tmp_path, stub, base=TINY))
    report = audit(run)
    names = {a.name for a in report.attempts}
    assert {"loss", "zlib", "lowercase", "min_k", "reference", "windows", "prefix"} <= names
    assert "The attack min_k_plus_plus: it needs mean, variance of each token." in report.untested
    assert "The attack error_zone: it needs rank of each token." in report.untested
    assert report.provenance["model.endpoint"] == stub.url
    asked = len(stub.asked)
    assert asked >= 2 * 28
    audit(create_external(config(tmp_path, stub, base=TINY)))
    assert len(stub.asked) == asked


def test_an_interrupted_audit_goes_on(stub, tmp_path):
    made = config(tmp_path, stub)
    stub.script = [200] * 9 + [500] * 100
    with pytest.raises(AuditError, match="gave no answer in 3 attempts: status 500: busy"):
        audit(create_external(made), attacks=["loss"])
    kept = len(list(create_external(made).private.glob("answers/*/*.json")))
    assert kept >= 9
    stub.script, before = [], len(stub.asked)
    audit(create_external(made), attacks=["loss"])
    assert len(stub.asked) - before == 29 - kept


def test_the_key_is_sent_and_written_nowhere(stub, tmp_path, monkeypatch):
    secret = "sk-of-nobody-1234567890"
    stub.key = secret
    with pytest.raises(AuditError, match="refuses access \\(401\\)") as error:
        audit(create_external(config(tmp_path, stub)), attacks=["loss"])
    assert "--api-key-env" in error.value.hint
    with pytest.raises(ConfigError, match="DESK_KEY is empty or not set"):
        audit(create_external(config(tmp_path, stub, api_key_env="DESK_KEY")))
    monkeypatch.setenv("DESK_KEY", secret)
    run = create_external(config(tmp_path, stub, api_key_env="DESK_KEY"))
    audit(run, attacks=["loss"])
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in repr(Completions(url=stub.url, model="m", folder=tmp_path, key=secret))


def test_a_model_that_is_not_served_is_named(stub, tmp_path):
    with pytest.raises(AuditError, match=r"does not know the model 'other' \(404\)"):
        audit(create_external(config(tmp_path, stub, model={"path": "other"})))


def test_a_server_that_is_not_there(tmp_path, bundled):
    with serving(Stub(model=bundled)) as gone:
        pass
    asker = Completions(url=gone.url, model="served", folder=tmp_path, attempts=3, wait=lambda seconds: None)
    with pytest.raises(AuditError, match="gave no answer in 3 attempts: no connection") as error:
        asker.ask([{"prompt": "x", "max_tokens": 1}])
    assert "Is the server up?" in error.value.hint


def test_busy_servers_are_asked_again_with_longer_pauses(stub, tmp_path):
    pauses: list[float] = []
    stub.script = [429, 503, 500]
    asker = Completions(
        url=stub.url.removesuffix("/v1"), model="served", folder=tmp_path, concurrency=1, wait=pauses.append
    )
    [answer] = asker.ask([{"prompt": [0, 5], "max_tokens": 2, "temperature": 0}])
    assert answer["text"] and len(stub.asked) == 4
    assert pauses == sorted(pauses) and len(set(pauses)) == 3


def test_requests_are_no_more_at_a_time_than_allowed(stub, tmp_path, monkeypatch):
    running, most, lock = 0, 0, threading.Lock()
    original = Completions._post

    def counted(self, client, body):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return original(self, client, body)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(Completions, "_post", counted)
    ticks: list[int] = []
    asker = Completions(url=stub.url, model="served", folder=tmp_path, concurrency=2)
    asker.ask([{"prompt": [0, i], "max_tokens": 1} for i in range(9)], ticks.append)
    assert most == 2 and sum(ticks) == 9 and asker.known([{"prompt": [0, 3], "max_tokens": 1}]) == 1


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"logprobs": None}, None),
        ({"logprobs": {"token_logprobs": [None, -1.0]}}, None),  # one short
        ({"logprobs": {"token_logprobs": [None, None, -1.0]}}, None),
        ({"logprobs": {"token_logprobs": [None, -2.0, -1.0]}}, ([-2.0, -1.0], [])),
        (
            {"logprobs": {"token_logprobs": [None, -2.0, -1.0, -9.0],
                          "top_logprobs": [None, {"a": -0.5, "b": -2.0}, {"c": -1.0}, {}]}},
            ([-2.0, -1.0], [False, True]),
        ),
    ],
)  # fmt: skip
def test_log_probabilities_are_believed_only_where_they_are_whole(choice, expected):
    assert prompt_logprobs(choice, 3) == expected


def test_a_refusal_is_told_apart_from_trouble(stub, tmp_path):
    stub.refuses_zero = True
    with pytest.raises(Unsupported, match="at least 1"):
        Completions(url=stub.url, model="served", folder=tmp_path).ask([{"prompt": [0], "echo": True, "max_tokens": 0}])
    assert json.dumps(stub.asked[0]["prompt"]) == "[0]" and len(stub.asked) == 1
