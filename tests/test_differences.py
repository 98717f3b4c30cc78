from __future__ import annotations

from vlsi_cache.differences import ABSENT, Difference, find_differences


def test_absent_keys_other_types_and_nested_values_differ() -> None:
    recorded = {"a": 1, "b": {"c": True, "d": [1, 2]}, "e": {}, "n": float("nan")}
    wanted = {"b": {"c": 1, "d": [1, 2]}, "e": {"f": None}, "n": float("nan")}
    found = find_differences(recorded, wanted)
    assert found == [
        Difference("a", 1, ABSENT),
        Difference("b.c", True, 1),
        Difference("e", {}, ABSENT),
        Difference("e.f", ABSENT, None),
    ]
    assert [difference.clause() for difference in found] == [
        "a is 1, asked for absent",
        "b.c is true, asked for 1",
        "e is {}, asked for absent",
        "e.f is absent, asked for null",
    ]


def test_a_clause_names_the_other_tree() -> None:
    assert Difference("k", 4, 8).clause("the first cache's") == "k is 4, the first cache's 8"


def test_a_clause_shortens_hashes_and_long_values() -> None:
    assert Difference("hash", "a" * 64, "b" * 64).clause() == (
        f"hash is {'a' * 12}…, asked for {'b' * 12}…"
    )
    assert len(Difference("list", [0] * 1000, []).clause()) < 250
