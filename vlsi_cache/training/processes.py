"""The processes of one run (``accelerate launch``): which one writes, and which wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from vlsi_cache.errors import RecipeError, StageError, VlsiCacheError, first_line
from vlsi_cache.training.folders.writing import plain_write_errors

__all__ = [
    "found_by_main_process",
    "from_main_process",
    "gathered",
    "gathered_numbers",
    "has_lost_others",
    "is_main_process",
    "leave_together",
    "lost_others",
    "on_main_process",
    "own_part",
    "raise_together",
    "resolve_device",
    "slice_of",
    "wait_for_everyone",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(days=1)
"""How long processes wait for one another. A large teacher's shard, or a large checkpoint, takes
longer than the ten minutes that collectives allow by default."""


def resolve_device(device: str) -> torch.device:
    """Return the device that a recipe names; ``auto`` takes this process's accelerator, if any.

    Every command that runs a model calls it first. It also joins the processes that a launcher
    began, and logs how many there are: a launcher may start fewer than it was asked for.

    Raises:
        RecipeError: the device is not this process's.
    """
    # where there is no accelerator, accelerate would take each launched process for the only one
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    own = torch.device(state.device)
    _validate_number(state.num_processes)
    try:
        asked = own if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise _wrong_device(device, own) from error
    if asked.type != own.type or asked.index not in (None, own.index):
        raise _wrong_device(device, own)
    if state.is_main_process:
        processes = "1 process" if state.num_processes == 1 else f"{state.num_processes} processes"
        logger.info("%s on %s", processes, own.type)
    return own


def _validate_number(num_processes: int) -> None:
    """Refuse to go on alone where others were started: all would write the same files."""
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != str(num_processes):
        raise RecipeError(
            "the launched processes have not joined",
            where="WORLD_SIZE",
            expected=f"{launched} processes",
            found=num_processes,
            mend="Start the command with torchrun or accelerate launch, and leave device: auto",
        )


def _wrong_device(device: str, own: torch.device) -> RecipeError:
    return RecipeError(
        "this is not a device that the process can use on this machine",
        where="device",
        expected="auto or cpu" if own.type == "cpu" else f"auto, cpu or {own}",
        found=device,
        mend="Choose among several GPUs with CUDA_VISIBLE_DEVICES, or start accelerate launch",
    )


def is_main_process() -> bool:
    """Report whether this is the process that writes."""
    return bool(PartialState().is_main_process)


def on_main_process(write: Callable[[], object]) -> None:
    """Let one process write while the others wait. If it fails, all of them do.

    Raises:
        StageError: a file cannot be written, or the main process failed.
    """
    problem: Exception | None = None
    if is_main_process():
        try:
            with plain_write_errors():
                write()
        except Exception as error:
            problem = error
    # the others would wait for a process that has ended
    found = from_main_process(None if problem is None else _as_sent(problem))
    if problem is not None:
        raise problem
    if found is not None:
        raise found


def _as_sent(problem: Exception) -> VlsiCacheError:
    """Return an error that can be sent, for the processes in which nothing went wrong."""
    what = problem.what if isinstance(problem, VlsiCacheError) else first_line(problem)
    where = problem.where if isinstance(problem, VlsiCacheError) else None
    details = problem.problems if isinstance(problem, VlsiCacheError) else ()
    return StageError(f"the main process stopped: {what}", where=where, problems=details)


def raise_together(problem: VlsiCacheError | None) -> None:
    """Raise what is wrong in any process, in all of them; all of them must call it.

    A process that raised alone would leave the others waiting for it.

    Raises:
        VlsiCacheError: something is wrong here, or in another process.
    """
    if not any(gathered_numbers(int(problem is not None))):
        return
    found = next(other for other in gathered([problem]) if other is not None)
    if problem is not None:
        raise problem
    raise found


def lost_others(where: object) -> StageError:
    """Return the error of a process that has lost the others.

    Args:
        where: the folder or cache that is worked on.
    """
    return StageError(
        "another process has ended, and this one cannot go on alone",
        where=str(where),
        mend="Its own message says why. Mend that, then run the same command again. It goes on "
        "where it stopped",
    )


def has_lost_others(error: RuntimeError) -> bool:
    """Report whether an error says that another process has ended."""
    sent = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    return sent and PartialState().num_processes > 1


def from_main_process(value: T) -> T:
    """Return the main process's value in every process; all of them must call it."""
    received: T = broadcast_object_list([value], from_process=0)[0]
    return received


def found_by_main_process(find: Callable[[], T]) -> T:
    """Return what the main process alone looks up. If it fails, all processes do.

    Raises:
        VlsiCacheError: the main process failed.
    """
    found: list[T] = []
    on_main_process(lambda: found.append(find()))
    return from_main_process(found)[0]


def gathered(items: Sequence[T]) -> list[T]:
    """Return the items of all processes, in the processes' order; all of them must call it."""
    return list(gather_object(list(items)))


def gathered_numbers(number: int) -> list[int]:
    """Return the numbers of all processes, without waiting for the devices."""
    state = PartialState()
    if state.num_processes == 1:
        return [number]
    found = [torch.zeros(1, dtype=torch.long) for _ in range(state.num_processes)]
    torch.distributed.all_gather(found, torch.tensor([number]), group=_host_group())
    return [int(value) for value in found]


@cache
def _host_group() -> Any:
    """Return the group that sends from the host's memory: the default one, if it can."""
    if "gloo" in torch.distributed.get_backend_config():
        return None
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


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


def own_part(num_items: int) -> slice:
    """Return this process's part of what all processes have, for each to do a part of it."""
    state = PartialState()
    start, end = (
        num_items * number // state.num_processes
        for number in (state.process_index, state.process_index + 1)
    )
    return slice(start, end)


def slice_of(items: list[int]) -> list[int]:
    """Return this process's slice of the main process's list; every process must call it."""
    state = PartialState()
    # each process looked at another moment, while other writers may be at work: one list for all
    whole = from_main_process(items)
    return list(whole[state.process_index :: state.num_processes])
