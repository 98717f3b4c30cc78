"""Which samples are held out: a part of the data by its content, or other data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from vlsi_cache.data import ConversationDataset, load_data
from vlsi_cache.errors import CacheError, RecipeError
from vlsi_cache.files import read_file, write_whole
from vlsi_cache.phases import tracked
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cached import open_record
from vlsi_cache.student.choosing.held_out import HeldOutSamples
from vlsi_cache.training import LeftOut, Run, find_left_out, prepare_data
from vlsi_cache.training.processes import (
    found_by_main_process,
    from_main_process,
    gathered_numbers,
    on_main_process,
)

__all__ = ["HeldOutFound", "find_held_out"]

logger = logging.getLogger(__name__)

_FILE: Final = "held-out.json"
_SPAN: Final = 1 << 64


class HeldOutFound(BaseModel):
    """Which samples of the data are held out, so that a run need not look again."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    settings: dict[str, Any]
    """Data, and what is held out of it."""
    samples: list[int]
    """Indices of the samples that no stage of the student learns from, ascending."""


def find_held_out(run: Run, cache: Cache | None) -> HeldOutSamples | None:
    """Find the samples that the recipe holds out, and log how many there are.

    Args:
        run: what all stages share, with the samples that cannot be read.
        cache: the cache that the stages read, if they read one.

    Raises:
        RecipeError: nothing is held out, nothing remains to learn from, or a record that
            ``metric: divergence`` compares is not whole.
        DataError: the held-out data cannot be read.
        CacheError: its record cannot be opened, or is of other data.
    """
    settings = run.recipe.held_out
    if not settings.is_given:
        return None
    found = _part(run, cache) if settings.part is not None else _other_data(run, cache)
    if len({*found.left_out, *run.left_out.indices}) == len(run.data):
        raise RecipeError(
            f"all {len(run.data):,} samples are held out, and none remains to learn from",
            where="held_out",
            mend="Hold out less, or other data than the student learns from",
        )
    # each process's own view of a record may differ, and one may fail to look
    on_main_process(lambda: _validate_record(found))
    on_main_process(lambda: _report(found, run))
    return found


def _part(run: Run, cache: Cache | None) -> HeldOutSamples:
    settings, part = run.recipe.held_out, run.recipe.held_out.part
    assert part is not None

    def find() -> list[int]:
        return [index for index, key in enumerate(_keys(run.data, cache)) if _share(key) < part]

    samples = _remembered(run, {"part": part}, find)
    readable = sorted({*samples} - {*run.left_out.indices})
    if not readable:
        raise RecipeError(
            f"none of the {len(run.data):,} samples is in this part of the data",
            where="held_out.part",
            found=part,
            mend="Raise it, or give held-out data by held_out.path",
        )
    record = cache if cache is not None else _own_record(run)
    measured = _measured(run.data, record, readable, settings.limit)
    return HeldOutSamples(
        settings, run.data, run.fingerprint(), measured, record, frozenset(samples)
    )


def _share(key: str) -> float:
    """Return where a sample lies between 0 and 1: its content alone decides."""
    return int(hashlib.sha256(f"held out {key}".encode()).hexdigest()[:16], 16) / _SPAN


def _measured(
    data: ConversationDataset, cache: Cache | None, readable: list[int], limit: int | None
) -> list[int]:
    """Return the samples that are measured, ascending: their content decides, not their place."""
    if limit is None or limit >= len(readable):
        return readable

    def choose() -> list[int]:
        if cache is not None and cache.is_complete:
            keys = list(cache.keys())
            shares = {index: _share(keys[index]) for index in readable}
        else:
            shares = {index: _share(data.identify(index)[1]) for index in readable}
        return sorted(sorted(readable, key=lambda index: (shares[index], index))[:limit])

    return found_by_main_process(choose)


def _own_record(run: Run) -> Cache | None:
    """Return the recipe's cache if it is of the run's data; no stage needs it."""
    try:
        path = run.recipe.cache_path
        cache = open_cache(path) if is_begun(path) else None
    except CacheError as error:
        logger.warning("the held-out samples have no record that can be read: %s", error)
        cache = None
    if not all(gathered_numbers(int(cache is not None))):  # all processes read it, or none
        return None
    if cache is None or cache.manifest.dataset.fingerprint != run.fingerprint():
        return None
    return cache


