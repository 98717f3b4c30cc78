"""The loss of a student's hidden state against signs of the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["hidden_loss"]


def hidden_loss(states: Tensor, directions: Tensor) -> Tensor:
    """Return 1 − cos of each state to the teacher's, estimated without bias, ``[N]``.

    A single token's estimate may lie outside 0 … 2.

    Args:
        states: ``[N, D]``, the student's.
        directions: ``[N, D]``, ``HiddenSigns.decode`` of the teacher's.
    """
    return 1 - (F.normalize(states.float(), dim=-1) * directions).sum(-1)
