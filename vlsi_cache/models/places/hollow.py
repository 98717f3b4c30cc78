"""Hollow tensors: shape, dtype and device of a weight, and the memory of one number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["hollow_out", "is_hollow"]


def hollow_out(module: nn.Module, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Take the values of parameters and buffers away, until others are put into their places.

    Unlike tensors on the meta device, these keep their identity when they get values: whoever
    refers to one will see them.

    Args:
        module: what loses its values, in the host's memory.
        dtypes: dtypes by name, where they are to be others.
    """
    named = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    found: dict[int, Tensor] = {}  # tied weights stay tied
    kept = list(named)  # so that no number of an object is given twice
    for name, value in kept:
        if id(value) not in found:
            dtype = dtypes[name] if dtypes else value.dtype
            empty = torch.zeros((), dtype=dtype).expand(value.shape)
            is_weight = isinstance(value, nn.Parameter)
            learns = value.requires_grad
            found[id(value)] = nn.Parameter(empty, requires_grad=learns) if is_weight else empty
    for part in module.modules():
        for places in (part._parameters, part._buffers):  # noqa: SLF001 (ties included)
            for name, held in places.items():
                if held is not None:
                    places[name] = found[id(held)]  # type: ignore[assignment]


def is_hollow(tensors: Iterable[Tensor]) -> bool:
    """Report whether any of these tensors lacks its values."""
    return any(value.untyped_storage().nbytes() < value.nbytes for value in tensors)
