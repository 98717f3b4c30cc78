"""One pass over the vocabulary against plain autograd, two bare products, and other libraries.

One student tap runs forward and backward: N tokens of D features through a head of V rows, against
C candidate targets of S entries each, of which one is matched. The rivals from other libraries
take one dense teacher instead. They make its logits themselves from its features and head.

Roofline: the two products that no exact method can avoid take 2 · 2 · N · D · V operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import torch
from harness import (
    PrintedTable,
    benchmark,
    contenders,
    figures,
    in_fresh_process,
    median_seconds,
    peak_extra_bytes,
)
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives import SparseTargets, candidate_divergences, reference_divergences

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """Shape of the problem."""

    tokens: int = 1024
    hidden: int = 896
    vocabulary: int = 151_936
    candidates: int = 20
    entries: int = 32
    dtype: str = "float32"


QUICK = Size(tokens=256, hidden=256, vocabulary=32_000)


class Problem:
    """Tensors of one size on one device, the same for every contender."""

    def __init__(self, size: Size, device: torch.device) -> None:
        generator = torch.Generator(device=device).manual_seed(0)
        dtype = DTYPES[size.dtype]

        def normal(rows: int, spread: float) -> Tensor:
            empty = torch.empty(rows, size.hidden, device=device, dtype=dtype)
            return empty.normal_(std=spread, generator=generator)

        self.size = size
        self.device = device
        self.features = normal(size.tokens, 1.0).requires_grad_()
        self.head = Head(normal(size.vocabulary, size.hidden**-0.5))
        shape = (size.tokens, size.candidates, size.entries)
        ids = torch.randint(size.vocabulary, shape, device=device, generator=generator)
        weights = torch.rand(shape, device=device, generator=generator)
        weights /= weights.sum(-1, keepdim=True)
        self.targets = SparseTargets(ids, weights, torch.ones(shape[:2], device=device))

    def finish(self, loss: Tensor) -> Tensor:
        """Run the backward pass, and return the gradient that contenders must agree on."""
        self.features.grad = None
        loss.backward()
        assert self.features.grad is not None
        return self.features.grad


def one_pass(problem: Problem, candidates: int | None = None) -> Tensor:
    """Run ours."""
    targets = problem.targets.candidates(slice(candidates))
    found = candidate_divergences(problem.features, problem.head, targets)
    matched = found.values.mean(0).argmin()
    return problem.finish(found.matched(matched.expand(problem.size.tokens)).mean())


def plain_autograd(problem: Problem) -> Tensor:
    """Keep the logits: log-softmax, gather, backward."""
    found = reference_divergences(problem.features, problem.head, problem.targets)
    matched = found.detach().mean(0).argmin()
    return problem.finish(found.index_select(1, matched[None]).mean())


def two_products(problem: Problem) -> Callable[[], object]:
    """Do the arithmetic alone, into memory that exists already: logits, and the way back."""
    size = problem.size
    weight = problem.head.weight
    features = problem.features.detach()
    logits = torch.empty(size.tokens, size.vocabulary, device=problem.device, dtype=weight.dtype)
    back = torch.empty_like(features)

    def step() -> None:
        torch.mm(features, weight.T, out=logits)
        torch.mm(logits, weight, out=back)

    return step


def liger(problem: Problem) -> Callable[[], object]:
    """Run Liger's chunked JSD at beta 0, forward KL, without its cross-entropy to labels."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False
    )
    teacher, weight = _dense_teacher(problem)
    labels = torch.zeros(problem.size.tokens, dtype=torch.long, device=problem.device)
    return lambda: problem.finish(
        loss(problem.features, problem.head.weight, teacher, weight, labels)
    )


def trl(problem: Problem) -> Callable[[], object]:
    """Run TRL's divergence by tiles at beta 0, forward KL."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    teacher, weight = _dense_teacher(problem)
    return lambda: problem.finish(
        ChunkedDivergenceFunction.apply(
            problem.features, problem.head.weight, None, teacher, weight, None, 0.0
        )[0].mean()
    )


def _dense_teacher(problem: Problem) -> tuple[Tensor, Tensor]:
    """Make a teacher of the student's own width, which is the cheapest."""
    features = torch.randn_like(problem.features)
    return features.detach(), torch.randn_like(problem.head.weight) * problem.size.hidden**-0.5


