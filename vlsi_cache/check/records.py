"""What a cache that is there, and the choice of samples, say against the data of a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from vlsi_cache.check.commands import following, is_to_come
from vlsi_cache.check.failures import failures_of, joined
from vlsi_cache.check.report import CheckFailure
from vlsi_cache.check.subjects import Role, Subject
from vlsi_cache.data import ConversationDataset
from vlsi_cache.errors import DataError, VlsiCacheError
from vlsi_cache.recipe import Recipe, named_models
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cached import CachedBatches, validate_data
from vlsi_cache.student.choosing import find_held_out, with_selection
from vlsi_cache.teacher.identity import validate_cache_folder
from vlsi_cache.training import Run

__all__ = ["find_record_failures"]

_COMPARED: Final = 16
"""First samples that are compared with what the cache holds of them."""


def find_record_failures(
    recipe: Recipe, subjects: Sequence[Subject], data: ConversationDataset
) -> list[CheckFailure]:
    """Find other data than a cache was made of, other tokens, and choices that leave no sample.

    Args:
        recipe: description of the run.
        subjects: the models whose processors could be loaded.
        data: conversations that can be read, or that a run leaves out.
    """
    found: list[CheckFailure] = []
    for role, check in _checks(recipe, subjects, data):
        try:
            check()
        except VlsiCacheError as error:
            found += failures_of(error, sample=None, models=[role])
    return joined(found)


def _checks(
    recipe: Recipe, subjects: Sequence[Subject], data: ConversationDataset
) -> Iterator[tuple[Role, Callable[[], object]]]:
    named = named_models(recipe)
    if "teacher" in named:
        yield "teacher", lambda: _validate_dumped(recipe, data)
    if subjects and subjects[-1].role == "student" and recipe.reads_cache:
        student = subjects[-1]
        yield "student", lambda: _validate_record(recipe, student, data)
    if "student" in named:
        yield "student", lambda: _validate_choice(recipe, data)


def _validate_dumped(recipe: Recipe, data: ConversationDataset) -> None:
    """Refuse a dump into the cache of other data."""
    if is_begun(recipe.cache_path):
        validate_cache_folder(_run(recipe, data, "teacher"))


def _validate_record(recipe: Recipe, subject: Subject, data: ConversationDataset) -> None:
    """Refuse a cache of other data, or one of whose first samples the student reads otherwise."""
    if not is_begun(recipe.cache_path):
        return
    cache = open_cache(recipe.cache_path)
    validate_data(cache, _run(recipe, data, "student"))
    if cache.manifest.tokenizer.hash == subject.vocabulary:
        _validate_tokens(cache, recipe, subject, data)


def _validate_tokens(
    cache: Cache, recipe: Recipe, subject: Subject, data: ConversationDataset
) -> None:
    batches = CachedBatches(subject.encoder, cache, recipe.interaction.tail)
    for index in range(min(len(cache), _COMPARED)):
        if index in cache and cache[index].failure is None:
            try:
                batches([(index, data[index])])
            except DataError:
                continue  # the row's own failure, which is listed


def _validate_choice(recipe: Recipe, data: ConversationDataset) -> None:
    """Refuse held-out data that cannot be read, and choices that leave nothing to learn from."""
    if not recipe.held_out.is_given and recipe.data.select is None:
        return
    is_read = recipe.reads_cache and not is_to_come(recipe)
    cache = open_cache(recipe.cache_path) if is_read else None
    with tempfile.TemporaryDirectory() as folder:  # what is found is written to the output folder
        run = _run(_apart(recipe, Path(folder)), data, "student")
        held_out = find_held_out(run, cache)
        if held_out is not None:
            run = run.holding_out(held_out.left_out)
        with_selection(run)


def _apart(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with another output folder, and without what needs a cache to come."""
    place = recipe.cache.model_copy(update={"path": recipe.cache_path})
    if is_to_come(recipe):
        recipe = following(recipe)
        if recipe.held_out.part is not None:  # its record is to come, too
            settings = recipe.held_out.model_copy(update={"metric": "loss"})
            recipe = recipe.model_copy(update={"held_out": settings})
    return recipe.model_copy(update={"output": folder, "cache": place})


def _run(recipe: Recipe, data: ConversationDataset, role: Role) -> Run:
    return Run(recipe, torch.device("cpu"), data, role=role)
