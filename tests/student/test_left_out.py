"""One bad row costs no run: every stage leaves out what failed, and says so once."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from support.runs import changed, make_recipe, poison
from vlsi_cache.errors import CacheMismatchError, DataError, StageError
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher

TOO_LONG, NO_JSON, NO_CONVERSATION, NOT_FINITE = 3, 5, 8, 10
WORD = "zzz"


def _rows(recipe: Recipe) -> list[str]:
    return Path(str(recipe.data.path)).read_text(encoding="utf-8").splitlines()


def _write(recipe: Recipe, rows: list[str]) -> None:
    Path(str(recipe.data.path)).write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def _row(name: str, asked: str) -> str:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "The red one"}]
    return json.dumps({"id": name, "messages": messages})


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Four rows of twelve fail, each in its own way, and all stages meet every row."""
    recipe = make_recipe(
        tmp_path_factory.mktemp("left-out"),
        cache={"samples_per_shard": 5, "batch_size": 2, "on_error": "skip"},
        data={"max_length": 200},
    )
    rows = _rows(recipe)
    rows[TOO_LONG] = _row("s3", "What? " * 100)
    rows[NO_JSON] = rows[NO_JSON][:-7]
    rows[NO_CONVERSATION] = '{"id": "s8", "caption": "a red one"}'
    rows[NOT_FINITE] = _row("s10", "Q")
    _write(recipe, rows)
    poison(Path(str(recipe.teacher.model)))
    every = {"steps": None, "epochs": 2, "batch_size": 4}
    raw: dict[str, Any] = {
        "teacher": {"verbalization": {**_schedule(recipe), **every}},
        "student": {"verbalization": {**_schedule(recipe), **every}},
        "interaction": every,
        "finetuning": every,
    }
    recipe = changed(recipe, **raw)
    dump_teacher(recipe)
    return recipe


