"""``data.select``: the student learns from the samples that the cache's figures choose."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.ranks import RankServer, errors
from support.runs import make_recipe
from vlsi_cache.data import Conversation, TokenBatches
from vlsi_cache.errors import CacheError, CacheMismatchError, RecipeError, StageError
from vlsi_cache.evaluation import evaluate_model
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher

HALF = {"by": "teacher_loss", "keep": 0.5, "order": "highest"}


def _changed(recipe: Recipe, **changes: Any) -> Recipe:
    raw = json.loads(recipe.model_dump_json())
    for section, change in changes.items():
        raw[section] = {**raw[section], **change} if isinstance(change, dict) else change
    return recipe_from_mapping(raw, where="test")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A cache of twelve samples, of which one failed."""
    folder = tmp_path_factory.mktemp("selection")
    recipe = make_recipe(folder, cache={"on_error": "skip"}, interaction={"workers": 0})
    rows = Path(str(recipe.data.path)).read_text(encoding="utf-8").splitlines()
    rows[4] = rows[4].replace("What is", "What is " * 200)
    Path(str(recipe.data.path)).write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = _changed(recipe, data={"max_length": 200})
    dump_teacher(recipe)
    assert sorted(open_cache(recipe.cache_path).failures()) == [4]
    every = {"steps": None, "epochs": 1}
    changes: dict[str, Any] = {"interaction": every, "finetuning": every}
    return _changed(recipe, cache={"path": str(recipe.cache_path)}, **changes)


def _highest(recipe: Recipe, count: int) -> list[int]:
    """The samples of the greatest teacher's loss, by a plain loop."""
    ranks = [
        (-float(record.distribution.label_log_prob[:, -1].mean()), record.key, index)
        for index, record in enumerate(open_cache(recipe.cache_path))
        if record.failure is None
    ]
    return sorted(index for _, _, index in sorted(ranks)[-count:])


