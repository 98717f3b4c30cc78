"""The final norm and the head, with which head(norm(hidden)) equals a model's logits.

Shape suffixes: T sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.models.binding.head import Head, LogitTransform
from vlsi_cache.models.binding.trace import Trace, block_output, probe_logits, removing, unbindable
from vlsi_cache.models.loading.configs import text_config

__all__ = ["find_norm_and_head"]

RAMP = 80.0
"""Raw logits from -80 to 80 pass through the model's transform, far beyond any soft-cap in use."""


def find_norm_and_head(model: PreTrainedModel, output: Any, trace: Trace) -> tuple[nn.Module, Head]:
    """Find the final norm and the head, and validate that head(norm(hidden)) equals the logits.

    Raises:
        ModelError: no module between the last block and the head gives the model's own logits,
            with any transform that the configuration names.
    """
    norm = _final_norm(model, trace)
    head = Head(output.weight, getattr(output, "bias", None), _transform(model, output, trace))
    logits = head.logits(block_output(norm(trace.last_hidden)))
    if logits.shape != trace.logits.shape or not _equal(logits, trace.logits):
        raise unbindable(
            model,
            "head(norm(hidden)) does not equal the logits that the model returns",
            "equal logits on a traced batch",
        )
    return norm, head


def _final_norm(model: PreTrainedModel, trace: Trace) -> nn.Module:
    # An inactive dropout reads the same tensor as the norm after it, so every reader is tried.
    for reader in (*trace.readers, nn.Identity()):
        features = block_output(reader(trace.last_hidden))
        if features.shape == trace.head_input.shape and _equal(features, trace.head_input):
            return reader
    readers = ", ".join(type(reader).__name__ for reader in trace.readers) or "none"
    raise unbindable(
        model,
        "the final norm was not found",
        "a module that turns the last block's output into the head's input",
        found=f"{readers} reading the last block's output",
    )


def _transform(model: PreTrainedModel, output: nn.Module, trace: Trace) -> LogitTransform:
    """The transform that the model applies to a ramp of raw logits in place of its own.

    A natural batch does not show whether there is a soft-cap of 30, because its logits are small.
    """

    def replace(_: nn.Module, __: tuple[Any, ...], raw: Tensor) -> Tensor:
        ramps.append(torch.linspace(-RAMP, RAMP, raw.shape[-1], device=raw.device).expand_as(raw))
        return ramps[-1]

    ramps: list[Tensor] = []
    with removing([output.register_forward_hook(replace)]):
        logits = probe_logits(model, trace.inputs)
    for transform in _candidates(model):
        if _equal(transform.apply(ramps[-1]), logits):
            return transform
    named = ", ".join(f"{name} = {value}" for name, value in _settings(model).items())
    raise unbindable(
        model,
        "what follows the head is neither a scale nor a soft-cap named in the configuration",
        "logit_scale, logits_scaling, lm_head_multiplier or final_logit_softcapping, or nothing",
        found=named or "none of them, yet the logits are not the head's product",
    )


_SCALES = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "output_multiplier_scale",
)
_SOFTCAPS = (
    "final_logit_softcapping",
    "final_logit_soft_cap",
    "logits_soft_cap",
    "output_logit_soft_cap",
)


def _settings(model: PreTrainedModel) -> dict[str, float]:
    found: dict[str, float] = {}
    for config in (model.config, text_config(model)):
        for name in (*_SCALES, *_SOFTCAPS):
            value = getattr(config, name, None)
            if isinstance(value, (int, float)) and value > 0:
                found[name] = float(value)
    return found


def _candidates(model: PreTrainedModel) -> Iterator[LogitTransform]:
    settings = _settings(model)
    scales = [1.0]
    for name in _SCALES:
        if name in settings:
            # Families multiply or divide by a setting of the same name. The ramp shows which.
            scales += [settings[name], 1.0 / settings[name]]
    caps = [None, *(settings[name] for name in _SOFTCAPS if name in settings)]
    for scale, softcap in product(scales, caps):
        yield LogitTransform(scale, softcap)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree up to a few roundings of the coarser dtype at the largest value."""
    coarsest = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps)
    right = right.float()
    left = left.float().to(right.device)
    largest = float(right.abs().max())
    return bool((left - right).abs().max() <= max(8 * coarsest, 1e-5) * max(largest, 1e-6))
