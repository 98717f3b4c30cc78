"""Samples that every stage leaves out: found once, before the first stage."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from vlsi_cache.data import BatchEncoder, ConversationDataset, TokenBatches, encoder_of
from vlsi_cache.errors import DataError, StageError, VlsiCacheError
from vlsi_cache.files import read_file, write_whole
from vlsi_cache.models import chat_template_hash, tokenizer_of, vocabulary_hash
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.processes import (
    from_main_process,
    gathered,
    is_main_process,
    on_main_process,
    slice_of,
)
from vlsi_cache.training.run import LeftOut, Run
from vlsi_cache.training.samples.loader import make_loader, or_raise, quiet_forks

__all__ = [
    "UnreadableSamples",
    "find_left_out",
    "reason_of",
    "too_many_in_a_row",
]

logger = logging.getLogger(__name__)

_BATCH: Final = 16
"""Samples that a worker reads at a time."""


class UnreadableSamples(BaseModel):
    """What a run has found about one model, so that it need not look again."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    settings: dict[str, Any]
    """Data, longest conversation, tokenizer and chat template that this holds for."""
    failures: dict[int, str]
    """Index of each sample that the model cannot read → why."""


def find_left_out(
    run: Run, section: ModelSection, failed: Mapping[int, str], workers: int, name: str = ""
) -> LeftOut:
    """Find the samples that all stages of a command leave out.

    They are the samples that the cache records as failed. With ``skip``, they are also the samples
    that the model cannot read. Every sample is then encoded once.

    Args:
        run: what all stages share.
        section: the recipe's ``teacher`` or ``student``: the model that reads the samples.
        failed: index → reason of the samples that the cache records as failed.
        workers: processes that look for samples to leave out.
        name: name of the data, if it is not the run's own.

    Raises:
        StageError: no sample remains, or too many in a row cannot be read.
    """
    unreadable = _find_unreadable(run, section, workers, name) if run.recipe.skips_failures else {}
    found = LeftOut(failed, unreadable)
    if len(found.indices) == len(run.data):
        raise StageError(
            f"none of the {len(run.data):,} samples can be read",
            where=run.data.source,
            found=next(iter((unreadable or failed).values())),
            mend="Mend the data, and dump the teacher again into a new folder",
        )
    return found


def _find_unreadable(run: Run, section: ModelSection, workers: int, name: str) -> dict[int, str]:
    """Return index → reason of the samples that the model cannot read."""
    encoder = encoder_of(section, run.recipe.data)
    settings = {
        "data": run.fingerprint(),
        "max_length": encoder.max_length,
        "tokenizer": vocabulary_hash(tokenizer_of(encoder.processor)),
        "chat_template": chat_template_hash(encoder.processor),
        "processor": section.processor,
        "max_pixels_per_image": run.recipe.data.max_pixels_per_image,
    }
    path = run.recipe.output / f"unreadable-{name or run.role}.json"
    known = from_main_process(_read(path, settings))
    if known is None:
        known = _look(run, encoder, workers)
        found = UnreadableSamples(settings=settings, failures=known)
        on_main_process(lambda: _write(path, found))
    _validate_runs(known, run)
    return known


def _read(path: Path, settings: Mapping[str, Any]) -> dict[int, str] | None:
    """Return what was found before, if it holds; anything else is looked for again."""
    try:
        found = UnreadableSamples.model_validate_json(read_file(path))
    except (OSError, ValueError):
        return None
    same = json.dumps(found.settings, sort_keys=True) == json.dumps(settings, sort_keys=True)
    return found.failures if same else None


def _write(path: Path, found: UnreadableSamples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, found.model_dump_json(indent=2) + "\n")


def _look(run: Run, encoder: BatchEncoder, workers: int) -> dict[int, str]:
    """Encode this process's slice of the samples, and join what all processes find."""
    total = len(run.data)
    if is_main_process():
        logger.info(
            "reading all %d samples, to find those that the %s cannot read", total, run.role
        )
    own = slice_of(list(range(0, total, _BATCH)))
    loader = make_loader(
        _Look(run.data, TokenBatches(encoder)),
        [list(range(start, min(start + _BATCH, total))) for start in own],
        workers=workers,
    )
    with quiet_forks(workers):
        found = [item for batch in loader for item in or_raise(batch)]
    return dict(gathered(found))


@dataclass(frozen=True, slots=True)
class _Look:
    """Reads samples one by one, and returns index and reason of those that fail."""

    data: ConversationDataset
    collate: TokenBatches

    def __call__(self, indices: Sequence[int]) -> list[tuple[int, str]]:
        found = []
        for index in indices:
            try:
                self.collate([(index, self.data[index])])
            except DataError as error:
                found.append((index, reason_of(error)))
        return found


def _validate_runs(failures: Mapping[int, str], run: Run) -> None:
    """Refuse more failures one after another than the recipe allows."""
    most = run.recipe.cache.max_failures_in_a_row
    in_a_row = 0
    for index in range(len(run.data)):
        in_a_row = in_a_row + 1 if index in failures else 0
        if in_a_row > most:
            raise too_many_in_a_row(in_a_row, most, f"sample {index}", failures[index])


def too_many_in_a_row(in_a_row: int, most: int, where: str, reason: str) -> StageError:
    """Return the error of a run in which nothing but failures happens.

    Args:
        in_a_row: samples that failed one after another.
        most: how many may.
        where: name of the last one.
        reason: why it failed.
    """
    return StageError(
        f"{in_a_row} samples in a row cannot be read, the last because: {reason}",
        where=where,
        expected=f"at most {most} in a row",
        mend="Mend their cause, or raise cache.max_failures_in_a_row",
    )


def reason_of(error: VlsiCacheError) -> str:
    """Return what went wrong, alike on every machine: no paths, and no addresses of objects.

    Half a character, which no file takes, stands there as its escape.
    """
    parts = [error.what]
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    if error.found is not None:
        parts.append(f"found {error.found}")
    text = re.sub(r" at 0x[0-9a-f]+", "", "; ".join(parts))
    return text.encode("utf-8", "backslashreplace").decode()
