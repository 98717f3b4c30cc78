"""The processes of one run (``accelerate launch``): which one writes, and which wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from vlsi_cache.errors import RecipeError

__all__ = [
    "is_main_process",
    "leave_together",
    "on_main_process",
    "resolve_device",
    "slice_of",
    "wait_for_everyone",
]

_PATIENCE = timedelta(days=1)
"""How long processes wait for one another. A large teacher's shard, or a large checkpoint, takes
longer than the ten minutes that collectives allow by default."""


def resolve_device(device: str) -> torch.device:
    """Return the device that a recipe names; ``auto`` takes this process's accelerator, if any.

    Every command calls it first: it also joins the processes that ``accelerate launch`` began.

    Raises:
        RecipeError: the device is not this process's.
    """
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    own = torch.device(state.device)
    try:
        asked = own if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise _wrong_device(device, own) from error
    if asked.type != own.type or asked.index not in (None, own.index):
        raise _wrong_device(device, own)
    return own


def _wrong_device(device: str, own: torch.device) -> RecipeError:
    return RecipeError(
        "this is not a device that the process can use",
        where="device",
        expected="auto or cpu" if own.type == "cpu" else f"auto, cpu or {own}",
        found=device,
        mend="Choose among several GPUs with CUDA_VISIBLE_DEVICES, or start accelerate launch",
    )


def is_main_process() -> bool:
    """Report whether this is the process that writes."""
    return bool(PartialState().is_main_process)


def on_main_process(write: Callable[[], object]) -> None:
    """Let one process write while the others wait."""
    if is_main_process():
        write()
    wait_for_everyone()


def wait_for_everyone() -> None:
    """Wait until every process has come here."""
    PartialState().wait_for_everyone()


def leave_together() -> None:
    """End the process group that ``resolve_device`` joined.

    Without it, a process that exits early could abort the others, whose connections it serves. A
    launcher would then report the whole run as failed.
    """
    wait_for_everyone()
    PartialState().destroy_process_group()


def slice_of(items: list[int]) -> list[int]:
    """Return this process's slice of the main process's list; every process must call it."""
    state = PartialState()
    # each process looked at another moment, while other writers may be at work: one list for all
    whole = broadcast_object_list([items], from_process=0)[0]
    return list(whole[state.process_index :: state.num_processes])
