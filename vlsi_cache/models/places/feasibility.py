"""What a recipe asks of a model's loading, and cannot have: said before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import permutations
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int
from transformers import PreTrainedConfig, PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.binding.skeleton import kernel_arguments, make_skeleton
from vlsi_cache.models.loading.kinds import has_own_code
from vlsi_cache.models.loading.sources import model_errors
from vlsi_cache.models.places.arguments import device_keys
from vlsi_cache.models.places.parallel import validate_parallel
from vlsi_cache.models.places.quantization import validate_quantization
from vlsi_cache.recipe import AUTOMATIC, ModelSection, TeacherSection

__all__ = ["validate_loading"]


def validate_loading(section: ModelSection, config: PreTrainedConfig, loader: Any) -> None:
    """Refuse what cannot be had: kernels, devices, a plan, a package.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        config: the model's configuration.
        loader: the automatic class that would load the model.

    Raises:
        ModelError: something cannot be had here.
    """
    name = section.model or ""
    _validate_kernels(section, name)
    teacher = section if isinstance(section, TeacherSection) else None
    validate_quantization(config, teacher.quantization if teacher else {})
    spread = teacher and (teacher.tensor_parallel > 1 or isinstance(teacher.device_map, dict))
    skeleton = None
    if spread or _names_kernels(section) or not has_own_code(config):
        skeleton = _skeleton(section, config, loader)
    if teacher is None:
        return
    if teacher.tensor_parallel > 1:
        assert skeleton is not None
        validate_parallel(skeleton, config, teacher.tensor_parallel, name)
    _validate_memory(teacher)
    _validate_devices(teacher, skeleton)


def _validate_kernels(section: ModelSection, name: str) -> None:
    asked = "use_kernels" if section.use_kernels else None
    if "/" in (section.attn_implementation or ""):
        asked = f"attn_implementation {section.attn_implementation}"
    if asked is not None and find_spec("kernels") is None:
        raise ModelError(
            "kernels of the hub need the package kernels, which is not installed on this machine",
            where=name,
            found=asked,
            mend="pip install kernels",
        )


def _names_kernels(section: ModelSection) -> bool:
    return len(kernel_arguments(section)) > 1


def _skeleton(section: ModelSection, config: PreTrainedConfig, loader: Any) -> PreTrainedModel:
    try:
        with model_errors(section.model or "", "the model cannot be made with these settings"):
            return make_skeleton(config, loader, section)
    except ModelError as error:
        absent = isinstance(error.__cause__, ImportError)
        own = "attn_implementation and experts_implementation"
        raise ModelError(
            f"{error.what} on this machine" if absent else error.what,
            where=error.where,
            found=error.found,
            mend=f"Correct or leave out {own}"
            if _names_kernels(section)
            else f"Set {own} in the recipe, or mend config.json"
            if absent
            else "Copy the model's own config.json again, or update transformers",
        ) from error


def _validate_memory(teacher: TeacherSection) -> None:
    for device, most in (teacher.max_memory or {}).items():
        try:
            convert_file_size_to_int(most)
        except ValueError as error:
            raise ModelError(
                "this is not a size of memory",
                where=f"teacher.max_memory, {device}",
                expected="bytes, or text such as 70GiB",
                found=most,
            ) from error
    for device in device_keys(teacher.max_memory or {}):
        _validate_device(device, "teacher.max_memory")


def _validate_devices(teacher: TeacherSection, skeleton: PreTrainedModel | None) -> None:
    places = teacher.device_map
    if places is None or places in AUTOMATIC:
        return
    if not isinstance(places, dict):
        _validate_device(places, "teacher.device_map")
        return
    for place in device_keys(dict.fromkeys(places.values())):
        _validate_device(place, "teacher.device_map")
    assert skeleton is not None
    names = {name for name, _ in skeleton.named_modules()}
    weights = [name for name, _ in skeleton.named_parameters()]
    unknown = sorted(set(places) - names - set(weights))
    homeless = [
        name
        for name in weights
        if not any(name == place or not place or name.startswith(f"{place}.") for place in places)
    ]
    if unknown or homeless:
        problem = "names no part of the model" if unknown else "leaves out parts of the model"
        raise ModelError(
            f"the device map {problem}",
            where="teacher.device_map",
            found=", ".join((unknown or homeless)[:3]),
            mend="Name modules as model.named_modules() does, or write auto",
        )
    _validate_apart(places)


def _validate_apart(places: Mapping[str, int | str]) -> None:
    """Refuse an offloaded part that holds another, or lies in one: accelerate loads neither."""
    for outer, inner in permutations(places, 2):
        differ = places[outer] != places[inner] and "disk" in (places[outer], places[inner])
        if differ and (not outer or inner.startswith(f"{outer}.")):
            raise ModelError(
                "the device map names a part inside a part, one of them offloaded",
                where="teacher.device_map",
                found=f"{inner} inside {outer or 'the whole'}",
                mend="Name the parts of the outer one in its place",
            )


def _validate_device(device: int | str, where: str) -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator is not None else 0
    kind = "none" if accelerator is None else accelerator.type
    if device in ("cpu", "disk"):
        return
    try:
        found = (
            torch.device(kind if kind != "none" else "cuda", device)
            if isinstance(device, int)
            else torch.device(device)
        )
    except RuntimeError:
        found = None
    if found is None or found.type != kind or (found.index or 0) >= count:
        listing = f"0 to {count - 1}, " if count else ""
        raise ModelError(
            "there is no such device on this machine",
            where=where,
            expected=f"{listing}cpu or disk",
            found=device,
            mend="nvidia-smi lists the devices, and CUDA_VISIBLE_DEVICES hides some",
        )
