"""The card of a student: what its run knows of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlsi_cache.data.reading.sources import describe_section
from vlsi_cache.errors import first_line
from vlsi_cache.recipe import DataSection, HeldOutSection
from vlsi_cache.recipe.publicnames import public_name, public_settings
from vlsi_cache.sharing import StudentFacts, student_card
from vlsi_cache.store import Cache
from vlsi_cache.training import Run
from vlsi_cache.training.folders.measurements import (
    MEASUREMENTS_FILE,
    MeasurementLine,
    read_measurements,
)

__all__ = ["card_of", "public_data", "student_name"]

logger = logging.getLogger(__name__)

_STAGES = ("interaction", "finetuning")
_TITLE = re.compile(r"^# ([^\n]+), (?:distilled from [^\n]+|fine-tuned)$", re.MULTILINE)
"""The title of an earlier student's card."""


def card_of(run: Run, cache: Cache | None, config: Any) -> str:
    """Return the card of a student that is about to be saved.

    Args:
        run: what all stages share, with the figures of those that have trained.
        cache: the cache that it learned from.
        config: its own config.
    """
    recipe = run.recipe
    facts = StudentFacts(
        name=student_name(recipe.student.model or "student"),
        recipe=recipe,
        sees_images=hasattr(config, "vision_config"),
        data=public_data(recipe.data),
        data_fingerprint=run.fingerprint(),
        num_samples=len(run.data) - len(run.left_out.indices),
        cache=cache,
        figures=list(_figures(run)),
    )
    return student_card(facts)


def student_name(model: str) -> str:
    """Return the name of what a student began as. A student that began as one has that one's."""
    try:
        title = (Path(model).expanduser() / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        title = ""
    found = _TITLE.search(title)
    return found[1] if found else public_name(model).rpartition("/")[2]


def public_data(section: DataSection) -> str:
    """Return the names of the data. Each is made public before they are joined."""
    sources = [
        source.model_copy(update={"path": public_settings(source.path)})
        for source in section.sources
    ]
    public = {"path": public_settings(section.path), "sources": sources}
    return describe_section(section.model_copy(update=public))


def _figures(run: Run) -> Iterator[tuple[str, str, float]]:
    for stage in _STAGES:
        if stage not in run.recipe.stages:
            continue
        trained = run.figures.get(stage, {})
        if "loss" in trained:
            yield stage, "training loss at the end, nats", trained["loss"]
        measured = _chosen(run.recipe.output / stage, run.recipe.held_out)
        if measured is not None:
            yield stage, "step of the weights", measured.step
            yield stage, "held-out loss, nats per token", measured.held_out_loss_nats
            if measured.held_out_divergence_nats is not None:
                divergence = measured.held_out_divergence_nats
                yield stage, "held-out KL to the teacher, nats per token", divergence


def _chosen(folder: Path, settings: HeldOutSection) -> MeasurementLine | None:
    """Return the measurement of the weights that a stage has ended with."""
    try:
        lines = read_measurements(folder) if settings.is_given else []
    except (OSError, ValueError) as error:  # a card is no reason to lose what was trained
        found = f"{folder / MEASUREMENTS_FILE} cannot be read ({first_line(error)})"
        logger.warning("%s. The card lacks its figures", found)
        return None
    if not lines:
        return None
    if settings.keep == "last":
        return lines[-1]
    name = f"held_out_{settings.metric}_nats"
    return min(lines, key=lambda line: getattr(line, name))
