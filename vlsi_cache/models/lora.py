"""LoRA on every linear map of the decoder blocks, and on experts fused into one parameter."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from vlsi_cache.errors import ModelError, first_line
from vlsi_cache.models.binding.trace import (
    probe_inputs,
    probe_logits,
    removing,
    unbindable,
    undisturbed,
)
from vlsi_cache.models.decoder import Decoder
from vlsi_cache.recipe import LoraSection

__all__ = ["LoraReach", "adapt", "expert_names", "linear_names", "lora_config", "lora_reach"]

logger = logging.getLogger(__name__)

# State-space mixers (Mamba) do not call these maps as modules. They read the weights directly, in
# fused kernels or products, so an adapter there would have no effect. peft refuses the last one.
_STATE_SPACE_PARAMETERS = frozenset({"A_log", "D"})
_READ_DIRECTLY = frozenset({"x_proj", "dt_proj", "out_proj"})

_PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)

_MOST_NAMED = 3
_LEAST_NAMED = 0.01


@dataclass(frozen=True, slots=True)
class LoraReach:
    """How much of the blocks the adapters change."""

    share: float
    """Share of the blocks' weights."""
    largest_missed: dict[str, float]
    """Share of the largest matrices without an adapter, by class and name."""

    def __str__(self) -> str:
        line = f"LoRA reaches {self.share:.0%} of the blocks' weights"
        named = [f"{name} ({share:.0%})" for name, share in self.largest_missed.items()]
        return f"{line}, all but {', '.join(named)}" if named else line


def adapt(decoder: Decoder, section: LoraSection, seed: int) -> PeftModel:
    """Put adapters on the decoder's blocks, and log the share of the weights that they reach.

    Raises:
        ModelError: the blocks hold no linear maps, or the adapted model does not run.
    """
    config = lora_config(
        decoder,
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        experts=section.experts,
    )
    logger.info("%s", lora_reach(decoder, config))
    model = decoder.model
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a deprecated name: nothing a user can mend
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        try:
            with _targets_as_they_are(model.config):
                adapted: PeftModel = get_peft_model(model, config)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unbindable(
                model,
                "LoRA cannot be put on the blocks",
                "blocks that peft can adapt",
                found=first_line(error),
                mend="Set interaction.lora: null, or interaction.lora.experts: false",
            ) from error
    if not decoder.is_empty:
        with undisturbed(adapted):
            probe_logits(model, probe_inputs(model))
    return adapted


@contextmanager
def _targets_as_they_are(config: PreTrainedConfig) -> Iterator[None]:
    """Keep peft from renaming targets.

    It takes maps like a shared expert's `up_proj` for experts of an older layout, by the model's
    type, and would leave them without adapters.
    """
    own = vars(config)  # hides the class's, for a moment
    before = own.get("model_type")
    own["model_type"] = ""
    try:
        yield
    finally:
        del own["model_type"]
        if before is not None:
            own["model_type"] = before


def lora_config(
    decoder: Decoder, *, rank: int, alpha: int, dropout: float = 0.0, experts: bool = True
) -> LoraConfig:
    """LoRA of one rank on `linear_names` and `expert_names` (VLsI, CVPR 2025: rank = alpha = 64).

    peft cannot put dropout before the adapter of a parameter. With dropout, experts get none.

    Raises:
        ModelError: the blocks hold no linear maps.
    """
    names = linear_names(decoder)
    parameters = expert_names(decoder) if experts and not dropout else []
    if not names and not parameters:
        raise ModelError(
            "decoder blocks hold no linear maps for LoRA", where=type(decoder.model).__name__
        )
    # GPT-2 keeps its weights transposed, and peft warns unless the flag says so.
    transposed = bool(names) and isinstance(decoder.model.get_submodule(names[0]), Conv1D)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        target_parameters=parameters or None,
        fan_in_fan_out=transposed,
    )


def linear_names(decoder: Decoder) -> list[str]:
    """Full names, within `decoder.model`, of the linear maps in its blocks, in model order.

    The vision tower, the projector and the head are not among them.
    """
    if decoder.maps is not None:
        return list(decoder.maps)
    candidates: dict[str, nn.Module] = {}
    for name, part in _inside(decoder):
        skipped = _READ_DIRECTLY if _is_state_space(part) else frozenset()
        candidates |= {
            f"{name}.{child_name}": child
            for child_name, child in part.named_children()
            if isinstance(child, (nn.Linear, Conv1D)) and child_name not in skipped
        }
    linear = _linear_in_effect(decoder, candidates.values())
    return [name for name, part in candidates.items() if part in linear]


def expert_names(decoder: Decoder) -> list[str]:
    """Full names of the parameters in the blocks that hold the matrices of many experts."""
    return [
        f"{name}.{parameter_name}"
        for name, part in _inside(decoder)
        if not isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        for parameter_name, parameter in part.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1 and parameter.is_floating_point()
    ]


def _inside(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside the blocks with their full names."""
    inside = {id(part) for part in decoder.blocks.modules()}
    return ((name, part) for name, part in decoder.model.named_modules() if id(part) in inside)


def _linear_in_effect(decoder: Decoder, parts: Iterable[nn.Module]) -> set[nn.Module]:
    """Keep the maps that give the product of their input and weight.

    A subclass may have a forward of its own. Falcon's is the product, Llama 4's router returns a
    tuple, and others multiply in groups. One pass shows which.
    """
    parts = list(parts)
    linear = {part for part in parts if type(part).forward in _PLAIN_FORWARDS}

    def compare(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        product = isinstance(output, Tensor) and args[0].shape[-1] == part.in_features
        if product and _is_product(part, args[0], output):
            linear.add(part)

    others = [part for part in parts if part not in linear]
    if others:
        with (
            undisturbed(decoder.model),
            removing([part.register_forward_hook(compare) for part in others]),
        ):
            probe_logits(decoder.model, probe_inputs(decoder.model))
    return linear


def _is_product(part: Any, features: Tensor, output: Tensor) -> bool:
    product = F.linear(features.to(part.weight.dtype), part.weight, part.bias)
    tolerance = 16 * torch.finfo(product.dtype).eps * float(product.abs().max())
    return product.shape == output.shape and bool((product - output).abs().max() <= tolerance)


def _is_state_space(part: nn.Module) -> bool:
    return {name for name, _ in part.named_parameters(recurse=False)} >= _STATE_SPACE_PARAMETERS


def lora_reach(decoder: Decoder, config: LoraConfig) -> LoraReach:
    """Count the weights of the blocks that an adapter changes, and name the largest others."""
    model = decoder.model
    targets = [f"{name}.weight" for name in config.target_modules or ()]
    targets += config.target_parameters or ()
    reached = {id(weight): weight for weight in map(model.get_parameter, targets)}
    total = sum(weight.numel() for weight in decoder.blocks.parameters())
    missed = Counter[str]()
    for part in decoder.blocks.modules():
        for name, weight in part.named_parameters(recurse=False):
            if id(weight) not in reached and weight.ndim > 1:
                missed[f"{type(part).__name__}.{name}"] += weight.numel()
    largest = {
        name: size / total
        for name, size in missed.most_common(_MOST_NAMED)
        if size / total >= _LEAST_NAMED
    }
    return LoraReach(sum(weight.numel() for weight in reached.values()) / total, largest)
