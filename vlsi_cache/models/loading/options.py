"""Options of a processor: whether it knows them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin

from vlsi_cache.errors import ModelError

__all__ = ["current_options", "validate_options", "validate_patches", "validate_pixels"]

# Arguments of a call. They are not settings, although image processors list them beside these.
_OF_CALLS = frozenset(
    {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
)
_BOUNDS = ("min_pixels", "max_pixels")
_PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Options that a model's vision tower decides, with its own names of them."""
_TOKENIZER_SETTINGS = frozenset({"add_bos_token", "add_eos_token", "model_max_length"})


def validate_options(processor: Any, options: Mapping[str, Any], *, where: str) -> None:
    """Refuse options that a processor does not know. transformers would ignore them.

    Args:
        processor: the processor, or the tokenizer of a text model.
        options: the options by name.
        where: name of the model, for errors.

    Raises:
        ModelError: there are unknown options. The error names all of them.
    """
    known = _known(processor)
    unknown = sorted(set(options) - known)
    if unknown:
        near = sorted({name for one in unknown for name in get_close_matches(one, known)})
        raise ModelError(
            "the processor does not know these options",
            where=where,
            expected=", ".join(near or sorted(known)),
            found=", ".join(unknown),
            mend="Correct or remove them in teacher.processor and student.processor",
        )


def validate_patches(options: Mapping[str, Any], config: PreTrainedConfig, *, where: str) -> None:
    """Refuse patches of another size than the model's own. It could not read a picture.

    Args:
        options: the options by name.
        config: the model's configuration.
        where: name of the model, for errors.

    Raises:
        ModelError: an option differs from what the configuration says of its vision tower.
    """
    vision = getattr(config, "vision_config", None)
    given = [name for name in _PATCHES if type(options.get(name)) is int]
    own = {name: getattr(vision, _PATCHES[name], None) for name in given}
    wrong = {name: value for name, value in own.items() if value not in (None, options[name])}
    if wrong:
        raise ModelError(
            "the model does not take the images as its processor prepares them",
            where=where,
            expected=", ".join(f"{name} {value!r}" for name, value in wrong.items()),
            found=", ".join(f"{name} {options[name]!r}" for name in wrong),
            mend="Take what changes patches or tokens of an image out of teacher.processor and "
            "student.processor",
        )


def validate_pixels(options: Mapping[str, Any], *, where: str) -> None:
    """Refuse bounds of pixels that no picture can have. transformers fails late, or not at all.

    Args:
        options: the options by name.
        where: name of the model, for errors.

    Raises:
        ModelError: a bound is not a positive number, or the least is more than the most.
    """
    bounds = {name: options[name] for name in _BOUNDS if options.get(name) is not None}
    wrong = [name for name, value in bounds.items() if type(value) is not int or value <= 0]
    if wrong or (len(bounds) == len(_BOUNDS) and bounds[_BOUNDS[0]] > bounds[_BOUNDS[1]]):
        raise ModelError(
            "the processor cannot have these bounds of pixels",
            where=where,
            expected="whole numbers above 0, min_pixels at most max_pixels",
            found=", ".join(f"{name} {value!r}" for name, value in bounds.items()),
            mend="Correct them in teacher.processor and student.processor",
        )


def current_options(processor: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in their current spelling.

    Qwen's ``min_pixels`` and ``max_pixels`` are edges of ``size`` by now. Under their old names,
    each call of the processor would warn of them.
    """
    current = dict(options)
    size = getattr(getattr(processor, "image_processor", None), "size", None)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    given = {edges[name]: current.pop(name) for name in edges if name in current}
    if given and size is not None:
        saved = {edge: size[edge] for edge in edges.values() if size.get(edge) is not None}
        current["size"] = {**saved, **current.get("size", {}), **given}
    return current if size is not None else dict(options)


def _known(processor: Any) -> set[str]:
    named = {
        name
        for name, value in processor.__dict__.items()
        if name.endswith("_token") and isinstance(value, str)
    }
    known = {"chat_template"} | named | _TOKENIZER_SETTINGS
    if isinstance(processor, ProcessorMixin):
        parts = set(processor.get_attributes())
        known |= set(inspect.signature(type(processor).__init__).parameters) - parts
        images = getattr(getattr(processor, "image_processor", None), "valid_kwargs", None)
        known |= set(getattr(images, "__annotations__", ())) - _OF_CALLS
    return known - {"self", "args", "kwargs"}
