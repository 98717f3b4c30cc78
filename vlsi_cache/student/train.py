"""``train-student``: verbalization, interaction and fine-tuning, without the teacher."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from vlsi_cache.data import report_changed_samples
from vlsi_cache.limits import plain_limit_errors
from vlsi_cache.models import Backbone
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import Cache, open_cache
from vlsi_cache.student.cached import open_matching_cache, recorded_failures
from vlsi_cache.student.checks import training_checks, validate_student
from vlsi_cache.student.choosing import HeldOutSamples, find_held_out, with_selection
from vlsi_cache.student.finetuning import finetune
from vlsi_cache.student.interaction import interact
from vlsi_cache.training import (
    Run,
    advising,
    begin_run,
    find_left_out,
    load_student,
    without_other_bars,
)
from vlsi_cache.training.sharding import hidden_from_libraries, is_sharded
from vlsi_cache.verbalizer import build_verbalizers, find_verbalizers, load_verbalizers

__all__ = ["train_student"]


@without_other_bars()
@plain_limit_errors()
def train_student(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Run the recipe's stages on the student. Each resumes, and is skipped when it is done.

    Args:
        recipe: description of the run; ``student``, ``data``, ``cache`` and the stages' sections
            are read.
        callbacks: for the ``transformers`` Trainer, in interaction and fine-tuning; their ``model``
            has the student's parts as ``decoder``.

    Returns:
        Folder of the last stage's student: an ordinary checkpoint with its processor. It is the
        folder of the student's verbalizers if that stage alone was asked for.

    Raises:
        VlsiCacheError: whatever the user can mend; see the exception tree.
    """
    run = begin_run(recipe, "student", callbacks, training_checks(recipe))
    with hidden_from_libraries(), advising():
        result = _run_stages(run)
    report_changed_samples()
    run.remind()
    return result


def _run_stages(run: Run) -> Path:
    recipe = run.recipe
    stages = set(recipe.stages)
    result = None
    cache = open_matching_cache(run) if recipe.reads_cache else None
    run = _leave_out(run, cache)
    held_out = find_held_out(run, cache)
    if held_out is not None:
        run = run.holding_out(held_out.left_out)
    run = with_selection(run)
    if cache is not None and "interaction" in stages:
        result = _distil(run, cache, held_out)
    elif "verbalization" in stages:
        result = _verbalize(run)
    if "finetuning" in stages:
        gc.collect()  # the adapted student's hooks and modules refer to one another
        if cache is not None and recipe.interaction.follow:  # its failures are all known only now
            cache = open_cache(recipe.cache_path)
            run = _leave_out(run, cache).holding_out(run.left_out.held_out)
        source = result if "interaction" in stages else None
        record = cache if recipe.finetuning.record_weight else None
        result = finetune(run, source, record, held_out, learned_from=cache)
    assert result is not None  # a recipe names at least one stage
    return result


def _leave_out(run: Run, cache: Cache | None) -> Run:
    recipe = run.recipe
    sections = recipe.student.verbalization, recipe.interaction, recipe.finetuning
    workers = max(section.workers for section in sections)
    found = find_left_out(run, recipe.student, recorded_failures(run, cache), workers)
    return replace(run, left_out=found)


def _distil(run: Run, cache: Cache, held_out: HeldOutSamples | None) -> Path:
    """Run verbalization where taps are compared, then interaction."""
    recipe = run.recipe
    student = _load_student(run)
    validate_student(run, student, cache)
    if recipe.interaction.inner == "none":
        bank = build_verbalizers(student.decoder, (), recipe.student.verbalizer, seed=recipe.seed)
    else:
        folder = recipe.student_verbalizers_path
        folder = find_verbalizers(run, recipe.student, student, folder)
        if is_sharded(student.decoder.model):  # and cannot get adapters, or verbalizers that copy
            del student
            gc.collect()
            student = _load_student(run)
        bank = load_verbalizers(folder, student.decoder, fingerprint=student.fingerprint)
    return interact(run, student, bank, cache, held_out)


def _verbalize(run: Run) -> Path:
    """Run verbalization alone."""
    folder = run.recipe.student_verbalizers_path
    find_verbalizers(run, run.recipe.student, _load_student(run), folder)
    return folder


def _load_student(run: Run) -> Backbone:
    """Load the untouched student in the dtype that interaction needs."""
    recipe = run.recipe
    trains = recipe.interaction.lora is None
    return load_student(run, recipe.student, trains=trains)
