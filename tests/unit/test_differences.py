"""Where two values differ by more than rounding."""

import pytest

from sordino.unlearn.certificates.differences import differing

VALUE = {"rows": [{"low": 0.1, "n": 3, "name": "auc", "value": None}], "note": "x", "ok": True}


@pytest.mark.parametrize(
    ("other", "places"),
    [
        (VALUE, []),
        ({**VALUE, "rows": [{"low": 0.1 * (1 + 9e-10), "n": 3, "name": "auc", "value": None}]}, []),
        ({**VALUE, "rows": [{"low": 0.1 * (1 + 3e-9), "n": 3, "name": "auc", "value": None}]}, ["rows[0].low"]),
        ({**VALUE, "rows": [{"low": 0.1, "n": 4, "name": "x", "value": None}]}, ["rows[0].n", "rows[0].name"]),
        ({**VALUE, "rows": [{"low": 0.1, "n": 3, "name": "auc", "value": 0.0}]}, ["rows[0].value"]),
        ({**VALUE, "rows": []}, ["rows"]),
        ({**VALUE, "rows": {}}, ["rows"]),
        ({**VALUE, "ok": 1}, ["ok"]),
        ({**VALUE, "more": 1}, ["more"]),
        ({"rows": VALUE["rows"], "ok": True}, ["note"]),
        ({**VALUE, "note": ["x"]}, ["note"]),
    ],
)  # fmt: skip
def test_every_difference_has_its_place(other, places):
    assert sorted(differing(VALUE, other)) == places
    assert sorted(differing(other, VALUE)) == places


def test_next_to_nothing_is_nothing():
    assert list(differing(0.0, 1e-13)) == []
    assert list(differing(0.0, 1e-11)) == [""]
    assert list(differing((1, 2), [1, 2.0])) == []
