"""The objective beside the products that no exact method can do without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from objective import RIVALS, Problem, Size, installed, one_pass, plain_autograd, two_products
from torch import Tensor

from gpu_parts.clock import measured, released
from gpu_parts.shapes import Shapes
from vlsi_cache.models import Head
from vlsi_cache.objectives import (
    SparseTargets,
    candidate_divergences,
    linear_cross_entropy,
    reference_divergences,
)

__all__ = ["measure"]

FLOOR, OURS, PLAIN = "two products", "one pass", "plain autograd"


def measure(shapes: Shapes, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure every vocabulary with every number of candidates."""
    rows = []
    for vocabulary in shapes.vocabularies:
        for candidates in shapes.candidates:
            size = Size(
                shapes.tokens,
                shapes.hidden,
                vocabulary,
                candidates,
                shapes.entries,
                "bfloat16" if device.type == "cuda" else "float32",
            )
            rows.append(_row(size, device, rounds) | _agreement(size, shapes, device))
            released(device)
    return {"objective": rows}


def _row(size: Size, device: torch.device, rounds: int) -> dict[str, Any]:
    makers: dict[str, Callable[[Problem], Callable[[], object]]] = {
        FLOOR: two_products,
        OURS: lambda problem: partial(one_pass, problem),
        PLAIN: lambda problem: partial(plain_autograd, problem),
    }
    makers |= {name: make for name, make in RIVALS.items() if installed(name)}
    peaks = {name: _peak(make, size, device) for name, make in makers.items()}
    problem = Problem(size, device)
    steps = {name: make(problem) for name, make in makers.items()}
    seconds = {name: one["seconds"] for name, one in measured(steps, rounds, device).items()}
    operations = 4 * size.tokens * size.hidden * size.vocabulary
    return {
        "vocab": size.vocabulary,
        "candidates": size.candidates,
        "tokens": size.tokens,
        "hidden": size.hidden,
        "dtype": size.dtype,
        "time_over_floor": seconds[OURS] / seconds[FLOOR],
        "time_over_autograd": seconds[OURS] / seconds[PLAIN],
        "peak_bytes": peaks[OURS],
        "seconds": seconds,
        "peaks": peaks,
        "floor_teraflops": operations / seconds[FLOOR] / 1e12,
        "not_installed": sorted(RIVALS.keys() - makers.keys()),
    }


def _peak(
    make: Callable[[Problem], Callable[[], object]], size: Size, device: torch.device
) -> int | None:
    """Return the most memory of a contender alone, the problem's tensors included."""
    if device.type != "cuda":
        return None
    step = make(Problem(size, device))
    peak: int | None = measured({"alone": step}, 1, device)["alone"]["peak_bytes"]
    del step
    released(device)
    return peak


def _agreement(size: Size, shapes: Shapes, device: torch.device) -> dict[str, Any]:
    """Compare values and gradients with float64, on numbers that were not timed.

    Plain autograd in the same dtype is compared too: its errors are those of the dtype.
    """
    fresh = torch.Generator(device=device).manual_seed(size.vocabulary + size.candidates)
    count = shapes.checked_tokens
    dtype = torch.bfloat16 if size.dtype == "bfloat16" else torch.float32
    features = torch.randn(count, size.hidden, device=device, generator=fresh).to(dtype)
    weight = torch.randn(size.vocabulary, size.hidden, device=device, generator=fresh)
    head = Head((weight * size.hidden**-0.5).to(dtype))
    shape = (count, size.candidates, size.entries)
    ids = torch.randint(size.vocabulary, shape, device=device, generator=fresh)
    weights = torch.rand(shape, device=device, generator=fresh)
    weights /= weights.sum(-1, keepdim=True)
    targets = SparseTargets(ids, weights, torch.zeros(shape[:2], device=device))
    exact = targets._replace(weights=weights.double(), entropy=targets.entropy.double())
    truth = _plain(features.double(), Head(head.weight.double()), exact)
    ours = _errors(_ours(features, head, targets), truth)
    plain = _errors(_plain(features, head, targets), truth)
    return {
        "error_of_values": ours[0],
        "error_of_gradients": ours[1],
        "autograd_error_of_values": plain[0],
        "autograd_error_of_gradients": plain[1],
        "error_of_cross_entropy": _cross_entropy_error(features, head, ids[:, 0, 0]),
    }


def _ours(features: Tensor, head: Head, targets: SparseTargets) -> tuple[Tensor, Tensor]:
    leaf = features.clone().requires_grad_()
    found = candidate_divergences(leaf, head, targets)
    found.matched(torch.zeros(len(leaf), dtype=torch.long, device=leaf.device)).sum().backward()
    assert leaf.grad is not None
    return found.values, leaf.grad


def _plain(features: Tensor, head: Head, targets: SparseTargets) -> tuple[Tensor, Tensor]:
    leaf = features.clone().requires_grad_()
    values = reference_divergences(leaf, head, targets)
    values[:, 0].sum().backward()
    assert leaf.grad is not None
    return values.detach(), leaf.grad


def _errors(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> list[float]:
    """Return the largest error of values and of gradients, each over the largest true one."""
    pairs = zip(found, truth, strict=True)
    return [float((one.double() - true).abs().max() / true.abs().max()) for one, true in pairs]


def _cross_entropy_error(features: Tensor, head: Head, labels: Tensor) -> float:
    ours = linear_cross_entropy(features, head, labels)
    logits = features.double() @ head.weight.double().T
    true = F.cross_entropy(logits, labels, reduction="sum")
    return float((ours.double() - true).abs() / true.abs())
