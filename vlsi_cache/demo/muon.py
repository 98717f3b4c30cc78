"""Muon: an optimizer that takes steps of one size in every direction of a weight matrix.

A colour fills a shape, while its outline is a few pixels. Under AdamW the gradient of the shape
drowns in that of the colour, and models stay at chance on shapes for all of the demo's time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MuonWithAdamW", "orthogonalized"]

_MUON_FACTOR = 20.0
_MUON_WEIGHT_DECAY = 0.05
_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_EPSILON = 1e-8
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan, 2024) for the matrices inside the model, Adam for all else.

    It works in float32, where torch's own Muon works in bfloat16. CPUs without bfloat16
    instructions take eighteen times as long for that. It is one optimizer, since a trainer
    schedules and saves one.

    Args:
        module: Module to train.
        learning_rate: Adam's learning rate. Muon's is 20 times as large.
    """

    def __init__(self, module: nn.Module, *, learning_rate: float) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            inner = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            (matrices if inner else rest).append(parameter)
        groups = [
            {"params": matrices, "lr": _MUON_FACTOR * learning_rate, "orthogonal": True},
            {"params": rest, "lr": learning_rate, "orthogonal": False},
        ]
        super().__init__(groups, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            advance = self._step_matrices if group["orthogonal"] else self._step_rest
            advance(parameters, group["lr"])

    def _step_matrices(self, parameters: list[nn.Parameter], rate: float) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        for (rows, columns), members in by_shape.items():
            steps = orthogonalized(torch.stack([self._nesterov(one) for one in members]))
            scale = rate * max(1.0, rows / columns) ** 0.5
            for parameter, step in zip(members, steps, strict=True):
                parameter.mul_(1 - rate * _MUON_WEIGHT_DECAY).sub_(step, alpha=scale)

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        state = self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)

    def _step_rest(self, parameters: list[nn.Parameter], rate: float) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            state = self.state[parameter]
            assert gradient is not None
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - _BETAS[0])
            state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
            mean = state["mean"] / (1 - _BETAS[0] ** state["step"])
            deviation = (state["square"] / (1 - _BETAS[1] ** state["step"])).sqrt()
            parameter.sub_(mean / (deviation + _EPSILON), alpha=rate)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return nearly the nearest (semi-)orthogonal matrices: all singular values are near 1.

    It takes five Newton–Schulz iterations of the quintic that Muon's author tuned.

    Args:
        matrices: ``[*, R, C]`` float.

    Returns:
        ``[*, R, C]``.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    found: Tensor = matrices.mT if tall else matrices
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.transpose(-2, -1) if tall else found
