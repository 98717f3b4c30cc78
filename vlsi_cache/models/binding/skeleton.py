"""A model without weights, from its configuration: what shows before any weight is read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from vlsi_cache.recipe import ModelSection

__all__ = ["kernel_arguments", "make_skeleton", "names_of"]


def make_skeleton(config: PreTrainedConfig, loader: Any, section: ModelSection) -> PreTrainedModel:
    """Make a model on the meta device, where weights take no memory.

    Args:
        config: the model's configuration.
        loader: the automatic class that would load the model.
        section: the recipe's ``teacher`` or ``student``.
    """
    with torch.device("meta"):
        model: PreTrainedModel = loader.from_config(
            copy.deepcopy(config), **kernel_arguments(section)
        )
    return model


def kernel_arguments(section: ModelSection) -> dict[str, Any]:
    """Return a section's arguments of a model's class, where they are not the default."""
    arguments: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    if section.attn_implementation is not None:
        arguments["attn_implementation"] = section.attn_implementation
    if section.experts_implementation is not None:
        arguments["experts_implementation"] = section.experts_implementation
    return arguments


def names_of(model: PreTrainedModel, part: object) -> list[str]:
    """Return the names of a module within a model."""
    named = model.named_modules(remove_duplicate=False)
    return [name for name, module in named if module is part]
