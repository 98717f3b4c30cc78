"""``RidgeMoments``: ridge regression of one kind of state towards another, batch by batch.

Shapes: N tokens, D size of the states, E size of what is wanted.
"""

from __future__ import annotations

from typing import Final

import torch
from accelerate.utils import reduce
from torch import Tensor

__all__ = ["RidgeMoments"]

_RIDGE: Final = 1e-2
"""Penalty on the distance from the identity, by the mean of the second moments' diagonal."""


class RidgeMoments:
    """Second moments, summed over tokens: D² + D · E numbers in float32.

    Args:
        size: D.
        device: where the sums are.
        wanted: E, which is D by default.
    """

    def __init__(self, size: int, device: torch.device, wanted: int | None = None) -> None:
        self.own = torch.zeros(size, size, device=device)
        """``Σ h hᵀ``, ``[D, D]``."""
        self.cross = torch.zeros(size, size if wanted is None else wanted, device=device)
        """``Σ h yᵀ``, ``[D, E]``, where y is what is wanted."""

    def add(self, state: Tensor, wanted: Tensor) -> None:
        """Add tokens.

        Args:
            state: ``[N, D]`` the states.
            wanted: ``[N, E]`` what a map is to make of them.
        """
        state, wanted = state.float(), wanted.to(state.device, torch.float32)
        self.own += state.T @ state
        self.cross += state.T @ wanted

    def reduce(self) -> None:
        """Put the sums of all processes together; all of them must call it."""
        self.own, self.cross = reduce(self.own, "sum"), reduce(self.cross, "sum")

    def change(self, penalty: float = _RIDGE) -> Tensor:
        """Return ``Δ`` ``[D, D]``, for which ``h + Δ h`` is nearest to what is wanted.

        It minimises ``Σ ‖h + Δ h − y‖² + λ ‖Δ‖²``. With few tokens it stays near 0.

        Args:
            penalty: λ by the mean of the diagonal of ``own``.
        """
        if not self.own.any():
            return self.own  # no token was sound
        self._leave_mps()
        own = self.own.double()
        weight = penalty * float(own.diagonal().mean())
        return _solved(own, self.cross.double() - own, weight)

    def linear(self, penalty: float) -> Tensor:
        """Return ``W`` ``[E, D]``, which minimises ``Σ ‖W h − y‖² + λ ‖W‖²``.

        Args:
            penalty: λ, above 0.
        """
        self._leave_mps()
        return _solved(self.own.double(), self.cross.double(), penalty)

    def _leave_mps(self) -> None:
        if self.own.device.type == "mps":  # which has no float64
            self.own, self.cross = self.own.cpu(), self.cross.cpu()


def _solved(own: Tensor, cross: Tensor, weight: float) -> Tensor:
    damped = own + weight * torch.eye(len(own), dtype=own.dtype, device=own.device)
    solved: Tensor = torch.linalg.solve(damped, cross)
    return solved.T.float()
