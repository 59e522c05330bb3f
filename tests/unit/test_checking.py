"""Checks of certificates: every change is found, by whoever made it, and nothing is loaded that needs torch."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import certificate_fixtures as fixtures
import pytest

from sordino.errors import ConfigError, RunError, SordinoError
from sordino.evidence import public_hex
from sordino.results import encode
from sordino.unlearn.certificates.checking import check


@pytest.fixture(autouse=True)
def _statistics(monkeypatch):
    monkeypatch.setitem(sys.modules, fixtures.MODULE, fixtures.stand_in())


@pytest.fixture(scope="module")
def issued():
    return json.loads(encode(fixtures.issued()))


def leaves(value, path=()):
    """The paths of everything in `value` that holds nothing more: values, and empty lists and objects."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for name, one in inner for leaf in leaves(one, (*path, name))]
    return found or [path]


def other(value):
    """Something else that could stand there."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 + 1e-6) + 1e-7
    if isinstance(value, str):
        digits = value[:-1] + ("0" if value[-1:] != "0" else "1")
        choices = {"pass": "fail", "fail": "pass", "subject": "record", "approximate": "exact"}
        return choices.get(value, digits)
    return 7 if value is None else ["x"] if isinstance(value, list) else {"x": 1}


def mutated(plain, path):
    made = copy.deepcopy(plain)
    holder = made
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = other(holder[path[-1]])
    return made


def found_out(plain, path, key=None):
    path.write_text(json.dumps(plain))
    try:
        found = check(path, key=key)
    except SordinoError:
        return True
    assert found.sound == all(one.state != "failed" for one in found.checks)
    return not found.sound


def test_every_change_is_found(issued, tmp_path):
    path = tmp_path / "certificate.json"
    assert not found_out(issued, path)
    paths = leaves(issued)
    assert len(paths) > 400
    assert [one for one in paths if not found_out(mutated(issued, one), path)] == []
    for name in issued:
        assert found_out({k: v for k, v in issued.items() if k != name}, path), name
    assert found_out(issued | {"note": "also valid for others"}, path)


def test_every_change_that_somebody_else_signs_is_found_by_the_key(issued, tmp_path):
    path, trusted = tmp_path / "certificate.json", public_hex(fixtures.KEY)
    assert not found_out(issued, path, trusted)
    forged = fixtures.resigned(issued, fixtures.OTHER)
    assert not found_out(forged, path)
    assert found_out(forged, path, trusted)
    for one in leaves(issued)[::7]:
        assert found_out(fixtures.resigned(mutated(issued, one), fixtures.OTHER), path, trusted)


# What nothing else in a certificate answers for: there the issuer is taken at its word.
WORD = (
    ("issued",), ("issuer",), ("method",), ("facts",), ("settings",), ("search",), ("cost",), ("purge",),
    ("request", "received"), ("request", "kind"), ("request", "count"), ("request", "subjects"),
    ("manifests", "before"), ("manifests", "after"),
    ("digests", "base"), ("digests", "tokenizer"), ("digests", "data"), ("digests", "code"), ("digests", "version"),
    ("qualification", "digest"), ("qualification", "rows"),
    ("verification", "reasons"), ("verification", "robustness"), ("verification", "rows"),
    ("verification", "comparisons"), ("verification", "shown"), ("verification", "margins"),
)  # fmt: skip
# Of these, what the stored scores answer for.
COMPUTED = ("difference", "p_value", "outcome")


def test_an_issuer_who_changes_what_can_be_computed_is_found_out(issued, tmp_path):
    path = tmp_path / "certificate.json"
    assert not found_out(fixtures.resigned(issued), path)
    for one in leaves(issued)[::2]:
        if one in {("id",), ("signature",), ("public_key",)}:
            continue  # given anew by signing
        taken = any(one[: len(word)] == word for word in WORD)
        computed = one[:2] == ("verification", "comparisons") and one[3] in COMPUTED
        computed |= (
            one[:2] == ("verification", "rows") and one[2] in (0, 1) and one[3:4] == ("metrics",) and "auc" not in one
        )
        # The stand-in for the statistics reads of all columns but these.
        unread = one[0] in ("before", "after") and one[2:3] == ("base_loss",)
        unread |= (
            one[0] in ("before", "after")
            and one[1] != "forget"
            and one[2:3] in (("extraction_strength",), ("exact_memorisation",))
        )
        if (not taken and not unread) or computed:
            assert found_out(fixtures.resigned(mutated(issued, one)), path), one


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c | {"outcome": "pass", "reasons": []}, "outcome"),
        (lambda c: c | {"does_not_prove": []}, "promise"),
        (lambda c: c | {"promise": "Guaranteed."}, "promise"),
        (lambda c: c | {"utility": {}}, "utility"),
        (lambda c: c | {"missing": ["something"]}, "outcome"),
        (lambda c: c | {"before": c["after"]}, "scores"),
        (lambda c: c | {"extra": 1}, "schema"),
    ],
)
def test_the_check_that_fails_is_the_one_that_should(issued, tmp_path, change, name):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(fixtures.resigned(change(copy.deepcopy(issued)))))
    found = check(path)
    assert name in {one.name for one in found.checks if one.state == "failed"}


def test_the_wording_of_another_version_is_not_judged(issued, tmp_path):
    path = tmp_path / "certificate.json"
    other_code = copy.deepcopy(issued)
    other_code["digests"]["code"] = "0" * 32
    path.write_text(json.dumps(fixtures.resigned(other_code | {"promise": "As it was said then."})))
    found = check(path)
    assert found.sound
    assert {one.name: one.state for one in found.checks}["promise"] == "not checked"


def test_statistics_that_cannot_be_computed_fail(issued, tmp_path, monkeypatch):
    def broken(verification, before, after):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(sys.modules[fixtures.MODULE], "recompute", broken)
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(issued))
    found = {one.name: one for one in check(path).checks}
    assert found["statistics"].state == "failed"
    assert found["statistics"].what == "It could not be computed: division by zero."


def test_rounding_is_no_difference(issued, tmp_path):
    made = copy.deepcopy(issued)
    difference = made["verification"]["comparisons"][0]["difference"]
    difference["value"] *= 1 + 1e-13
    path = tmp_path / "certificate.json"
    assert not found_out(fixtures.resigned(made), path)
    difference["value"] *= 1 + 1e-8
    assert found_out(fixtures.resigned(made), path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("<html>", "is not JSON"),
        ("[]", "is no certificate of schema 1"),
        ("3", "is no certificate of schema 1"),
        ("{}", "is no certificate of schema 1"),
        ('{"schema": true}', "is no certificate of schema 1"),
        ('{"schema": 1}', "is not a valid Certificate"),
        ('{"schema": 1, "schema": 1}', "a name stands twice"),
        ('{"schema": 1, "id": NaN}', "NaN is no number"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_what_is_no_certificate_is_a_typed_error(tmp_path, text, why):
    path = tmp_path / "certificate.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=why):
        check(path)


def test_a_truncated_certificate_another_schema_and_none_are_typed_errors(issued, tmp_path):
    path = tmp_path / "certificate.json"
    text = json.dumps(issued)
    for length in range(0, len(text), len(text) // 20):
        path.write_text(text[:length])
        with pytest.raises(RunError, match="is not JSON"):
            check(path)
    path.write_text(json.dumps(issued | {"schema": 2}))
    with pytest.raises(RunError, match="is no certificate of schema 1"):
        check(path)
    with pytest.raises(RunError, match="no certificate at"):
        check(tmp_path / "missing.json")
    path.unlink()
    with pytest.raises(RunError, match="no certificate at"):
        check(tmp_path)


def test_a_number_too_large_for_json_is_found(issued, tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(issued).replace('"seconds": 12.5', '"seconds": 1e999'))
    with pytest.raises(RunError, match="is not a valid Certificate"):
        check(path)


def test_what_is_no_trusted_key_is_a_typed_error(issued, tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(issued))
    with pytest.raises(ConfigError, match="neither a public key"):
        check(path, key="abc")
    (tmp_path / "key").write_text(public_hex(fixtures.KEY))
    assert check(path, key=str(tmp_path / "key")).sound


CODE = """
import sys
import certificate_fixtures as fixtures
sys.modules[fixtures.MODULE] = fixtures.stand_in()
from pathlib import Path
from sordino.unlearn.certificates.certificate import issue, write
from sordino.unlearn.certificates.checking import check
found = check(write(issue(fixtures.evidence(), fixtures.KEY), Path(sys.argv[1])))
print(found.sound, sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""


def test_torch_is_not_loaded(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert found.stdout.split("\n")[0] == "True []", found.stderr
