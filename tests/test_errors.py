"""Errors go to other processes as they are."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from vlsi_cache.errors import DataError, VlsiCacheError
from vlsi_cache.recipe import load_recipe


def _tree(root: type[VlsiCacheError] = VlsiCacheError) -> Iterator[type[VlsiCacheError]]:
    """The classes that are made from the common parts."""
    yield root
    for kind in root.__subclasses__():
        if "__init__" not in vars(kind):
            yield from _tree(kind)


def _assert_same(sent: VlsiCacheError, error: VlsiCacheError) -> None:
    assert type(sent) is type(error)
    assert str(sent) == str(error)
    assert sent.args == error.args
    problems = [[str(one) for one in of.problems] for of in (sent, error)]
    assert problems[0] == problems[1]
    ours, theirs = ({**vars(of), "problems": None} for of in (sent, error))
    assert ours == theirs


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", sorted(_tree(), key=lambda kind: kind.__name__))
def test_an_error_that_was_pickled_is_the_same(kind: type[VlsiCacheError], protocol: int) -> None:
    inner = DataError("the row is bad", where="rows.jsonl", problems=["no prompt", "no image"])
    error = kind(
        "2 problems", where="a/b", expected=1, found=2, mend="Mend both", problems=[inner, "other"]
    )
    assert str(error).count("\n") == 5
    _assert_same(pickle.loads(pickle.dumps(error, protocol)), error)


def test_the_problems_of_a_recipe_are_the_same_after_pickling() -> None:
    with pytest.raises(VlsiCacheError) as caught:
        load_recipe(None, ["cache.k=-1", "teacher.modle=x"])
    assert str(caught.value).count("\n") == 3
    _assert_same(pickle.loads(pickle.dumps(caught.value)), caught.value)
    assert vars(caught.value).keys() >= {"origin", "problem_by_path"}
