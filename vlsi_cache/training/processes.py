"""Several processes on one run: who writes, and who waits (accelerate launch)."""

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
    "share_of",
    "wait_for_everyone",
]

_PATIENCE = timedelta(days=1)
"""How long processes wait for one another: a shard of a large teacher, or the writing of a large
checkpoint, outlasts the ten minutes that collectives allow by default."""


def resolve_device(device: str) -> torch.device:
    """The device a recipe names; ``auto`` takes this process's accelerator if there is one.

    Called first by every command: it also joins the processes that ``accelerate launch`` began.

    Raises:
        RecipeError: it is not the device of this process.
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
    """Whether this is the process that writes."""
    return bool(PartialState().is_main_process)


def on_main_process(write: Callable[[], object]) -> None:
    """Let one process write while the others wait."""
    if is_main_process():
        write()
    wait_for_everyone()


def wait_for_everyone() -> None:
    """Go on when every process has come here."""
    PartialState().wait_for_everyone()


def leave_together() -> None:
    """End what ``resolve_device`` began, when all is done.

    A process that exits while its connections are still served may be aborted instead, and a
    launcher would call the whole run failed.
    """
    wait_for_everyone()
    PartialState().destroy_process_group()


def share_of(items: list[int]) -> list[int]:
    """This process's part of the main process's list; every process has to come here."""
    state = PartialState()
    # each looked at another moment, and other writers may be at work: one list for all
    whole = broadcast_object_list([items], from_process=0)[0]
    return list(whole[state.process_index :: state.num_processes])
