"""``Sender``: the values of a module that one process holds, sent to all of them part by part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlsi_cache.errors import StageError
from vlsi_cache.models import is_hollow, tensor_outlines
from vlsi_cache.training.processes import gathered, gathered_numbers, is_main_process

__all__ = ["Sender"]


class Sender:
    """Gives all processes the main one's values, where a process has a module without any.

    All processes must make one and call it alike. A part is whole in every process until it is
    sharded, so the parts should be small.

    Args:
        module: the same in every process, but for its values.
        device: this process's device.

    Raises:
        StageError: the processes hold different modules.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self.device = device
        lacks = is_hollow([*module.parameters(), *module.buffers()])
        self.is_needed = any(gathered_numbers(int(lacks)))
        # by number alone, so that a part is freed once it is sharded; all tensors are there already
        self._sent: set[int] = set()
        if self.is_needed:
            _validate_alike(module)

    def send(self, tensors: Iterable[Tensor]) -> None:
        """Send parameters and buffers of the module, but for those that were sent or sharded."""
        if not self.is_needed:
            return
        for value in tensors:
            if not isinstance(value, DTensor) and id(value) not in self._sent:
                value.data = self._values(value)
                self._sent.add(id(value))

    def _values(self, value: Tensor) -> Tensor:
        """Return the main process's values of a tensor, on this process's device."""
        if is_main_process():
            sent = value.data.to(self.device).contiguous()
        else:
            sent = torch.empty(value.shape, dtype=value.dtype, device=self.device)
        if sent.numel():  # as bytes, because not every backend sends every dtype
            torch.distributed.broadcast(sent.view(-1).view(torch.uint8), src=0)
        return sent


def _validate_alike(module: nn.Module) -> None:
    """Refuse modules that differ. Processes would wait for one another, or take wrong values."""
    first, *others = gathered([list(tensor_outlines(module))])
    for number, other in enumerate(others, 1):
        if other != first:
            known, its = (
                {one.name: (one.shape, one.dtype) for one in all_} for all_ in (first, other)
            )
            odd = [name for name in {**known, **its} if known.get(name) != its.get(name)]
            raise StageError(
                f"processes 0 and {number} hold different weights",
                where=type(module).__name__,
                found=", ".join(odd[:3]) or "other ties between them",
                mend="Start the command without FSDP, or with the same versions of torch, "
                "transformers and peft everywhere",
            )
