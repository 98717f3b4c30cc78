"""A seeded run comes out as ever: the cache's bytes, the student's weights, the journal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.seeded import GOLDEN, make_runs


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_runs(tmp_path_factory.mktemp("seeded"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return known


@pytest.mark.parametrize("run", ["text", "images", "together"])
def test_a_seeded_run_comes_out_as_ever(
    run: str, found: dict[str, Any], golden: dict[str, Any]
) -> None:
    """To the bit where the machine rounds as the golden one did, else to rounding."""
    made, known = found[run], golden[run]
    assert made["files"].keys() == known["files"].keys()
    if found["arithmetic"] == golden["arithmetic"]:
        assert made == known
        return
    assert made["weights"] == pytest.approx(known["weights"], rel=1e-2)
    assert len(made["journal"]) == len(known["journal"])
    for line, wanted in zip(made["journal"], known["journal"], strict=True):
        assert line.keys() == wanted.keys()
        for row, expected in zip(line["divergence"], wanted["divergence"], strict=True):
            assert row == pytest.approx(expected, rel=0.1)
