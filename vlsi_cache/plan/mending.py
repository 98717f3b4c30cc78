"""``find_mends``: the settings that make a stage fit, each tried by a rehearsal."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel

from vlsi_cache.plan.reading import SampleLengths
from vlsi_cache.plan.rehearsing.rehearsal import Rehearsed, Setting, rehearse
from vlsi_cache.plan.rehearsing.sketch import Sketch
from vlsi_cache.plan.rehearsing.steps import PlannedStageName
from vlsi_cache.plan.report import Mend
from vlsi_cache.plan.spreading import (
    COUNTS,
    Counts,
    as_recipe_spreads,
    host_bytes,
    is_open,
    spreads,
)
from vlsi_cache.recipe import Recipe

logger = logging.getLogger(__name__)

__all__ = [
    "NAMED_KEYS",
    "batch_path",
    "bound_of",
    "changed_recipe",
    "find_mends",
    "has_key",
    "rehearse_stage",
]

_SECTIONS: Final = {
    "teacher-verbalization": "teacher.verbalization",
    "teacher-pass": "cache",
    "student-verbalization": "student.verbalization",
    "interaction": "interaction",
    "finetuning": "finetuning",
}
NAMED_KEYS: Final = (
    *(f"{section}.batch_size" for section in _SECTIONS.values()),
    "interaction.gradient_accumulation",
    "interaction.gradient_checkpointing",
    "interaction.lora",
    "finetuning.gradient_checkpointing",
    "teacher.dtype",
    "student.dtype",
)
"""Recipe keys that a mend may name."""

_MOST_OF_BOTH: Final = 3
"""Mends that change a key and spread the stage. The later ones need fewer devices, and each costs
another rehearsal."""

_ONE_MACHINE: Final = 8
"""Devices that one machine has. More are named only where these do not suffice."""

Change = dict[str, Any]


def find_mends(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    now: Rehearsed,
    limit: float,
) -> list[Mend]:
    """Find changes with which a stage fits. Without one, the change that comes nearest.

    Args:
        setting: the plan as it is.
        stage: a stage that does not fit.
        sketch: its model.
        lengths: the data's lengths.
        now: the stage as it is.
        limit: bytes that a stage may take.
    """
    tried = []
    for change in _changes(setting.recipe, stage, fits_one=now.static <= limit):
        text, found = _try(setting, stage, sketch, lengths, change)
        tried.append(Mend(setting=text, device_bytes=found.peak, fits=found.peak <= limit))
        if tried[-1].fits:
            break
    tried += [mend for _, mend in _spread(setting, stage, sketch, lengths, now, limit)]
    fitting = [mend for mend in tried if mend.fits]
    if not fitting:
        both = _find_both(setting, stage, sketch, lengths, limit)
        named = list(islice(both, _MOST_OF_BOTH + 1))
        few = [mend for count, mend in named if count <= _ONE_MACHINE]
        fitting = (few or [mend for _, mend in named])[:_MOST_OF_BOTH]
    return fitting or sorted(tried, key=lambda mend: mend.device_bytes)[:1]


def _find_both(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    limit: float,
) -> Iterator[tuple[int, Mend]]:
    """Yield changes with which a stage fits once it is spread, where neither alone suffices.

    A later change costs more, so it is named for fewer devices alone.
    """
    for change in _changes(setting.recipe, stage, fits_one=True):
        if setting.most_devices < COUNTS[0]:
            return
        changed = replace(setting, recipe=changed_recipe(setting.recipe, change))
        text, found = _try(setting, stage, sketch, lengths, change)
        if found.working > limit:  # which no number of devices divides
            continue
        for count, way in [*_spread(changed, stage, sketch, lengths, found, limit)]:
            if way.fits:
                setting = replace(setting, most_devices=min(setting.most_devices, count - 1))
                yield count, way.model_copy(update={"setting": f"{text}, and {way.setting}"})


def _spread(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    found: Rehearsed,
    limit: float,
) -> Iterator[tuple[int, Mend]]:
    """Yield the ways to spread a stage, each over the fewest devices that suffice: their number."""
    counts = _more_devices(setting)
    if not stage.startswith("teacher"):
        yield from _sharded(setting, stage, sketch, lengths, found, limit)
        return
    parallel = Counts(counts, sketch.dividing_heads(counts))
    taps = setting.recipe.teacher.verbalization.taps_at_once or setting.num_teacher_taps
    opens = partial(is_open, setting.recipe)
    for count, text, size in spreads(stage, found, limit, taps, parallel, opens):
        yield count, Mend(setting=text, device_bytes=size, fits=size <= limit)


def _more_devices(setting: Setting) -> tuple[int, ...]:
    """Return the numbers of devices that a mend may name."""
    if setting.shares_host:  # more processes would have less memory each
        return ()
    most = setting.most_devices
    return tuple(count for count in COUNTS if setting.num_processes <= count <= most)


def _sharded(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    found: Rehearsed,
    limit: float,
) -> Iterator[tuple[int, Mend]]:
    """Yield the fewest devices over which FSDP shards a stage so that it fits, else the most.

    Each number is rehearsed, because what is gathered does not shrink with it.
    """
    mends: dict[int, Mend] = {}

    def fits(count: int) -> bool:
        logger.info("trying FSDP over %d devices", count)
        sharded = replace(setting, num_processes=count, fsdp=True)
        each = rehearse_stage(sharded, stage, sketch, lengths, counts=False)
        mends[count] = Mend(
            setting=f"accelerate launch with FSDP, over {count} devices",
            device_bytes=each.peak,
            host_bytes=host_bytes(each, sharded, stage),
            fits=each.peak <= limit,
        )
        return mends[count].fits

    def may_fit(count: int) -> bool:
        """Report whether slices alone, with what is worked on, leave room."""
        now = setting.num_processes if setting.fsdp else 1
        return found.static * now / count + found.working <= limit

    counts = _more_devices(setting)
    more = [count for count in counts if not setting.fsdp or count > setting.num_processes]
    tried = [count for count in more if may_fit(count)] or more[-1:]
    if tried:
        count = tried[min(bisect_left(tried, True, key=fits), len(tried) - 1)]
        yield count, mends[count]


def _try(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    change: Change,
) -> tuple[str, Rehearsed]:
    """Return a change as a text, and the stage with it."""
    text = ", ".join(f"{key}: {_spelt(value)}" for key, value in change.items())
    logger.info("trying %s", text)
    changed = replace(setting, recipe=changed_recipe(setting.recipe, change))
    return text, rehearse_stage(changed, stage, sketch, lengths, counts=False)


def rehearse_stage(
    setting: Setting,
    stage: PlannedStageName,
    sketch: Sketch,
    lengths: SampleLengths,
    *,
    counts: bool = True,
) -> Rehearsed:
    """Rehearse a stage with the batches that its recipe and the data give.

    Args:
        setting: recipe, device and processes.
        stage: name of the stage.
        sketch: its model.
        lengths: the data's lengths.
        counts: count operations, too.
    """
    size, bound = _get(setting.recipe, batch_path(stage)), bound_of(setting.recipe, stage)
    usual = lengths.usual(lengths.bounded(size, bound)) if counts else None
    tried: list[Rehearsed] = []
    for heavy in lengths.heavy_passes(size, bound):
        pixels = sketch.pixels_per_patch
        patches = lengths.patches(heavy.num_samples, pixels) if pixels else 0
        tried.append(rehearse(setting, stage, sketch, heavy, None if tried else usual, patches))
    found = max(tried, key=lambda one: one.peak)
    found = replace(found, operations=tried[0].operations)
    section = setting.recipe.teacher if sketch.role == "teacher" else setting.recipe.student
    num_taps = len(section.taps or ())
    return as_recipe_spreads(found, setting.recipe, stage, setting.num_processes, num_taps)


def bound_of(recipe: Recipe, stage: PlannedStageName) -> int | None:
    """Return the most tokens of a stage's forward pass; None for no bound."""
    bound: int | None = _get(recipe, f"{_SECTIONS[stage]}.batch_tokens")
    return bound


