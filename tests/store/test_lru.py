from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlsi_cache.store.cache.lru import RecentlyUsed


def never() -> str:
    raise AssertionError("made again")


def test_what_was_used_last_is_kept() -> None:
    memory: RecentlyUsed[int, str] = RecentlyUsed(2, lambda _: 1)
    memory.get(1, lambda: "a")
    memory.get(2, lambda: "b")
    memory.get(1, never)
    memory.get(3, lambda: "c")
    assert memory.get(1, never) == "a"
    assert memory.get(3, never) == "c"
    assert memory.get(2, lambda: "made again") == "made again"


def test_a_value_larger_than_the_capacity_is_kept_alone() -> None:
    memory: RecentlyUsed[int, str] = RecentlyUsed(3, len)
    memory.get(1, lambda: "ab")
    memory.get(2, lambda: "abcdef")
    assert memory.get(2, never) == "abcdef"
    assert memory.get(1, lambda: "again") == "again"


@given(keys=st.lists(st.integers(0, 6)), capacity=st.integers(1, 8))
def test_any_sequence_of_keys_gets_its_own_values_within_capacity(
    keys: list[int], capacity: int
) -> None:
    memory: RecentlyUsed[int, str] = RecentlyUsed(capacity, len)
    for key in keys:
        assert memory.get(key, lambda key=key: str(key) * key) == str(key) * key
        assert memory._size == sum(map(len, memory._values.values()))
        assert memory._size <= capacity or len(memory._values) == 1
