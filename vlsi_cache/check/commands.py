"""What the commands of a recipe would refuse before their first step, by their own checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import torch

from vlsi_cache.check.failures import failures_of, joined
from vlsi_cache.check.report import CheckFailure
from vlsi_cache.check.subjects import Subject
from vlsi_cache.data import ConversationDataset
from vlsi_cache.errors import CacheError, DataError, VlsiCacheError
from vlsi_cache.matching import validate_reach
from vlsi_cache.models import preview_model
from vlsi_cache.recipe import Recipe, named_models
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cached import CachedBatches, validate_data, validate_tail
from vlsi_cache.student.checks import training_checks
from vlsi_cache.teacher.checks import sampling_of, settings_checks
from vlsi_cache.teacher.identity import validate_cache_folder, validate_cache_template
from vlsi_cache.training import Run
from vlsi_cache.training.preflight import validate_output
from vlsi_cache.training.processes import resolve_device
from vlsi_cache.verbalizer import preview_taps

__all__ = ["find_record_failures", "find_settings_failures"]

logger = logging.getLogger(__name__)

Role = Literal["teacher", "student"]
Check = Callable[[], object]

_COMPARED: Final = 16
"""First samples that are compared with what the cache holds of them."""


def find_settings_failures(recipe: Recipe, subjects: Sequence[Subject]) -> list[CheckFailure]:
    """Find what the commands of the named models refuse before they read the data.

    Args:
        recipe: description of the run.
        subjects: the models whose processors could be loaded.

    Returns:
        Each problem once, with the roles of the models whose commands have it.
    """
    found: list[CheckFailure] = []
    for role, check in _checks(recipe, subjects):
        try:
            check()
        except VlsiCacheError as error:
            found += failures_of(error, sample=None, models=[role])
    return joined(found)


def find_record_failures(
    recipe: Recipe, subjects: Sequence[Subject], data: ConversationDataset
) -> list[CheckFailure]:
    """Find what speaks against a cache that is there: other data, or other response tokens.

    Args:
        recipe: description of the run.
        subjects: the models whose processors could be loaded.
        data: conversations that can be read, or that a run leaves out.
    """
    found: list[CheckFailure] = []
    for subject in subjects:
        role = subject.checked.role
        try:
            if not is_begun(recipe.cache_path):
                continue
            if role == "teacher":
                validate_cache_folder(_run(recipe, data, "teacher"))
            elif recipe.reads_cache:
                _validate_record(recipe, subject, data)
        except VlsiCacheError as error:
            found += failures_of(error, sample=None, models=[role])
    return joined(found)


def _checks(recipe: Recipe, subjects: Sequence[Subject]) -> Iterator[tuple[Role, Check]]:
    named = named_models(recipe)
    for role in named:
        yield role, lambda: resolve_device(recipe.device)
        yield role, lambda: validate_output(recipe.output)
    if "teacher" in named:
        yield from (("teacher", check) for check in settings_checks(recipe))
    if subjects and subjects[0].checked.role == "teacher":
        processor = subjects[0].processor
        yield "teacher", lambda: validate_cache_template(recipe.cache_path, processor)
    if "student" in named:
        read = _as_it_will_be(recipe) if "teacher" in named else _without_cache(recipe)
        yield from (("student", check) for check in training_checks(read))
    if len(named) == 2:
        yield "student", lambda: _validate_dump_to_come(recipe)


def _as_it_will_be(recipe: Recipe) -> Recipe:
    """Return the recipe of a training that begins after the dump.

    A cache that is not whole yet is read as one that grows, since its dump comes first.
    """
    return recipe if _is_whole(recipe) else _following(recipe)


def _without_cache(recipe: Recipe) -> Recipe:
    """Return the recipe of a training alone, whose cache may come from another recipe."""
    is_named = "path" in recipe.cache.model_fields_set or "output" in recipe.model_fields_set
    if is_named or not recipe.reads_cache or _is_begun(recipe):
        return recipe
    logger.warning(
        "there is no cache yet in %s. train-student needs one, this check does not",
        recipe.cache_path,
    )
    return _following(recipe)


def _following(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={
            "interaction": recipe.interaction.model_copy(update={"follow": True}),
            "data": recipe.data.model_copy(update={"select": None}),
        }
    )


def _is_begun(recipe: Recipe) -> bool:
    try:
        return is_begun(recipe.cache_path)
    except CacheError:
        return True  # what is wrong there is found by the command's own check


def _is_whole(recipe: Recipe) -> bool:
    try:
        return is_begun(recipe.cache_path) and open_cache(recipe.cache_path).is_complete
    except CacheError:
        return True


def _validate_dump_to_come(recipe: Recipe) -> None:
    """Refuse a record that the student could not learn from, before there is one."""
    settings = recipe.interaction
    if "interaction" not in recipe.stages or _is_begun(recipe):
        return
    validate_tail(sampling_of(recipe), settings, recipe.cache_path)
    if not settings.matches_taps:
        return
    counts = []
    for role, section in named_models(recipe).items():
        try:
            taps = preview_taps(recipe, role, preview_model(section, role))
        except VlsiCacheError:
            return  # its own command says what is wrong
        if taps is None:
            return
        counts.append(len(taps))
    validate_reach(counts[1], counts[0], settings.matching)


def _validate_record(recipe: Recipe, subject: Subject, data: ConversationDataset) -> None:
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


def _run(recipe: Recipe, data: ConversationDataset, role: Role) -> Run:
    return Run(recipe, torch.device("cpu"), data, role=role)