def test_every_stage_reads_the_chosen_samples_alone(
    dumped: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[int] = set()
    plain = TokenBatches.__call__

    def watched(self: TokenBatches, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        read.update(index for index, _ in items)
        return plain(self, items)

    recipe = _changed(dumped, output=str(tmp_path), data={"select": HALF, "on_error": "stop"})
    recipe = _changed(recipe, cache={"on_error": "stop"})
    for stages in (["verbalization"], ["verbalization", "interaction"], ["finetuning"]):
        read.clear()
        some = _changed(recipe, stages=stages)
        if stages == ["finetuning"]:
            some = _changed(some, output=str(tmp_path / "alone"))
        monkeypatch.setattr(TokenBatches, "__call__", watched)
        with caplog.at_level(logging.INFO, "vlsi_cache"):
            train_student(some)
        monkeypatch.undo()
        # stage two compares the first few samples with the record before it begins
        first = set(range(4)) if "interaction" in stages else set()
        assert read - first == set(_highest(dumped, 6)) - first
    assert "data.select by teacher_loss: 6 of 11 samples are chosen, from " in caplog.text
    assert "6 are not chosen by data.select" not in caplog.text
    for stage in ("verbalization", "interaction", "finetuning"):
        assert (
            f"{stage} leaves out 6 of 12 samples, of which 1 failed when the teacher was dumped, "
            "and 5 are not chosen by data.select" in caplog.text
        )


def test_held_out_samples_are_measured_whether_or_not_they_would_be_chosen(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _changed(
        dumped,
        output=str(tmp_path),
        stages=["finetuning"],
        data={"select": HALF},
        held_out={"part": 0.4, "every": 1},
    )
    with caplog.at_level(logging.INFO, "vlsi_cache"):
        train_student(recipe)
    held_out = set(json.loads((tmp_path / "held-out.json").read_bytes())["samples"])
    chosen = set(_highest(dumped, 6))
    assert held_out & chosen
    assert held_out - chosen - {4}
    others = set(range(12)) - held_out - chosen - {4}
    readable = held_out - {4}
    assert f"{len(readable)} of them are measured every step" in caplog.text
    assert f"finetuning leaves out {12 - len(chosen - held_out)} of 12 samples" in caplog.text
    assert (
        f"of which 1 failed when the teacher was dumped, and {len(readable)} are held out, "
        f"and {len(others)} are not chosen by data.select" in caplog.text
    )
    lines = (tmp_path / "finetuning" / "held-out.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["held_out_samples"] for line in lines} == {len(readable)}


def test_another_choice_is_another_run(dumped: Recipe, tmp_path: Path) -> None:
    recipe = _changed(dumped, output=str(tmp_path), stages=["verbalization"], data={"select": HALF})
    train_student(recipe)
    settings = json.loads((tmp_path / "student-verbalizers" / "stage.json").read_bytes())
    assert settings["settings"]["select"] | HALF == settings["settings"]["select"]
    train_student(recipe)  # finished before, by the same choice
    for other in (None, {**HALF, "keep": 0.6}, {**HALF, "order": "lowest"}):
        with pytest.raises(StageError, match=r"made with other settings:\n  select"):
            train_student(_changed(recipe, data={"select": other}))


def test_several_processes_choose_alike_and_go_on_after_a_kill(
    dumped: Recipe, tmp_path: Path, server: RankServer
) -> None:
    select = {"by": "disagreement", "tap": 5, "keep": 0.7, "order": "middle"}
    outputs = [tmp_path / name for name in ("unbroken", "killed")]
    recipes = []
    for output in outputs:
        output.mkdir()
        changes: dict[str, Any] = {"save_every": 1, "steps": 3, "epochs": None, "batch_size": 2}
        recipe = _changed(dumped, output=str(output), data={"select": select}, interaction=changes)
        recipes.append(json.loads(recipe.model_dump_json()))
    assert server.run(outputs[0], 2, recipe=recipes[0]) == [0, 0]
    killed = server.run(outputs[1], 2, recipe=recipes[1], kill=["interaction", 2])
    assert killed == [-signal.SIGKILL] * 2
    assert server.run(outputs[1], 2, recipe=recipes[1]) == [0, 0]
    states = [load_file(output / "student" / "model.safetensors") for output in outputs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    train_student(_changed(recipe_from_mapping(recipes[0], where="test"), stages=["verbalization"]))


def test_what_cannot_be_chosen_is_refused_by_name(
    dumped: Recipe, tmp_path: Path, server: RankServer
) -> None:
    def choosing(select: dict[str, Any], **changes: Any) -> Recipe:
        return _changed(dumped, output=str(tmp_path), data={"select": select}, **changes)

    none = {"path": str(tmp_path / "nowhere")}
    for stages in (["verbalization"], ["finetuning"], dumped.stages):
        with pytest.raises(CacheError, match=r"nowhere: data\.select chooses .*there is none"):
            train_student(choosing(HALF, cache=none, stages=stages))
    absent = {"by": "disagreement", "tap": 4, "keep": 0.5, "order": "highest"}
    with pytest.raises(
        CacheMismatchError, match=r"data\.select\.tap is 4.*expected one of 1, 3, 5"
    ):
        train_student(choosing(absent))
    empty = {"by": "entropy", "between": [90, None]}
    with pytest.raises(StageError, match=r"chooses no sample; expected figures from [\d.]+ to"):
        train_student(choosing(empty))
    raw = json.loads(choosing(empty).model_dump_json())
    assert 0 not in server.run(tmp_path, 2, recipe=raw)
    assert "chooses no sample" in errors(tmp_path, 2)[0]
    with pytest.raises(CacheMismatchError, match="other data"):
        train_student(_changed(dumped, data={"select": HALF, "limit": 7}, output=str(tmp_path)))
    assert not (tmp_path / "student-verbalizers").exists()


@pytest.mark.parametrize(
    ("select", "problem"),
    [
        ({"by": "entropy"}, "needs one of keep and between"),
        ({**HALF, "between": [0, 1]}, "needs one of keep and between"),
        ({"by": "entropy", "keep": 0.5}, r"select\.order.*is missing"),
        ({"by": "entropy", "between": [0, 1], "order": "lowest"}, r"select\.order.*needs keep"),
        ({"by": "entropy", "between": [2, 1]}, "is empty: 2 is above 1"),
        ({**HALF, "by": "disagreement"}, r"select\.tap.*is missing"),
        ({**HALF, "tap": 3}, r"select\.tap.*has no effect: by is teacher_loss"),
        ({**HALF, "keep": 0}, r"select\.keep"),
        ({**HALF, "by": "loss"}, r"select\.by"),
    ],
)
def test_a_choice_that_is_none_is_refused(select: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        recipe_from_mapping({"data": {"path": "x", "select": select}}, where="test")


def test_a_growing_cache_cannot_be_chosen_from() -> None:
    raw = {"data": {"path": "x", "select": HALF}, "interaction": {"follow": True}}
    with pytest.raises(RecipeError, match=r"data\.select.*interaction\.follow"):
        recipe_from_mapping(raw, where="test")


def test_other_commands_say_that_they_read_all(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _changed(dumped, output=str(tmp_path), data={"select": HALF})
    with caplog.at_level(logging.WARNING, "vlsi_cache"):
        dump_teacher(_changed(recipe, cache={"path": str(tmp_path / "cache")}))
        assert "data.select has no effect: dump-teacher records every sample" in caplog.text
        caplog.clear()
        found = evaluate_model(_changed(recipe, cache={"path": None}))
    assert found.num_samples == 11
    assert "data.select has no effect: evaluate reads every sample" in caplog.text
    keys = [open_cache(path).manifest.dataset.fingerprint for path in (recipe.cache_path,)]
    assert keys == [open_cache(tmp_path / "cache").manifest.dataset.fingerprint]
    assert np.isfinite(found.loss_nats)
