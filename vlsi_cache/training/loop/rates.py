"""Learning rates where the recipe names none: by the size of what trains, and by the batch.

Adam moves every weight by about its rate, so the rate that suits a model falls with its size. All
weights together follow weights^−0.713 (Li et al., Predictable Scale: Step Law, 2025). Single maps
D × D follow 1/D (Yang et al., Tensor Programs V, 2022). Both rise with √batch (Malladi et al., On
the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022). The constants are measured on
real models (docs/decisions/learning-rates.md).

A whole pretrained model, which fine-tuning trains, is measured instead (``first_step_rate``).
Adam's first step moves every weight by the rate, against the sign of its gradient. To first order
the loss then falls by rate × ‖gradient‖₁. Polyak's step size (Introduction to Optimization, 1987)
is the one that would take the loss to its least value, here 0: rate = loss / ‖gradient‖₁. Larger
models have a larger norm, and so have noisier batches, so the rate follows size and batch by
itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import nn

from vlsi_cache.errors import StageError
from vlsi_cache.phases import phase
from vlsi_cache.recipe import InteractionSection, Schedule
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import from_main_process
from vlsi_cache.training.samples.budget import collate_pieces
from vlsi_cache.training.sharding import whole

__all__ = [
    "FINAL",
    "TRAINED",
    "WARMUP",
    "adapter_rate",
    "finetuning_rate",
    "first_step_rate",
    "fresh_rate",
    "interaction_rates",
    "rate_factor",
    "samples_per_step",
]

logger = logging.getLogger(__name__)

WARMUP = 0.1
"""Fraction of the steps in which rates rise, where the recipe names no number of steps."""
FITTED = 0.2
"""Rate of verbalizers that begin at the closed form by the rate of those that do not. At the full
rate the first steps undo it at late taps (docs/decisions/closed-form-start.md)."""
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

_MOST_MEASURED: Final = 64
"""Most samples whose gradient is measured."""
_HIGHEST: Final = 1e-3
"""Adam's own default (Kingma and Ba, 2015): untrained models would get a higher rate."""


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


def fresh_rate(width: int, samples: int, *, fitted: bool = False) -> float:
    """Return the rate of maps D × D that start untrained: the verbalizers of stage one.

    Args:
        width: D, the hidden size of the model.
        samples: samples per optimizer step.
        fitted: whether they begin at the closed form.
    """
    rate, reference = _FRESH
    return (FITTED if fitted else 1.0) * rate * reference / width * _batch_factor(samples)


def interaction_rates(
    settings: InteractionSection, width: int, num_weights: int
) -> tuple[float, float]:
    """Return the default rates of what moves the student, and of its trained verbalizers.

    Args:
        settings: the stage. Without ``lora`` the blocks' own weights train.
        width: D, the hidden size of the student.
        num_weights: weights of its decoder blocks.
    """
    samples = samples_per_step(settings)
    if settings.lora is None:
        student = finetuning_rate(num_weights, samples)
    else:
        student = adapter_rate(width, settings.lora.alpha / settings.lora.rank, samples)
    if settings.verbalizer_learning_rate is not None:
        return student, settings.verbalizer_learning_rate
    return student, TRAINED * fresh_rate(width, samples)


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


def first_step_rate(
    module: StageModule,
    measured: Iterable[nn.Parameter],
    collate: Callable[[list[int]], dict[str, Any]],
    indices: np.ndarray[Any, Any],
    settings: Schedule,
    *,
    autocast: bool,
) -> float:
    """Return the loss of one optimizer step by the L1 norm of its gradient, at most 1e-3.

    Args:
        module: what will train. Its gradients are empty afterwards.
        measured: the parameters whose gradient counts.
        collate: indices of samples → the arguments of the module's forward.
        indices: the samples to choose from. Those of one step are taken, from all over the data.
        settings: the batch. Its own learning rate, if it names one, is returned unmeasured.
        autocast: whether the forward runs in bfloat16 autocast.

    Raises:
        StageError: no sample that is measured has a finite loss and gradient.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    chosen = _spread(indices, min(samples_per_step(settings), _MOST_MEASURED))
    batches = list(_batches(chosen, collate, settings))
    with phase("measuring the gradient, for the learning rate"):
        measure = partial(_measured_rate, module, list(measured), autocast=autocast)
        rate = measure(batches)
        if rate is None:
            # a step of few samples may have none that is sound
            tried = (chosen, _spread(indices, _MOST_MEASURED))
            found = (_sound([collate([index]) for index in some], measure) for some in tried)
            rate = measure(next(filter(None, found), [])[: len(chosen)])
        if rate is None:
            raise _no_rate()
        return rate


def _batches(
    chosen: list[int], collate: Callable[[list[int]], dict[str, Any]], settings: Schedule
) -> Iterator[dict[str, Any]]:
    """Yield the batches of one step."""
    size = settings.batch_size
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        yield from (batch for _, batch in collate_pieces(collate, some, settings.batch_tokens))


def _no_rate() -> StageError:
    return StageError(
        "no learning rate can be measured, because no sample has a finite loss and gradient",
        where="finetuning.learning_rate",
        found="not given",
        mend="Look for NaN in the weights that the stage begins with. float16 holds nothing above "
        "65504: if they are float16, set student.dtype: float32, or bfloat16",
    )


def _sound(
    samples: list[dict[str, Any]], measure: Callable[[list[dict[str, Any]]], float | None]
) -> list[dict[str, Any]]:
    """Return the samples whose rate can be measured."""
    sound = [sample for sample in samples if measure([sample]) is not None]
    logger.warning(
        "%d of %d samples are not measured, because their loss or gradient is not finite",
        len(samples) - len(sound),
        len(samples),
    )
    return sound


def _measured_rate(
    module: StageModule,
    measured: list[nn.Parameter],
    batches: list[dict[str, Any]],
    *,
    autocast: bool,
) -> float | None:
    """Return the rate, or None where loss or gradient is not finite, or nothing is measured."""
    if not batches:
        return None
    device = PartialState().device
    module.train()  # gradient checkpointing holds in this mode alone
    count = sum(len(batch["labels"]) for batch in batches)
    total = 0.0
    for batch in batches:
        inputs = send_to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = module(**inputs, num_items_in_batch=count)["loss"]
        loss.backward()
        total += float(loss.detach())
    gradients = [parameter.grad for parameter in measured if parameter.grad is not None]
    norm = sum(float(whole(gradient.abs().sum(dtype=torch.float32))) for gradient in gradients)
    module.zero_grad(set_to_none=True)
    module.collect()  # what the forward observed is no step's
    finite = math.isfinite(total) and math.isfinite(norm)
    rate = min(total / norm, _HIGHEST) if finite and norm > 0 else _HIGHEST
    return from_main_process(float(f"{rate:.2g}") if finite else None)


def _spread(indices: np.ndarray[Any, Any], count: int) -> list[int]:
    """Choose ``count`` of the indices, or all, evenly over the data."""
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)
    return [int(index) for index in indices[chosen]]


def _batch_factor(samples: int) -> float:
    return math.sqrt(min(samples, _LARGEST_BATCH) / _BATCH)
