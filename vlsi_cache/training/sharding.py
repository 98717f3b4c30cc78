"""Weights over many devices: each process keeps a slice of every one (FSDP2 of PyTorch).

Accelerate's own way would not do here. It ignores FSDP on a CPU, it shards only what the module
registers, and the head is read outside of its module. So the module is sharded before the Trainer
sees it, alike on every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from vlsi_cache.errors import StageError, first_line
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.sending import Sender

__all__ = [
    "ASKED",
    "FsdpOptions",
    "gather",
    "hidden_from_libraries",
    "is_sharded",
    "like",
    "reshard",
    "shard",
    "slice_weights",
    "whole",
    "whole_state",
]

ASKED: Final = "ACCELERATE_USE_FSDP"
"""The variable by which a launcher asks for FSDP."""


@dataclass(frozen=True, slots=True)
class FsdpOptions:
    """How weights are sharded."""

    reshard: bool = True
    """Whether a block's weights are given up after its forward, and gathered again backward."""
    offload: bool = False
    """Whether slices, gradients and the optimizer's state lie in the host's memory."""
    was_asked_for: bool = True
    """Whether a launcher asked for it. Tensor parallelism of the teacher brings it along."""


@contextmanager
def hidden_from_libraries() -> Iterator[None]:
    """Keep accelerate and transformers from acting on the request for FSDP as well."""
    asked = os.environ.pop(ASKED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[ASKED] = asked


def shard(
    module: StageModule, sharding: FsdpOptions, device: torch.device, *, autocast: bool = False
) -> None:
    """Shard a stage's module in place, over all processes.

    Args:
        module: what trains, the same in every process. It may lie in the host's memory, or in the
            main process's alone.
        sharding: how.
        device: this process's device.
        autocast: whether forwards run in bfloat16, so that blocks are gathered in it.

    Raises:
        StageError: PyTorch cannot shard the module, or the processes hold different ones.
    """
    module.begin_sharding()
    sender = Sender(module, device)
    sender.send(_scalars(module))
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    try:
        slice_weights(module, sharding, mesh, autocast=autocast, before=sender.send)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise _refusal(module, sharding, first_line(error)) from error
    for parameter in _scalars(module):
        parameter.data = parameter.data.to(device)
    module.end_sharding(device)


def slice_weights(
    module: StageModule,
    sharding: FsdpOptions,
    mesh: DeviceMesh,
    *,
    autocast: bool,
    before: Callable[[Iterable[Tensor]], object] = lambda _: None,
) -> None:
    """Leave a slice of every weight in each process of a mesh.

    Args:
        module: what trains, after its ``begin_sharding``.
        sharding: how.
        mesh: the processes.
        autocast: whether forwards run in bfloat16.
        before: called with the tensors that are sliced next.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if sharding.offload else OffloadPolicy(),
        "ignored_params": set(_scalars(module)),
    }
    for unit in module.units():
        before([*unit.parameters(), *unit.buffers()])
        options_of_unit = {**options, "reshard_after_forward": sharding.reshard}
        fully_shard(unit, mp_policy=_precision(autocast=autocast), **options_of_unit)
    before([*module.parameters(), *module.buffers()])
    fully_shard(module, **options)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo has no mean


def _scalars(module: StageModule) -> list[nn.Parameter]:
    """Return the parameters that have nothing to slice, in the same order in every process."""
    return [value for value in module.parameters() if value.ndim == 0]


def _refusal(module: StageModule, sharding: FsdpOptions, problem: str) -> StageError:
    if sharding.was_asked_for:
        return StageError(
            f"the module cannot be sharded by FSDP2 ({problem})",
            where=type(module).__name__,
            mend="Start the command without FSDP, on devices that hold the whole model",
        )
    return StageError(
        "the teacher's verbalizers cannot be sharded over the processes that hold the teacher "
        f"({problem})",
        where="teacher.tensor_parallel",
        mend="Start one process, with teacher.device_map: auto in place of teacher.tensor_parallel",
    )


def _precision(*, autocast: bool) -> MixedPrecisionPolicy:
    """Return the dtype in which a unit's weights are gathered. Float32 slices are the masters.

    What lies outside the units keeps its dtype, so that the blocks read what they would read in one
    process.
    """
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if autocast else None,
        reduce_dtype=torch.float32 if autocast else None,
        cast_forward_inputs=False,
    )


def is_sharded(module: nn.Module) -> bool:
    """Report whether a module's weights are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(value: Tensor) -> Tensor:
    """Return a tensor whole, if it is sharded; every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor as ``model`` is: sharded, or as it was."""
    if not isinstance(model, DTensor) or value.shape != model.shape:
        return value
    sliced = distribute_tensor(
        value, model.device_mesh, model.placements, src_data_rank=None
    )  # from each process's own copy, so that nothing is sent
    return sliced.to(model.device)


def whole_state(state: Any, *, keep: bool) -> Any:
    """Return an optimizer's state with whole tensors, in the host's memory.

    Args:
        state: what ``state_dict`` gave; every process must call it.
        keep: whether this process wants them. The others get empty ones.
    """
    if isinstance(state, Tensor):
        found = whole(state)
        return found.cpu() if keep else found.new_empty(0)
    if isinstance(state, Mapping):
        return {name: whole_state(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole_state(value, keep=keep) for value in state]
    return state


def reshard(module: nn.Module) -> None:
    """Give up the whole weights that a forward has gathered, and hold slices again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather(module: StageModule, *, keep: bool) -> None:
    """Make a sharded module ordinary again, whole and in the host's memory.

    Args:
        module: what has trained; every process must call it.
        keep: whether this process wants the weights. In the others, the module is of no use.
    """
    module.release()
    found: dict[int, nn.Parameter] = {}  # tied weights stay tied
    parts = list(module.modules())
    reshard(module)
    for part in parts:
        for parameter in part.parameters(recurse=False):
            if isinstance(parameter, DTensor) and id(parameter) not in found:
                value = whole(parameter.detach())
                kept = value.cpu() if keep else value.new_empty(0)
                found[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
    _replace(parts, found)


def _replace(parts: list[nn.Module], found: Mapping[int, nn.Parameter]) -> None:
    for part in parts:
        for name, parameter in list(part._parameters.items()):  # noqa: SLF001 (ties included)
            if parameter is not None and id(parameter) in found:
                part._parameters[name] = found[id(parameter)]  # noqa: SLF001
        if isinstance(part, FSDPModule):
            # its ``_apply`` would put the slices back
            _, part.__class__ = type(part).__bases__  # FSDPModule, and the module's own class
