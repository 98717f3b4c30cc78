"""Job arrays: any number of jobs, any order of finishing, one cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from support.commands import Job
from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import RecipeError, StageError
from vlsi_cache.recipe import Recipe
from vlsi_cache.teacher import DumpProgress, Partition, dump_teacher

NUM_SHARDS = 6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A dump by one writer, of six shards."""
    made = make_recipe(
        tmp_path_factory.mktemp("jobs"), cache={"samples_per_shard": 2, "k": 4, "m": 4}
    )
    dump_teacher(made, lambda _: None)
    return made


def _file(recipe: Recipe, path: Path, *, output: Path) -> Path:
    raw = json.loads(recipe.model_dump_json())
    raw["cache"]["path"], raw["output"] = None, str(output)
    path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    return path


def _all_files(cache: Path) -> dict[str, bytes]:
    found = {path.relative_to(cache): path for path in cache.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items()}


def _job(file: Path, partition: str) -> Job:
    command = ["-m", "vlsi_cache.cli", "dump-teacher", "--recipe", file]
    return Job(*command, "--partition", partition)


def _end(job: Job) -> str:
    output = job.end()
    assert job.returncode == 0, output
    return output


def test_jobs_write_one_writers_bytes_in_any_order_and_whether_or_not_they_meet(
    recipe: Recipe, tmp_path: Path
) -> None:
    cache = tmp_path / "run" / "cache"
    file = _file(recipe, tmp_path / "recipe.yaml", output=tmp_path / "run")
    # both find no verbalizers: one trains them, the other waits
    reports = [_end(job) for job in [_job(file, "3/3"), _job(file, "2/3")]]
    assert all("shards; other partitions write the rest" in report for report in reports)
    assert any("incomplete: 4 of 6 shards" in report for report in reports)
    assert not (cache / "index.json").exists()
    shown = CliRunner().invoke(cli, ["inspect", str(cache)])
    assert "4 of 6, incomplete (67%)" in shown.stdout
    printed = json.loads(CliRunner().invoke(cli, ["inspect", str(cache), "--json"]).stdout)
    assert not printed["complete"]
    assert (printed["num_shards_present"], printed["num_shards"]) == (4, 6)
    assert "incomplete" not in _end(_job(file, "1/3"))
    assert _all_files(cache) == _all_files(recipe.cache_path)


def _again(recipe: Recipe, path: Path) -> Recipe:
    """The same dump into a new cache."""
    teacher = {"verbalizers": recipe.teacher_verbalizers_path, "taps": None}
    return recipe.model_copy(
        update={
            "cache": recipe.cache.model_copy(update={"path": path}),
            "teacher": recipe.teacher.model_copy(update=teacher),
        }
    )


def test_what_another_writer_leaves_unsealed_meanwhile_is_sealed_at_the_end(
    recipe: Recipe, tmp_path: Path
) -> None:
    last = "shards/00005.zarr.zip"

    def killed_before_its_seal(_: object) -> None:
        (tmp_path / last).parent.mkdir(exist_ok=True)
        shutil.copy(recipe.cache_path / last, tmp_path / last)

    dump_teacher(_again(recipe, tmp_path), killed_before_its_seal)
    assert _all_files(tmp_path) == _all_files(recipe.cache_path)


def test_a_cache_that_is_incomplete_at_the_end_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    first = tmp_path / "shards/00000.zarr.zip"

    def delete(progress: DumpProgress) -> None:
        if progress.num_samples == progress.total_samples:
            first.unlink()

    with pytest.raises(StageError, match=r"cache is incomplete.*found 1 missing, the first of"):
        dump_teacher(_again(recipe, tmp_path), delete)
    dump_teacher(_again(recipe, tmp_path), lambda _: None)
    assert _all_files(tmp_path) == _all_files(recipe.cache_path)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_partitions_are_disjoint_and_leave_nothing_out(count: int) -> None:
    shards = list(range(NUM_SHARDS))
    parts = [Partition(number, count).select(shards) for number in range(1, count + 1)]
    assert sorted(shard for part in parts for shard in part) == shards
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # what is missing by now does not move a shard to another share
    assert Partition(1, count).select(shards[1:]) == parts[0][1:]


@pytest.mark.parametrize(
    "text", ["0/0", "0/2", "3/2", "x", "1", "1/", "-1/2", "1/2/3", "1.0/2", ""]
)
def test_what_is_no_partition_is_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(RecipeError, match="not a partition"):
        Partition.parse(text)
    result = CliRunner().invoke(cli, ["dump-teacher", f"--partition={text}"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --partition: this is not a partition; expected I/N")
    assert "Traceback" not in result.output
