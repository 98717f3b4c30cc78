"""What a run writes may be read by whom the user's umask lets read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.runs import make_recipe
from vlsi_cache import dump_teacher, train_student
from vlsi_cache.verbalizer import export_exits


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_of_a_run_follow_the_umask(tmp_path: Path, mask: int) -> None:
    stage = {"steps": 1, "save_every": 1}
    recipe = make_recipe(tmp_path, num_samples=4, interaction=stage, finetuning=stage)
    before = os.umask(mask)
    try:
        dump_teacher(recipe)
        train_student(recipe)
        export_exits(recipe.output, tmp_path / "exits")
    finally:
        os.umask(before)
    files = [path for path in recipe.output.rglob("*") if path.is_file()]
    files += (tmp_path / "exits").iterdir()
    assert sum(path.suffix == ".safetensors" for path in files) >= 5
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert set(modes.values()) == {0o666 & ~mask}, modes
