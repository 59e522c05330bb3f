"""The tests check types: of every function at every call, and of one that is made often now and then."""

import pytest
from beartype import beartype
from jaxtyping import TypeCheckError

from checked_types import sparing
from sordino.dp.keystream import check_secret, keystream


def test_functions_of_sordino_are_checked():
    for _ in range(3):
        with pytest.raises(TypeCheckError, match="check_secret"):
            check_secret("text")


def test_so_is_what_they_return_where_it_is_a_function():
    # Made here for the first time, or so often that at the next power of two it is checked again.
    def refuses() -> bool:
        try:
            keystream(bytes(32), "a test")("ten")
        except TypeCheckError:
            return True
        except TypeError:
            return False

    assert any(refuses() for _ in range(1 << 20))


def test_what_is_made_again_is_checked_at_powers_of_two():
    check = sparing()

    def make():
        @check(typechecker=beartype)
        def double(number: int) -> int:
            return 2 * number

        return double

    refused = []
    for _ in range(9):
        double = make()
        assert double(4) == 8
        try:
            refused.append(double("a") != "aa")
        except TypeCheckError:
            refused.append(True)
    assert refused == [True, True, False, True, False, False, False, True, False]
