"""Memory that runs out in a stage: one line that says which key mends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlsi_cache.errors import StageError, first_line
from vlsi_cache.training.samples.memory import is_out_of_memory
from vlsi_cache.training.stage import Stage

__all__ = ["plain_memory_errors"]


@contextmanager
def plain_memory_errors(stage: Stage[Any]) -> Iterator[None]:
    """Raise a ``StageError`` where the memory does not hold a pass of the stage.

    The step is not tried again in smaller pieces: other processes may be waiting in it, and its
    gradients may be half added.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(
            f"out of memory in {stage.name}",
            where=stage.folder,
            found=first_line(error),
            mend=_mend(stage),
        ) from error


def _mend(stage: Stage[Any]) -> str:
    schedule = stage.schedule
    ways = [] if schedule.gradient_checkpointing else ["set gradient_checkpointing: true"]
    if schedule.batch_tokens is not None and not schedule.bound_decides:
        ways.append("lower batch_tokens")
    going_on = f"To go on from the last checkpoint, {' or '.join(ways)}. " if ways else ""
    bound = "batch_tokens, or " if schedule.batch_tokens is None else ""
    if schedule.bound_decides:
        bound = "fewer batch_tokens, or "
    return (
        f"{going_on}To begin again, delete the folder, and give the stage {bound}a smaller "
        "batch_size with as much more gradient_accumulation"
    )