RIVALS = {"liger-kernel LigerFusedLinearJSDLoss": liger, "trl ChunkedDivergenceFunction": trl}
CONTENDERS: dict[str, Callable[[Problem], Callable[[], object]]] = {
    "one pass": lambda problem: lambda: one_pass(problem),
    "one pass, 1 candidate": lambda problem: lambda: one_pass(problem, 1),
    "plain autograd": lambda problem: lambda: plain_autograd(problem),
    "two products": two_products,
    **RIVALS,
}


def installed(name: str) -> bool:
    """Return whether a rival's library is installed."""
    try:
        CONTENDERS[name](Problem(Size(4, 8, 16, 1, 2), torch.device("cpu")))
    except ImportError:
        return False
    return True


def peak_bytes(name: str, size: Size, device_name: str) -> int:
    """Return the most memory that a contender holds beyond the problem's own tensors."""
    device = torch.device(device_name)
    CONTENDERS[name](Problem(Size(4, 8, 16, 1, 2, size.dtype), device))()  # libraries load
    step = CONTENDERS[name](Problem(size, device))
    return peak_extra_bytes(step, device)


def validate_agreement(problem: Problem) -> float:
    """Return the largest difference of our gradient from plain autograd's, relative to the largest.

    Raises:
        SystemExit: The gradients differ by more than rounding.
    """
    ours = one_pass(problem).clone()
    plain = plain_autograd(problem)
    difference = ((ours - plain).abs().max() / plain.abs().max()).item()
    allowed = 1e-4 if ours.dtype == torch.float32 else 2e-2
    if not difference < allowed:
        raise SystemExit(f"gradients differ by {difference:.2g}: figures would mean nothing")
    return difference


@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
def measure(size: Size, device: torch.device, rounds: int, dtype: str) -> dict[str, Any]:
    """Measure every contender."""
    size = replace(size, dtype=dtype)
    names = [name for name in CONTENDERS if name not in RIVALS or installed(name)]
    peaks = {name: in_fresh_process(peak_bytes, name, size, device.type) for name in names}
    problem = Problem(size, device)
    difference = validate_agreement(problem)
    seconds = median_seconds({name: CONTENDERS[name](problem) for name in names}, rounds, device)
    ours = seconds["one pass"]
    operations = 4 * size.tokens * size.hidden * size.vocabulary
    return {
        "time_over_autograd": ours / seconds["plain autograd"],
        "memory_over_autograd": peaks["one pass"] / peaks["plain autograd"],
        "time_over_two_matmuls": ours / seconds["two products"],
        "time_20_over_1_candidates": ours / seconds["one pass, 1 candidate"],
        "rivals": [
            {
                "name": name,
                "time_over_ours": seconds[name] / ours,
                "memory_over_ours": peaks[name] / peaks["one pass"],
            }
            for name in names
            if name in RIVALS
        ],
        "gradient_difference": difference,
        "gigaflops_per_second": {
            name: operations / seconds[name] / 1e9 for name in ("one pass", "two products")
        },
        "seconds": seconds,
        "peak_extra_bytes": peaks,
        "size": asdict(size),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the contenders, then the ratios."""
    shape = ", ".join(f"{value} {name}" for name, value in result["size"].items())
    measured = contenders(
        f"one student tap, forward + backward, extra memory: {shape}",
        result["seconds"],
        result["peak_extra_bytes"],
        base="one pass",
    )
    ratios = (
        "time_over_autograd",
        "memory_over_autograd",
        "time_over_two_matmuls",
        "time_20_over_1_candidates",
        "gradient_difference",
    )
    return [measured, figures("ours", result, ratios)]


main = benchmark(measure, tables, full=Size(), quick=QUICK)

if __name__ == "__main__":
    main()
