"""LoRA on every linear map of the decoder blocks, under names that peft understands."""

from __future__ import annotations

from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlsi_cache.errors import ModelError
from vlsi_cache.models.decoder import Decoder

__all__ = ["linear_names", "lora_config"]

# State-space mixers (Mamba) do not call these maps as modules. They read the weights directly, in
# fused kernels or products, so an adapter there would have no effect. peft refuses the last one.
_STATE_SPACE_PARAMETERS = frozenset({"A_log", "D"})
_READ_DIRECTLY = frozenset({"x_proj", "dt_proj", "out_proj"})


def linear_names(decoder: Decoder) -> list[str]:
    """Full names, within `decoder.model`, of the linear maps in its blocks, in model order.

    The vision tower, the projector and the head are not among them. Neither are experts fused into
    one parameter, which are not linear modules.
    """
    inside = {id(part) for part in decoder.blocks.modules()}
    names = []
    for name, part in decoder.model.named_modules():
        if id(part) not in inside:
            continue
        skipped = _READ_DIRECTLY if _is_state_space(part) else frozenset()
        names += [
            f"{name}.{child_name}"
            for child_name, child in part.named_children()
            if isinstance(child, (nn.Linear, Conv1D)) and child_name not in skipped
        ]
    return names


def lora_config(decoder: Decoder, *, rank: int, alpha: int, dropout: float = 0.0) -> LoraConfig:
    """LoRA of one rank on all of `linear_names` (VLsI, CVPR 2025: rank = alpha = 64).

    Raises:
        ModelError: the blocks hold no linear maps.
    """
    names = linear_names(decoder)
    if not names:
        raise ModelError(
            "decoder blocks hold no linear maps for LoRA", where=type(decoder.model).__name__
        )
    # GPT-2 keeps its weights transposed, and peft warns unless the flag says so.
    transposed = isinstance(decoder.model.get_submodule(names[0]), Conv1D)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
    )


def _is_state_space(part: nn.Module) -> bool:
    return {name for name, _ in part.named_parameters(recurse=False)} >= _STATE_SPACE_PARAMETERS
