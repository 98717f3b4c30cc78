"""The choice of ``data.select``: made once, by the main process, from the whole cache."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from vlsi_cache.data.selecting import Choice, choose_by_figure, sample_figures
from vlsi_cache.errors import CacheError, CacheMismatchError, StageError
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Recipe, SelectSection
from vlsi_cache.store import Cache, is_begun, open_cache, validate_recorded
from vlsi_cache.student.cached import validate_data
from vlsi_cache.training import Run
from vlsi_cache.training.processes import from_main_process, on_main_process

__all__ = ["open_selecting_cache", "with_selection"]

logger = logging.getLogger(__name__)


def open_selecting_cache(recipe: Recipe) -> Cache | None:
    """Open the cache that ``data.select`` chooses by, or return None if it is not given.

    Raises:
        CacheError: there is no cache, it is incomplete, or no sample of it could be read.
        CacheMismatchError: the cache lacks the tap.
    """
    section = recipe.data.select
    if section is None:
        return None
    path = recipe.cache_path
    if not is_begun(path):
        raise CacheError(
            "data.select chooses by the figures of a cache, and there is none",
            where=path,
            mend="Run dump-teacher first, name a cache with --cache, or leave data.select out",
        )
    cache = open_cache(path)
    missing = cache.missing_shards()
    if missing:
        raise CacheError(
            f"data.select needs a whole cache: {len(missing)} of {cache.manifest.num_shards} "
            "shards are missing",
            where=path,
            mend="Run dump-teacher again with the same settings; it goes on where it stopped",
        )
    validate_recorded(cache)
    inner = cache.manifest.taps[:-1]
    if section.tap is not None and section.tap not in inner:
        raise CacheMismatchError(
            f"data.select.tap is {section.tap}, and the cache does not hold it",
            where=path,
            expected=f"one of {', '.join(map(str, inner))}" if inner else "a cache with taps",
            found=section.tap,
            mend="Name a tap of the cache, or choose by teacher_loss or entropy",
        )
    return cache


def with_selection(run: Run) -> Run:
    """Return the run with the samples that ``data.select`` leaves out, if it is given.

    Samples that are held out are measured whether or not they would be chosen.

    Raises:
        CacheError: there is no cache that serves.
        StageError: no sample is chosen.
    """
    cache, section = open_selecting_cache(run.recipe), run.recipe.data.select
    if cache is None or section is None:
        return run
    validate_data(cache, run)
    found: list[tuple[list[int], dict[str, Any]] | None] = [None]
    on_main_process(lambda: found.insert(0, _choose(cache, section)))
    chosen = from_main_process(found[0])
    assert chosen is not None  # or the main process has raised, and so have all
    unchosen, identity = chosen
    others = {*run.left_out.indices}
    left_out = replace(run.left_out, unchosen=[index for index in unchosen if index not in others])
    if len(left_out.indices) == len(run.data):
        raise StageError(
            "no sample remains to learn from",
            where=run.data.source,
            found=left_out.reasons("student"),
            mend="Choose more samples by data.select, hold out fewer, or mend those that fail",
        )
    return replace(run, left_out=left_out, selection=identity)


def _choose(cache: Cache, section: SelectSection) -> tuple[list[int], dict[str, Any]]:
    """Return the samples that are left out, and what identifies the choice."""
    with phase("choosing samples by the cache's figures"):
        choice = _choice(cache, section)
    report = choice.report()
    if not len(choice.kept):
        least, greatest = (float(choice.figures[end]) for end in (0, -1))
        raise StageError(
            "data.select chooses no sample",
            where="data.select.between",
            expected=f"figures from {least:.3g} to {greatest:.3g}",
            found=list(section.between or ()),
            mend="Choose other bounds, or give keep and order",
        )
    logger.info("data.select by %s: %s", section.by, report)
    identity = section.model_dump(mode="json", exclude_none=True)
    digest = hashlib.sha256(choice.kept.astype("<i8").tobytes()).hexdigest()
    return choice.unchosen.tolist(), {
        **identity,
        "num_chosen": len(choice.kept),
        "chosen": digest,
    }


def _choice(cache: Cache, section: SelectSection) -> Choice:
    taps = list(cache.manifest.taps)
    row = taps.index(section.tap) if section.tap is not None else -1
    shards = [
        (sample_figures(shard.distribution, shard.offsets, section, row), shard.keys)
        for shard in cache.iter_shards()
    ]
    figures = np.concatenate([found for found, _ in shards])
    keys = np.concatenate([keys for _, keys in shards])
    return choose_by_figure(figures, keys, section)
