"""Learning rates where the recipe names none: by the size of what trains, and by the batch.

Adam moves every weight by about its rate, so the rate that suits a model falls with its size. All
weights together follow weights^−0.713 (Li et al., Predictable Scale: Step Law, 2025). Single maps
D × D follow 1/D (Yang et al., Tensor Programs V, 2022). Both rise with √batch (Malladi et al., On
the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022). The constants are measured on
real models (docs/decisions/learning-rates.md).
"""

from __future__ import annotations

import math

from accelerate import PartialState

from vlsi_cache.recipe import Schedule

__all__ = [
    "FINAL",
    "TRAINED",
    "WARMUP",
    "adapter_rate",
    "finetuning_rate",
    "fresh_rate",
    "rate_factor",
    "samples_per_step",
]

WARMUP = 0.1
"""Fraction of the steps in which rates rise, where the recipe names no number of steps."""
TRAINED = 0.1
"""Rate of verbalizers that stage one has trained by the rate at which it trains them."""
FINAL = 0.01
"""Last rate by peak rate, where the recipe names no last rate. The paper's 1e-4 to 1e-6."""

_BATCH = 8
"""Samples per step for which the constants hold."""
_LARGEST_BATCH = 128
"""Larger batches take the rate of this one: beyond, gradients are no longer mostly noise."""
_FINETUNING = 5e-5, 106e6
_STEP_LAW = -0.713
_ADAPTERS = 6e-4, 576
_FRESH = 1e-3, 576


def samples_per_step(schedule: Schedule) -> int:
    """Count the samples of one optimizer step, over all processes."""
    num_processes: int = PartialState().num_processes
    return schedule.batch_size * schedule.gradient_accumulation * num_processes


def finetuning_rate(num_weights: int, samples: int) -> float:
    """Return the rate at which a whole pretrained model trains.

    Args:
        num_weights: weights of the model's decoder blocks, without embeddings.
        samples: samples per optimizer step.
    """
    rate, reference = _FINETUNING
    return rate * math.pow(num_weights / reference, _STEP_LAW) * _batch_factor(samples)


def adapter_rate(width: int, scale: float, samples: int) -> float:
    """Return the rate of LoRA adapters.

    Args:
        width: D, the hidden size of the model.
        scale: alpha / rank, by which the adapters count.
        samples: samples per optimizer step.
    """
    rate, reference = _ADAPTERS
    return rate * reference / width / scale * _batch_factor(samples)


def fresh_rate(width: int, samples: int) -> float:
    """Return the rate of maps D × D that start untrained: the verbalizers of stage one.

    Args:
        width: D, the hidden size of the model.
        samples: samples per optimizer step.
    """
    rate, reference = _FRESH
    return rate * reference / width * _batch_factor(samples)


def rate_factor(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Return a step's rate by its peak: a linear rise, then a cosine.

    Args:
        step: 0-based index of the step.
        warmup: steps of the rise. The first of them has a rate above 0, so that it trains.
        steps: all steps.
        final: the factor after the last step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = float(step - warmup) / float(max(1, steps - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(0, cosine * (1 - final) + final)


def _batch_factor(samples: int) -> float:
    return math.sqrt(min(samples, _LARGEST_BATCH) / _BATCH)
