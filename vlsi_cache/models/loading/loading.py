"""Loading models. Every error is one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.binding.skeleton import make_skeleton
from vlsi_cache.models.loading.adapters import (
    Adapter,
    find_adapter,
    merge_adapter,
    validate_adapter,
    warn_of_adapter_files,
    weights_beside,
)
from vlsi_cache.models.loading.completeness import (
    LoadReport,
    preview_load,
    validate_complete,
    warn_of_unread,
)
from vlsi_cache.models.loading.configs import load_config, load_config_of
from vlsi_cache.models.loading.kinds import loader_of, validate_head
from vlsi_cache.models.loading.smallfiles import validate_config_files
from vlsi_cache.models.loading.sources import base_of, find_folder, loaded_folder, model_errors
from vlsi_cache.models.loading.stored import (
    validate_stored,
    warn_of_two_copies,
    warn_of_unread_code,
)
from vlsi_cache.models.loading.tying import validate_tied, validate_tied_rows
from vlsi_cache.models.loading.weightfiles import find_weight_files, is_readable, read_headers
from vlsi_cache.models.places.arguments import is_placed, loading_arguments
from vlsi_cache.models.places.devices import bring_head_back, is_plain, log_places
from vlsi_cache.recipe import ModelSection

__all__ = ["load_model", "preview_weights", "sketch_model"]

logger = logging.getLogger(__name__)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    revision: str | None = None,
    section: ModelSection | None = None,
) -> PreTrainedModel:
    """Load an image-text-to-text model, or a causal language model if it sees no images.

    Weights must be safetensors, and all of them must be in the checkpoint. transformers would fill
    gaps with random numbers and go on.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        dtype: a floating dtype of torch by name (`bfloat16`), or `auto` for the checkpoint's own.
        device: device of the whole model.
        revision: branch, tag or commit on the hub.
        section: the recipe's ``teacher`` or ``student``, for kernels, places and quantisation.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it. The model is of
            another kind. Weights are missing, pickled, damaged or of other shapes. The dtype is
            unknown.
    """
    _validate_dtype(dtype, name)
    section = section or ModelSection()
    adapter = find_adapter(find_folder(name, revision))
    config = load_config(name, revision=revision, trust=section.trust_remote_code)
    with model_errors(name, "the model cannot be made with these settings"):
        loader = loader_of(config, name)
        arguments = loading_arguments(section, config, loader, torch.device(device))
    base, base_revision = validate_files(name, config, revision=revision)
    with weights_beside(adapter, name) as source:
        arguments |= {"dtype": dtype, "revision": base_revision}
        model: Any = _load_weights(source, base, config, arguments)
    model.config.name_or_path = name
    if adapter is not None:
        model = _merged(model, adapter)
    return _placed(model, arguments, device)


def sketch_model(section: ModelSection) -> PreTrainedModel:
    """Make the model that ``load_model`` would load, without its weights.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it.
    """
    name = section.model or ""
    config = load_config_of(section)
    _return_named_outputs(config)
    model = make_skeleton(config, loader_of(config, name), section)
    model.config.name_or_path = name
    model.eval()
    return model


def _placed(
    model: Any, arguments: Mapping[str, Any], device: torch.device | str
) -> PreTrainedModel:
    if is_placed(arguments):
        bring_head_back(model)
        log_places(model)
    else:
        model = model.to(device)
    placed: PreTrainedModel = model.eval()
    return placed


def validate_files(
    name: str, config: PreTrainedConfig, *, revision: str | None = None
) -> tuple[str, str | None]:
    """Refuse another kind of model, and weights whose files are not sound.

    Returns:
        The model that holds the weights, and its revision.

    Raises:
        ModelError: as in ``load_model``.
    """
    adapter = find_adapter(find_folder(name, revision))
    if adapter is not None:
        validate_adapter(adapter)
    base, revision = base_of(name, revision)
    loader_of(config, base)
    folder = find_folder(base, revision)
    if folder is not None:
        weights = read_headers(find_weight_files(folder, base, config))
        validate_head(config, weights, base)
    return base, revision


def preview_weights(
    name: str, config: PreTrainedConfig, *, revision: str | None = None
) -> LoadReport | None:
    """Refuse a model that cannot be loaded, as far as the headers of its weights show.

    Returns:
        What loading will report. None if it is not known before.

    Raises:
        ModelError: as in ``load_model``.
    """
    base, revision = validate_files(name, config, revision=revision)
    folder = find_folder(base, revision)
    if folder is None:
        return None
    weights = read_headers(find_weight_files(folder, base, config))
    report = preview_load(config, weights, base)
    if report is not None:
        validate_complete(report, base)
        if report.ties_head:
            validate_tied_rows(folder, weights, base)
    return report


def _merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    if not is_plain(model):
        raise ModelError(
            "an adapter is merged into whole, unquantised weights alone",
            where=adapter.folder,
            found="a base that is quantised, offloaded, or spread over processes or devices",
            mend="Merge it first: merge_and_unload() of peft, then save_pretrained",
        )
    return merge_adapter(model, adapter)


def _load_weights(
    source: str, name: str, config: PreTrainedConfig, arguments: Mapping[str, Any]
) -> PreTrainedModel:
    loader = loader_of(config, name)
    _return_named_outputs(config)
    with model_errors(name, "the model's weights cannot be loaded"):
        model, report = loader.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            # transformers then reports wrong shapes like missing weights, and both are refused.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **arguments,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the hub repository holds an adapter, which is merged from a folder alone",
            where=name,
            mend=f"Download it (hf download {name} --local-dir FOLDER), and give the folder",
        )
    found = LoadReport.of(report)
    validate_complete(found, name)
    warn_of_unread(found, name)
    folder = loaded_folder(source, config)
    if folder is not None:
        validate_config_files(folder)  # a hub's generation_config.json came with the weights
    if folder is not None and is_readable(folder):
        weights = read_headers(find_weight_files(folder, name, config))
        validate_stored(weights, name, config, found.unread)
        warn_of_two_copies(folder, name)
    warn_of_unread_code(config, name)
    if Path(name).is_dir():
        warn_of_adapter_files(Path(name))
    validate_tied(model, name)
    return model  # type: ignore[no-any-return]


def _return_named_outputs(config: PreTrainedConfig) -> None:
    """Undo ``return_dict: false``, under which a model gives tuples to itself and to others."""
    config.return_dict = True
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            _return_named_outputs(inner)


def _validate_dtype(dtype: str, name: str) -> None:
    found = getattr(torch, dtype, None)
    if dtype == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return
    raise ModelError(
        "unknown dtype",
        where=name,
        expected="auto, float32, bfloat16 or float16",
        found=dtype,
    )