def batch_path(stage: PlannedStageName) -> str:
    """Return the recipe key of a stage's batch size."""
    return f"{_SECTIONS[stage]}.batch_size"


def changed_recipe(recipe: Recipe, change: Change) -> Recipe:
    """Return the recipe with other values at dotted keys."""
    for path, value in change.items():
        recipe = _set(recipe, path.split("."), value)
    return recipe


def has_key(path: str) -> bool:
    """Report whether the recipe has a key."""
    model: Any = Recipe
    for name in path.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
        if name not in model.model_fields:
            return False
        model = model.model_fields[name].annotation
    return True


def _changes(recipe: Recipe, stage: PlannedStageName, *, fits_one: bool) -> Iterator[Change]:
    """Yield what may be changed, from what costs nothing to what costs time or accuracy.

    Args:
        recipe: the recipe.
        stage: the stage that does not fit.
        fits_one: whether it could fit with less to work on. Otherwise its weights and their states
            alone are too much, and smaller batches are not tried.
    """
    role = "teacher" if stage.startswith("teacher") else "student"
    lighter: Change = {}
    if stage == "interaction" and recipe.interaction.lora is None:
        lighter = {"interaction.lora": Recipe().interaction.lora}
        yield lighter
    if _get(recipe, f"{role}.dtype") == "float32":
        lighter = lighter | {f"{role}.dtype": "bfloat16"}
        yield lighter
    if not fits_one and not lighter:
        return
    yield from ({**lighter, **smaller} for smaller in _smaller(recipe, stage))
    checkpointing = f"{stage}.gradient_checkpointing"
    if stage in ("interaction", "finetuning") and not _get(recipe, checkpointing):
        lighter = lighter | {checkpointing: True}
        yield lighter
        yield from ({**lighter, **smaller} for smaller in _smaller(recipe, stage))


def _smaller(recipe: Recipe, stage: PlannedStageName) -> Iterator[Change]:
    """Yield smaller batches, with as many more to an optimizer step."""
    path = batch_path(stage)
    size = _get(recipe, path)
    smaller = size // 2
    while smaller:
        change: Change = {path: smaller}
        if stage != "teacher-pass":
            accumulation = path.replace("batch_size", "gradient_accumulation")
            change[accumulation] = _get(recipe, accumulation) * -(-size // smaller)
        yield change
        smaller //= 2


def _get(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _set(section: Any, names: list[str], value: Any) -> Any:
    first, *rest = names
    inner = _set(getattr(section, first), rest, value) if rest else value
    return section.model_copy(update={first: inner})


def _spelt(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{rank: 64}"
    return str(value).lower() if isinstance(value, bool) else str(value)