def _other_data(run: Run, cache: Cache | None) -> HeldOutSamples:
    recipe, settings = run.recipe, run.recipe.held_out
    data = load_data(settings.section_of(recipe.data))
    prepare_data(data, skip=recipe.skips_failures)
    other = replace(run, data=data, left_out=LeftOut(), lengths=[])
    record = None if settings.cache is None else open_record(settings.cache, other)
    unreadable = find_left_out(other, recipe.student, {}, recipe.interaction.workers, "held-out")

    def find() -> list[int]:
        known = {*_keys(data, record)}
        return [index for index, key in enumerate(_keys(run.data, cache)) if key in known]

    fingerprint = other.fingerprint()
    left_out = _remembered(run, {"held_out": fingerprint}, find)
    readable = [index for index in range(len(data)) if index not in unreadable.unreadable]
    if not readable:
        raise RecipeError(
            f"none of the {len(data):,} held-out samples can be read",
            where="held_out",
            found=data.source,
            mend="Give other held-out data",
        )
    measured = _measured(data, record, readable, settings.limit)
    return HeldOutSamples(settings, data, fingerprint, measured, record, frozenset(left_out))


def _keys(data: ConversationDataset, cache: Cache | None) -> Iterable[str]:
    """Return the key of every sample: as the record of the same data has it, or by reading all."""
    if cache is not None and cache.is_complete:
        return cache.keys()
    numbers = tracked(range(len(data)), "reading the samples", total=len(data), unit="rows")
    return (data.identify(index)[1] for index in numbers)


def _remembered(run: Run, what: Mapping[str, Any], find: Callable[[], list[int]]) -> Sequence[int]:
    """Return the held-out indices of the run's data, which the main process finds once."""
    path = run.recipe.output / _FILE
    settings = {"data": run.fingerprint(), **what}
    known = [from_main_process(_read(path, settings))]

    def look() -> None:
        found = HeldOutFound(settings=settings, samples=find())
        known[0] = found.samples
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, found.model_dump_json(indent=2) + "\n")

    if known[0] is None:
        on_main_process(look)
    samples = from_main_process(known[0])
    assert samples is not None  # or the main process has raised, and so have all
    return samples


def _read(path: Path, settings: Mapping[str, Any]) -> list[int] | None:
    """Return what was found before, if it holds; anything else is looked for again."""
    try:
        found = HeldOutFound.model_validate_json(read_file(path))
    except (OSError, ValueError):
        return None
    same = json.dumps(found.settings, sort_keys=True) == json.dumps(settings, sort_keys=True)
    return found.samples if same else None


def _validate_record(found: HeldOutSamples) -> None:
    """Refuse a record by which measurements would compare other samples each time, or none.

    Raises:
        RecipeError: the record is not there, is incomplete, or has none of the measured samples.
    """
    if found.settings.metric != "divergence":
        return
    cache = found.cache
    if cache is None:
        raise _not_comparable("there is no record of the held-out samples")
    if not cache.is_complete:
        raise _not_comparable("their record is incomplete and may still grow", cache.path)
    if not found.divided()[0]:
        raise _not_comparable("none of the measured samples has a record", cache.path)


def _not_comparable(problem: str, found: object = None) -> RecipeError:
    return RecipeError(
        f"is divergence, and {problem}",
        where="held_out.metric",
        found=found,
        mend="Finish that record, give another by --cache or held_out.cache, or set "
        "held_out.metric: loss",
    )


def _report(found: HeldOutSamples, run: Run) -> None:
    settings = found.settings
    recorded, others = found.divided()
    if settings.is_other_data:
        logger.info("held out: %d samples of %s", len(found.data), found.data.source)
        if found.left_out:
            logger.warning(
                "%d of the %d samples to learn from are held out too, and are left out",
                len(found.left_out),
                len(run.data),
            )
    else:
        logger.info("held out: %d of %d samples", len(found.left_out), len(run.data))
    logger.info(
        "%d of them are measured every %s, %d with a record of the teacher",
        len(recorded) + len(others),
        "step" if settings.every == 1 else f"{settings.every} steps",
        len(recorded),
    )
