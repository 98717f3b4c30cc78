"""Where a model's parts lie, when it is spread over devices, offloaded, split or quantised."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import (
    AlignDevicesHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

__all__ = ["bring_head_back", "device_of", "is_plain", "log_places", "stored_weights"]

logger = logging.getLogger(__name__)


def device_of(part: nn.Module, default: torch.device | None = None) -> torch.device:
    """Return the device on which a part computes, which is not where offloaded weights lie.

    Args:
        part: a part of a model.
        default: device of a part without weights, which computes on any. The CPU if None.
    """
    for module in part.modules():
        hook = _alignment(module)
        if hook is not None and hook.execution_device is not None:
            return torch.device(hook.execution_device)
        for weight in module.parameters(recurse=False):
            return weight.device
    return default or torch.device("cpu")


def is_plain(part: nn.Module) -> bool:
    """Report whether a part can be copied: ordinary floating weights, whole and on its device.

    Whoever spreads, splits or compiles a model gives its modules a forward of their own, which
    belongs to the original.
    """
    return all(
        type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta
        for weight in part.parameters()
    ) and not any("forward" in vars(module) for module in part.modules())


def stored_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by name, in order, each of them whole and with its values.

    Offloaded weights are read from where they lie. Weights that are split among processes are
    joined, one at a time, so all processes must read them. A quantised weight gives its parts.
    """
    modules = dict(model.named_modules())
    for name, weight in sorted(model.state_dict().items()):
        if weight.is_meta:
            weight = _offloaded(modules, name)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        flatten = getattr(weight, "__tensor_flatten__", None)
        if flatten is None:
            yield name, weight
            continue
        parts, _ = flatten()
        for part in sorted(parts):
            yield f"{name}.{part}", getattr(weight, part)


def bring_head_back(model: PreTrainedModel) -> None:
    """Load the head to its device if it is offloaded: every token of every tap goes through it."""
    untyped: Any = model
    output = untyped.get_output_embeddings()
    if output is None or not any(weight.is_meta for weight in output.parameters()):
        return
    hook = _alignment(output)
    assert hook is not None  # which alone knows where the weights are
    assert hook.weights_map is not None
    names = [name for name, _ in output.named_parameters(recurse=False)]
    weights = {name: hook.weights_map[name] for name in names}
    remove_hook_from_module(output)
    for name, weight in weights.items():
        set_module_tensor_to_device(output, name, hook.execution_device, value=weight)
    add_hook_to_module(output, AlignDevicesHook(hook.execution_device))
    logger.warning(
        "the head is kept on %s, although the device map offloads it: all taps read through it",
        torch.device(hook.execution_device),
    )


def log_places(model: PreTrainedModel) -> None:
    """Log how much of a spread model lies where."""
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    counts = Counter(str(_named(place)) for place in places.values())
    listing = ", ".join(f"{count} on {place}" for place, count in counts.items())
    if counts:
        logger.info("parts of the model: %s", listing)
    if "disk" in counts or ("cpu" in counts and len(counts) > 1):
        logger.warning("parts of the model are offloaded, and are fetched for every batch")


def _named(place: Any) -> Any:
    return place if place == "disk" else torch.device(place)


def _alignment(module: nn.Module) -> AlignDevicesHook | None:
    hook = getattr(module, "_hf_hook", None)
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((one for one in hooks if isinstance(one, AlignDevicesHook)), None)


def _offloaded(modules: dict[str, nn.Module], name: str) -> Tensor:
    """Read an offloaded weight by the hook of the nearest module above it that fetches weights."""
    owner, _, own = name.rpartition(".")
    while True:
        hook = _alignment(modules[owner])
        if hook is not None and hook.offload and hook.weights_map is not None:
            found: Tensor = hook.weights_map[own]
            return found
        if not owner:
            raise LookupError(f"{name} lies nowhere")
        owner, _, last = owner.rpartition(".")
        own = f"{last}.{own}"
