"""Groups of parameters: those with rates, or with norms of their gradients, of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Group", "give_own_rates", "split_scalars"]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters whose gradients are clipped to one norm, as the Trainer asks a model for them."""

    members: list[nn.Parameter]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield them."""
        return iter(self.members)


def split_scalars(optimizer: torch.optim.Optimizer) -> None:
    """Give scalars groups of their own: a fused step takes no mixture with sharded tensors."""
    for group in list(optimizer.param_groups):
        scalars = [value for value in group["params"] if value.ndim == 0]
        if scalars and len(scalars) < len(group["params"]):
            group["params"] = [value for value in group["params"] if value.ndim]
            optimizer.add_param_group({**group, "params": scalars})


def give_own_rates(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    rates: Mapping[str, float],
) -> None:
    """Give parameters whose names begin so groups with these rates."""
    parameters = list(named)
    for prefix, rate in rates.items():
        own = {id(value) for name, value in parameters if name.startswith(prefix)}
        for group in list(optimizer.param_groups):
            split = {**group, "params": [p for p in group["params"] if id(p) in own]}
            group["params"] = [p for p in group["params"] if id(p) not in own]
            optimizer.add_param_group({**split, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
