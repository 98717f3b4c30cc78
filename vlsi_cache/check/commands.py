"""What the commands of a recipe would refuse before their first step, by their own checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from vlsi_cache.check.failures import failures_of, joined
from vlsi_cache.check.report import CheckFailure
from vlsi_cache.check.subjects import Role, Subject
from vlsi_cache.errors import CacheError, VlsiCacheError
from vlsi_cache.matching import validate_reach
from vlsi_cache.recipe import Recipe, named_models
from vlsi_cache.recipe.outputs import validate_outputs
from vlsi_cache.store import is_begun, open_cache
from vlsi_cache.student.cached import validate_tail
from vlsi_cache.student.checks import training_checks
from vlsi_cache.teacher.checks import sampling_of, settings_checks
from vlsi_cache.teacher.identity import validate_cache_settings
from vlsi_cache.training.preflight import validate_output
from vlsi_cache.training.processes import resolve_device
from vlsi_cache.verbalizer import preview_taps

__all__ = ["find_settings_failures", "following", "is_to_come"]

logger = logging.getLogger(__name__)

Check = Callable[[], object]


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


def _checks(recipe: Recipe, subjects: Sequence[Subject]) -> Iterator[tuple[Role, Check]]:
    named = named_models(recipe)
    first = next(iter(named))  # what concerns no model by itself
    yield first, lambda: resolve_device(recipe.device)
    yield first, lambda: validate_output(recipe.output)
    yield first, lambda: validate_outputs(recipe)
    if "teacher" in named:
        yield from (("teacher", check) for check in settings_checks(recipe))
    if subjects and subjects[0].role == "teacher":
        config, processor = subjects[0].config, subjects[0].processor
        yield "teacher", lambda: validate_cache_settings(recipe, config, processor)
    if "student" in named:
        yield from (("student", check) for check in _training(recipe))
    if len(subjects) == 2:
        yield "student", lambda: _validate_dump_to_come(recipe, subjects)


def is_to_come(recipe: Recipe) -> bool:
    """Report whether a dump is to write the cache before the training reads it.

    Without a teacher this holds where no cache is named: data may be checked before there is one.
    """
    if "teacher" in named_models(recipe):
        return not _is_whole(recipe)
    is_named = "path" in recipe.cache.model_fields_set or "output" in recipe.model_fields_set
    return recipe.reads_cache and not is_named and not _is_begun(recipe)


def following(recipe: Recipe) -> Recipe:
    """Return the recipe of a training whose cache is still to come, or to become whole."""
    return recipe.model_copy(
        update={
            "interaction": recipe.interaction.model_copy(update={"follow": True}),
            "data": recipe.data.model_copy(update={"select": None}),
        }
    )


def _training(recipe: Recipe) -> list[Check]:
    """Return the checks of a training, as far as they hold before the dump."""
    if not is_to_come(recipe):
        return training_checks(recipe)
    if "teacher" not in named_models(recipe):
        logger.warning(
            "there is no cache yet in %s. train-student needs one, this check does not",
            recipe.cache_path,
        )
    return training_checks(following(recipe))


def _is_begun(recipe: Recipe) -> bool:
    try:
        return is_begun(recipe.cache_path)
    except CacheError:
        return True  # what is wrong there is found by the command's own check


def _is_whole(recipe: Recipe) -> bool:
    """Report whether a whole cache is there. One that cannot be read counts as such."""
    try:
        return is_begun(recipe.cache_path) and open_cache(recipe.cache_path).is_complete
    except CacheError:
        return True


def _validate_dump_to_come(recipe: Recipe, subjects: Sequence[Subject]) -> None:
    """Refuse a record that the student could not learn from, before there is one."""
    settings = recipe.interaction
    if "interaction" not in recipe.stages or _is_begun(recipe):
        return
    validate_tail(sampling_of(recipe), settings, recipe.cache_path)
    if not settings.matches_taps:
        return
    counts = []
    for subject in subjects:
        try:
            taps = preview_taps(recipe, subject.role, subject.preview)
        except VlsiCacheError:
            return  # its own command says what is wrong
        if taps is None:
            return
        counts.append(len(taps))
    validate_reach(counts[1], counts[0], settings.matching)
