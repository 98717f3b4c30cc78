"""``dump-teacher``: train or load the verbalizers, then fill the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vlsi_cache.data import report_changed_samples, validate_template
from vlsi_cache.errors import StageError
from vlsi_cache.limits import plain_limit_errors
from vlsi_cache.models import Backbone, load_backbone
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Recipe
from vlsi_cache.recipe.partition import Partition
from vlsi_cache.store import CacheWriter, open_cache, validate_recorded
from vlsi_cache.teacher.checks import dump_checks
from vlsi_cache.teacher.filling import DumpProgress, fill_cache
from vlsi_cache.teacher.identity import begin_dump, validate_cache_folder, validate_cache_of
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run, advising, begin_run, find_left_out, without_other_bars
from vlsi_cache.training.folders.writing import plain_write_errors
from vlsi_cache.training.processes import on_main_process, wait_for_everyone
from vlsi_cache.verbalizer import obtain_verbalizers

__all__ = ["dump_teacher"]


@without_other_bars()
@plain_limit_errors()
def dump_teacher(
    recipe: Recipe,
    on_progress: Callable[[DumpProgress], None] | None = None,
    partition: Partition | None = None,
) -> str | Path:
    """Write the teacher's record of the recipe's data. A second run goes on at the next shard.

    Under ``accelerate launch`` the processes divide the missing shards among them.

    Args:
        recipe: description of the run; ``teacher``, ``data`` and ``cache`` are read.
        on_progress: called after each batch.
        partition: this job's shards, where other jobs write the others.

    Returns:
        Folder or URL of the cache, which is complete unless there is a partition.

    Raises:
        VlsiCacheError: whatever the user can mend; see the exception tree.
    """
    run = begin_run(recipe, "teacher", checks=dump_checks(recipe))
    validate_cache_folder(run)
    validate_template(recipe.teacher, run.data)
    teacher = load_backbone(recipe.teacher, "teacher", run.device)
    with advising():
        reads, writer = _begin(run, teacher)
        own = partition or Partition()
        fill_cache(run, reads, writer, own, on_progress or (lambda _: None))
    report_changed_samples()
    run.remind()
    wait_for_everyone()
    with phase("sealing the cache"):
        on_main_process(writer.finish)
    _validate_end(writer, recipe.cache_path, own)
    return recipe.cache_path


def _begin(run: Run, teacher: Backbone) -> tuple[TeacherPass, CacheWriter]:
    """Obtain the verbalizers, and begin the cache under their fingerprint."""
    recipe = run.recipe
    with ExitStack() as stack:
        with plain_write_errors():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        with plain_write_errors(Path(folder)):
            # saved before its use: a tokenizer remembers how it padded, and would save that too
            teacher.processor.save_pretrained(folder)
        validate_cache_of(run, teacher, Path(folder))
        if recipe.teacher.verbalizers is None:
            workers = recipe.teacher.verbalization.workers
            run = replace(run, left_out=find_left_out(run, recipe.teacher, {}, workers))
        bank = obtain_verbalizers(run, recipe.teacher, teacher, recipe.teacher_verbalizers_path)
        return begin_dump(run, teacher, bank, Path(folder))


def _validate_end(writer: CacheWriter, path: str | Path, partition: Partition) -> None:
    """Refuse a cache that lacks a partition's shards, or holds nothing but failures."""
    missing = writer.missing_shards()
    if not missing:
        validate_recorded(open_cache(path))
    elif lost := partition.select(missing):
        raise StageError(
            "cache is incomplete, although every process wrote its shards",
            where=path,
            expected=f"{len(partition.select(range(writer.manifest.num_shards))):,} shards",
            found=f"{len(lost):,} missing, the first of them {lost[0]}",
            mend="Make sure that nobody deletes shards, and run again; it goes on from there",
        )
