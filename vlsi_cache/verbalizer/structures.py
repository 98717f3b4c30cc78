"""The structures a verbalizer may have (VLsI, CVPR 2025, ablation f).

Each maps the tapped state to a change that is added to it. The change starts at zero, so that an
untrained verbalizer is exactly the logit lens, and training starts from a sound reading
(tuned-lens, arXiv 2303.08112).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from vlsi_cache.models import TapState

__all__ = [
    "BlockVerbalizer",
    "GatedVerbalizer",
    "LensVerbalizer",
    "LinearVerbalizer",
    "PositionwiseVerbalizer",
    "marked",
]


class PositionwiseVerbalizer(nn.Module, ABC):
    """A verbalizer that reads each position by itself."""

    @abstractmethod
    def change(self, hidden: Tensor) -> Tensor:
        """Return the change of ``hidden``, ``[N, D]`` → ``[N, D]``."""

    def forward(
        self, state: TapState, positions: Tensor, *, residual: bool, mark: Tensor | None = None
    ) -> Tensor:
        """Return verbalized states ``[N, D]`` at flat ``positions`` of the tapped ``[B, T, D]``."""
        hidden = marked(state.hidden.flatten(0, 1)[positions], mark)
        change = self.change(hidden.to(next(self.parameters()).dtype)).to(hidden.dtype)
        return hidden + change if residual else change


class LinearVerbalizer(PositionwiseVerbalizer):
    """``mlp``: one bias-free D×D map, D² parameters."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, hidden_size, bias=False)

    def zero_last_map(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.map.weight)

    def change(self, hidden: Tensor) -> Tensor:
        """Return the mapped state."""
        return self.map(hidden)  # type: ignore[no-any-return]


class GatedVerbalizer(PositionwiseVerbalizer):
    """``verb_ffn`` (expansion D) and ``ffn`` (the backbone's): three bias-free maps, SiLU gate."""

    def __init__(self, hidden_size: int, expansion_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, expansion_size, bias=False)
        self.up = nn.Linear(hidden_size, expansion_size, bias=False)
        self.down = nn.Linear(expansion_size, hidden_size, bias=False)

    def zero_last_map(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.down.weight)

    def change(self, hidden: Tensor) -> Tensor:
        """Return ``down(silu(gate(h)) · up(h))``."""
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))  # type: ignore[no-any-return]


class BlockVerbalizer(nn.Module):
    """``decoder``: a copy of the tapped decoder block, run over whole sequences.

    A scalar gate on the block's change starts at zero (ReZero, arXiv 2003.04887). Other structures
    zero their last map, but which map of a foreign block comes last is not known.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = copy.deepcopy(block).requires_grad_(True)
        self.gate = nn.Parameter(torch.ones(()))

    def zero_last_map(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.gate)

    def forward(
        self, state: TapState, positions: Tensor, *, residual: bool, mark: Tensor | None = None
    ) -> Tensor:
        """Return verbalized states ``[N, D]`` at flat ``positions`` of the tapped ``[B, T, D]``."""
        state = replace(state, hidden=marked(state.hidden, mark))
        own = _cast_floating(state, self.gate.dtype)
        output = own.rerun(self.block)
        if residual:
            output = own.hidden + self.gate * (output - own.hidden)
        return output.flatten(0, 1)[positions].to(state.hidden.dtype)  # back to the backbone's


class LensVerbalizer(nn.Module):
    """``logit_lens``: the tap as it is. The backbone's own norm and head read it."""

    def zero_last_map(self) -> None:
        """Stay the identity."""

    def forward(self, state: TapState, positions: Tensor, *, residual: bool) -> Tensor:
        """Return the states ``[N, D]`` at flat ``positions`` of the tapped ``[B, T, D]``."""
        assert residual  # or the recipe contradicts itself
        return state.hidden.flatten(0, 1)[positions]


def marked(states: Tensor, mark: Tensor | None) -> Tensor:
    """Return the states plus a 0-d zero, if there is one.

    FSDP2 gives a unit's whole weights and gradients up once the gradients of its inputs are there.
    Where no input has a gradient, those of all units would remain until the end of the backward
    pass. The zero's gradient makes them go one after another.
    """
    return states if mark is None else states + mark.to(states.dtype)


def _cast_floating(state: TapState, dtype: torch.dtype) -> TapState:
    """Return the state with every floating tensor (masks, rotary tables) in the block's dtype."""

    def cast(value: Any) -> Any:
        return recursively_apply(
            lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value
        )

    return TapState(hidden=cast(state.hidden), args=cast(state.args), kwargs=cast(state.kwargs))
