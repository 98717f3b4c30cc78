"""What ``from_pretrained`` is given beside a name: kernels, places and quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from vlsi_cache.models.binding.skeleton import kernel_arguments, make_skeleton
from vlsi_cache.models.places.parallel import head_plan
from vlsi_cache.models.places.quantization import quantization_from, quantization_of
from vlsi_cache.recipe import ModelSection, TeacherSection

__all__ = ["device_keys", "is_placed", "loading_arguments", "loading_identity"]


def loading_arguments(
    section: ModelSection, config: PreTrainedConfig, loader: Any, device: torch.device
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that a recipe's section decides.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        config: the model's configuration.
        loader: the automatic class that loads the model.
        device: device of a model that lies on one.
    """
    arguments = kernel_arguments(section)
    if section.use_kernels:
        arguments["use_kernels"] = True
    if not isinstance(section, TeacherSection):
        return arguments
    if section.quantization:
        arguments["quantization_config"] = quantization_from(section.quantization)
    if section.tensor_parallel > 1:
        plan = head_plan(make_skeleton(config, loader, section))
        parallel = DistributedConfig(tp_size=section.tensor_parallel, tp_plan=plan)
        arguments["distributed_config"] = parallel
    elif section.device_map is not None:
        arguments["device_map"] = section.device_map
        if isinstance(section.device_map, dict):
            arguments["device_map"] = {
                name: _key(place) for name, place in section.device_map.items()
            }
        if section.max_memory is not None:
            arguments["max_memory"] = device_keys(section.max_memory)
    elif section.quantization or quantization_of(config):
        arguments["device_map"] = {"": device}  # quantised weights are made where they stay
    return arguments


def is_placed(arguments: Mapping[str, Any]) -> bool:
    """Report whether ``from_pretrained`` decides where the weights lie."""
    return "device_map" in arguments or "distributed_config" in arguments


def device_keys(by_device: Mapping[int | str, Any]) -> dict[int | str, Any]:
    """Return a mapping with GPUs' numbers as numbers: JSON and flags make text of them."""
    return {_key(device): value for device, value in by_device.items()}


def loading_identity(section: ModelSection) -> dict[str, Any]:
    """Return what of the loading changes a model's numbers, where it is not the default.

    Devices and processes are left out: the numbers that they change, they change by rounding.
    """
    fields = {
        "attn_implementation": section.attn_implementation,
        "experts_implementation": section.experts_implementation,
        "use_kernels": section.use_kernels,
        "compile": isinstance(section, TeacherSection) and section.compile,
    }
    return {name: value for name, value in fields.items() if value}


def _key(device: int | str) -> int | str:
    return int(device) if isinstance(device, str) and device.isdigit() else device
