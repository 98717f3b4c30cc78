"""``held-out.jsonl``: the held-out figures of a stage, one line per measurement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from pydantic import Field

from vlsi_cache.files import read_file
from vlsi_cache.stagefiles import SteppedLine
from vlsi_cache.training.folders.lines import keep_lines

__all__ = ["MEASUREMENTS_FILE", "MeasurementJournal", "MeasurementLine", "read_measurements"]

MEASUREMENTS_FILE: Final = "held-out.jsonl"
_LEFT_OUT: Final = {"held_out_left_out"}


class MeasurementLine(SteppedLine):
    """A model's figures on held-out samples."""

    held_out_loss_nats: float
    """Mean cross-entropy to the response tokens, nats."""
    held_out_divergence_nats: float | None = None
    """Mean KL(teacher ‖ model) at the output by the cache, nats per response token. An estimate
    from draws may lie a little below 0. Null where no sample has a record."""
    held_out_samples: int
    """Samples that were measured."""
    held_out_compared: int = 0
    """Those of them with a record."""
    held_out_left_out: list[int] = Field(default=[])
    """Indices of the held-out samples that no measurement of the stage has, because a figure of
    theirs was not finite at the first one."""


class MeasurementJournal:
    """Appends a line at every measurement. A resumed stage goes on from its checkpoint's step.

    Args:
        folder: the stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MEASUREMENTS_FILE

    def resume(self, step: int) -> None:
        """Drop the lines after a step: they will be written again.

        Raises:
            StageError: a line is damaged, and not by an interruption: that tears only the last.
        """
        keep_lines(self.path, MeasurementLine, step)

    def left_out(self) -> frozenset[int] | None:
        """Return what every measurement leaves out, or None before the first."""
        lines = read_measurements(self.path.parent)
        return frozenset(lines[0].held_out_left_out) if lines else None

    def append(self, step: int, figures: Mapping[str, float], left_out: Collection[int]) -> None:
        """Write the figures of a step, and which samples they are not of."""
        values = {"step": step, **figures, "held_out_left_out": sorted(left_out)}
        line = MeasurementLine.model_validate(values)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json(exclude=None if left_out else _LEFT_OUT) + "\n")


def read_measurements(folder: Path) -> list[MeasurementLine]:
    """Return the measurements of a stage, in the order of their steps."""
    path = folder / MEASUREMENTS_FILE
    if not path.is_file():
        return []
    lines = read_file(path).splitlines()
    return [MeasurementLine.model_validate_json(line) for line in lines]