def _schedule(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(recipe.teacher.verbalization.model_dump_json())
    return found


def test_the_dump_records_why_each_row_failed(dumped: Recipe) -> None:
    failures = open_cache(dumped.cache_path).failures()
    assert sorted(failures) == [TOO_LONG, NO_JSON, NO_CONVERSATION, NOT_FINITE]
    assert "longer than" in failures[TOO_LONG]
    assert "not JSON" in failures[NO_JSON]
    assert "not a conversation" in failures[NO_CONVERSATION]
    assert "not finite" in failures[NOT_FINITE]


def test_all_stages_leave_the_failed_rows_out_and_count_the_others(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = changed(dumped, output=str(tmp_path), cache={"path": str(dumped.cache_path)})
    with caplog.at_level(logging.INFO, "vlsi_cache"):
        student = train_student(recipe)
    for stage in ("verbalization", "interaction", "finetuning"):
        assert caplog.text.count(f"{stage} leaves out 4 of 12 samples, of which 4 failed") == 1
        # two passes over eight samples, four at a time
        assert f"{stage}  step 4 of 4 " in caplog.text
    assert all(
        value.isfinite().all() for value in load_file(student / "model.safetensors").values()
    )
    seen = json.loads((tmp_path / "unreadable-student.json").read_bytes())
    assert sorted(map(int, seen["failures"])) == [TOO_LONG, NO_JSON, NO_CONVERSATION]


def test_recorded_failures_need_no_flag_where_the_rows_are_conversations(
    dumped: Recipe, tmp_path: Path
) -> None:
    base = changed(dumped, output=str(tmp_path), data={"path": str(tmp_path / "data.jsonl")})
    rows = [
        row for index, row in enumerate(_rows(dumped)) if index not in (NO_JSON, NO_CONVERSATION)
    ]
    _write(base, rows)
    dump_teacher(base)
    assert len(open_cache(base.cache_path).failures()) == 2
    strict = changed(base, cache={"on_error": "stop"})
    assert (train_student(strict) / "model.safetensors").is_file()
    # fine-tuning alone takes them from the cache, where there is one of the same data
    alone = changed(strict, stages=["finetuning"], output=str(tmp_path / "alone"))
    with pytest.raises(DataError, match=r"sample 's3'.*longer than the model's context"):
        train_student(alone)
    taken = changed(alone, cache={"path": str(base.cache_path)}, output=str(tmp_path / "taken"))
    assert (train_student(taken) / "model.safetensors").is_file()
    skipped = changed(alone, data={"on_error": "skip"})
    assert (train_student(skipped) / "model.safetensors").is_file()


def test_a_row_that_only_the_student_cannot_read_is_an_error_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tmp_path)
    rows = _rows(recipe)
    rows[7] = _row("s7", "What? " * 30)
    _write(recipe, rows)
    dump_teacher(recipe)
    assert not open_cache(recipe.cache_path).failures()
    folder = Path(str(recipe.student.model))
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 100
    config.save_pretrained(folder)
    every = {"steps": None, "epochs": 1, "batch_size": 4}
    verbalization = {**json.loads(recipe.student.verbalization.model_dump_json()), **every}
    recipe = changed(
        recipe, student={"verbalization": verbalization}, interaction=every, finetuning=every
    )
    with pytest.raises(DataError, match=r"sample 's7'.*longer than the model's context"):
        train_student(recipe)
    skipping = changed(recipe, data={"on_error": "skip"})
    with caplog.at_level(logging.WARNING):
        assert (train_student(skipping) / "model.safetensors").is_file()
    assert "interaction leaves out 1 of 12 samples, of which 1 cannot be read by the student" in (
        caplog.text
    )


def test_a_state_that_is_not_finite_stops_stage_one_by_name(dumped: Recipe, tmp_path: Path) -> None:
    recipe = changed(
        dumped,
        output=str(tmp_path),
        data={"path": str(tmp_path / "data.jsonl")},
        cache={"on_error": "stop"},
    )
    rows = [
        row for index, row in enumerate(_rows(dumped)) if index not in (NO_JSON, NO_CONVERSATION)
    ]
    _write(recipe, [row for row in rows if "s3" not in row])
    with pytest.raises(StageError, match=r"sample 's10': hidden states are not finite.*skip"):
        dump_teacher(recipe)


def test_too_many_unreadable_in_a_row_stop_the_teacher_before_it_trains(
    dumped: Recipe, tmp_path: Path
) -> None:
    changes = {"max_failures_in_a_row": 3}
    recipe = changed(dumped, output=str(tmp_path), data={"max_length": 8}, cache=changes)
    with pytest.raises(StageError, match=r"4 samples in a row cannot be read.*max_failures_in_a_r"):
        dump_teacher(recipe)
    recipe = changed(dumped, output=str(tmp_path), data={"max_length": 8})
    with pytest.raises(StageError, match="none of the 12 samples can be read"):
        dump_teacher(recipe)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_row_that_was_mended_is_other_data_by_name(dumped: Recipe, tmp_path: Path) -> None:
    recipe = changed(
        dumped,
        output=str(tmp_path),
        cache={"path": str(dumped.cache_path)},
        data={"path": str(tmp_path / "data.jsonl")},
    )
    rows = _rows(dumped)
    rows[NO_CONVERSATION] = _row("s8", "What is it?")
    _write(recipe, rows)
    with pytest.raises(
        CacheMismatchError,
        match=r"other data: sample 's8' has changed since the dump, and was recorded as failed",
    ):
        train_student(recipe)


def test_a_picture_that_is_missing_or_broken_is_left_out_everywhere(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, images=True, data={"on_error": "skip"})
    (tmp_path / "2.png").unlink()
    (tmp_path / "6.png").write_bytes((tmp_path / "6.png").read_bytes()[:30])
    dump_teacher(recipe)
    failures = open_cache(recipe.cache_path).failures()
    assert sorted(failures) == [2, 6]
    assert failures[2] == "image file is missing"
    assert (train_student(recipe) / "model.safetensors").is_file()
    with pytest.raises(DataError, match=r"2\.png: image file is missing"):
        dump_teacher(changed(recipe, data={"on_error": "stop"}))


def test_what_was_found_is_looked_for_again_where_its_file_is_junk(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = changed(
        dumped,
        output=str(tmp_path),
        stages=["verbalization"],
        cache={"path": str(dumped.cache_path)},
    )
    (tmp_path / "unreadable-student.json").write_bytes(b"\0\0[")
    train_student(recipe)
    assert len(json.loads((tmp_path / "unreadable-student.json").read_bytes())["failures"]) == 3


def test_a_stale_later_stage_is_refused_before_the_first_one_trains(
    dumped: Recipe, tmp_path: Path
) -> None:
    recipe = changed(dumped, output=str(tmp_path), cache={"path": str(dumped.cache_path)})
    train_student(recipe)
    shutil.rmtree(recipe.student_verbalizers_path)
    for section, change in {
        "interaction": {"learning_rate": 3e-3},
        "finetuning": {"learning_rate": 3e-3},
    }.items():
        with pytest.raises(
            StageError, match=rf"{section}.*learning_rate is 0\.01, asked for 0\.003"
        ):
            train_student(changed(recipe, **{section: change}))
    assert not recipe.student_verbalizers_path.exists()


def test_stage_two_refuses_divergences_that_are_not_finite(dumped: Recipe, tmp_path: Path) -> None:
    """They would match the first teacher tap, whatever the others are."""
    recipe = changed(dumped, output=str(tmp_path), cache={"path": str(dumped.cache_path)})
    folder = train_student(changed(recipe, stages=["verbalization"]))
    state = load_file(folder / "verbalizers.safetensors")
    state["layers.2.0.down.weight"].fill_(float("nan"))
    save_file(state, folder / "verbalizers.safetensors", metadata={"format": "pt"})
    stays = changed(recipe, interaction={"inner_schedule": None})
    with pytest.raises(
        StageError, match=r"not finite at step 1, between student tap 2 and teacher tap 1, student"
    ):
        train_student(changed(stays, stages=["verbalization", "interaction"]))
    assert torch.isnan(state["layers.2.0.down.weight"]).all()


@pytest.fixture(scope="module")
def one_spoils(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A student that is NaN for one row of twelve, which its teacher reads."""
    every = {"steps": None, "epochs": 2, "batch_size": 4}
    recipe = make_recipe(
        tmp_path_factory.mktemp("one-spoils"),
        interaction={**every, "gradient_accumulation": 2, "inner": "none"},
        finetuning={**every, "learning_rate": None, "final_learning_rate": None},
    )
    rows = _rows(recipe)
    rows[-1] = _row("s11", "Q")
    _write(recipe, rows)
    dump_teacher(recipe)
    poison(Path(str(recipe.student.model)))
    return recipe


@pytest.mark.parametrize("stage", ["interaction", "finetuning"])
def test_a_sample_that_the_student_cannot_learn_from_stops_a_stage_by_name(
    one_spoils: Recipe, tmp_path: Path, stage: str
) -> None:
    recipe = changed(one_spoils, output=str(tmp_path), stages=[stage])
    recipe = changed(recipe, cache={"path": str(one_spoils.cache_path)})
    with pytest.raises(
        StageError,
        match=rf"{stage}: sample 's11' cannot be learned from in step \d: its loss is nan"
        r".*--on-error skip",
    ):
        train_student(recipe)


def test_a_sample_that_the_student_cannot_learn_from_is_left_out_by_name(
    one_spoils: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = changed(
        one_spoils,
        output=str(tmp_path),
        stages=["interaction", "finetuning"],
        data={"on_error": "skip"},
    )
    student = train_student(changed(recipe, cache={"path": str(one_spoils.cache_path)}))
    for stage in ("interaction", "finetuning"):
        assert f"{stage}: 2 steps left out 1 sample whose loss or gradient" in caplog.text
        assert caplog.text.count("leaves out sample 's11': its loss is nan") == 2
    assert "1 of 4 samples are not measured" in caplog.text
    state = load_file(student / "model.safetensors")
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    assert broken == ["model.embed_tokens.weight"], "what was NaN before, and nothing else"
