"""A merged cache on the road: two dumps of halves teach as one dump of the whole."""

from __future__ import annotations

import pickle
from pathlib import Path

from click.testing import CliRunner
from safetensors.torch import load_file

from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import open_cache, verify_cache
from vlsi_cache.student import train_student
from vlsi_cache.teacher import dump_teacher


def _on(recipe: Recipe, cache: Path, **changes: object) -> Recipe:
    return recipe.model_copy(
        update={"cache": recipe.cache.model_copy(update={"path": cache}), **changes}
    )


def test_halves_that_are_merged_teach_the_student_of_the_whole(tmp_path: Path) -> None:
    whole = make_recipe(tmp_path, num_samples=12)
    dump_teacher(whole, lambda _: None)
    lines = (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    # where shards and batches begin anyway, so that even the last bits are the same
    for name, part in (("first", lines[:5]), ("second", lines[5:])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(part), encoding="utf-8")
        teacher = whole.teacher.model_copy(
            update={"verbalizers": whole.teacher_verbalizers_path, "taps": None}
        )
        half = whole.data.model_copy(update={"path": str(data)})
        dump_teacher(_on(whole, tmp_path / name, data=half, teacher=teacher), lambda _: None)
    merged = tmp_path / "merged"
    parts = [str(tmp_path / name) for name in ("first", "second")]
    done = CliRunner().invoke(cli, ["merge", str(merged), *parts])
    assert done.exit_code == 0, done.output
    assert verify_cache(merged).complete
    assert pickle.dumps(list(open_cache(merged))) == pickle.dumps(
        list(open_cache(whole.cache_path))
    )
    students = [
        train_student(
            _on(whole, cache, output=tmp_path / name, stages=["verbalization", "interaction"])
        )
        for name, cache in (("of-merged", merged), ("of-whole", whole.cache_path))
    ]
    weights, wanted = (load_file(student / "model.safetensors") for student in students)
    assert weights.keys() == wanted.keys()
    assert all((weights[name] == wanted[name]).all() for name in wanted)
