"""Several processes on one run: who writes, and who waits (accelerate launch)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import PartialState

from vlsi_cache.errors import RecipeError

__all__ = ["on_main_process", "resolve_device", "share_of", "wait_for_everyone"]


def resolve_device(device: str) -> torch.device:
    """The device a recipe names; ``auto`` takes this process's accelerator if there is one.

    Called first by every command: it also joins the processes that ``accelerate launch`` began.

    Raises:
        RecipeError: torch knows no such device, or it is not there.
    """
    state = PartialState(cpu=device == "cpu")
    if device == "auto":
        return torch.device(state.device)
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"no such device ({reason})", where="device", found=device, mend="Use auto or cpu"
        ) from error
    return resolved


def on_main_process(write: Callable[[], object]) -> None:
    """Let one process write while the others wait."""
    if PartialState().is_main_process:
        write()
    wait_for_everyone()


def wait_for_everyone() -> None:
    """Go on when every process has come here."""
    PartialState().wait_for_everyone()


def share_of(items: list[int]) -> list[int]:
    """This process's part of a list that every process holds alike."""
    state = PartialState()
    wait_for_everyone()  # the lists were made before any process changed what they are made from
    return items[state.process_index :: state.num_processes]
