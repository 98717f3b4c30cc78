"""Loading models and processors. Every error is one line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlsi_cache.errors import ModelError, first_line
from vlsi_cache.models.options import current_options, validate_options
from vlsi_cache.recipe import ModelSection

__all__ = [
    "load_config",
    "load_model",
    "load_processor",
    "load_processor_of",
    "text_config",
    "validate_files",
]

_CONFIG = "config.json"
_HUB_SECONDS = 10.0


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's language side. For a text model, it is the whole one."""
    return model.config.get_text_config(decoder=True)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> PreTrainedModel:
    """Load an image-text-to-text model, or a causal language model if it sees no images.

    Weights must be safetensors, and all of them must be in the checkpoint. transformers would fill
    gaps with random numbers and go on.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        dtype: a floating dtype of torch by name (`bfloat16`), or `auto` for the checkpoint's own.
        device: device of the whole model.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it. The model is of
            another kind. Weights are missing, pickled, damaged or of other shapes. The dtype is
            unknown.
    """
    _validate_dtype(dtype, name)
    folder = _find(name, revision)
    config = _load_config(name, folder, revision)
    if folder is not None:
        _validate_safetensors(folder, name)
    model: Any = _load_weights(
        name, config, dtype, revision
    )  # transformers leaves `to` without types
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def load_config(name: str, *, revision: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration alone.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it.
    """
    return _load_config(name, _find(name, revision), revision)


def validate_files(name: str, config: PreTrainedConfig, *, revision: str | None = None) -> None:
    """Refuse a model that cannot be loaded, as far as it shows without the weights.

    Raises:
        ModelError: as in ``load_model``.
    """
    folder = _find(name, revision)
    if folder is not None:
        _validate_safetensors(folder, name)
    _loader(config, name)


def load_processor_of(section: ModelSection) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load the processor that a recipe's ``teacher`` or ``student`` names, with its options.

    Raises:
        ModelError: as `load_processor`.
    """
    return load_processor(section.model or "", revision=section.revision, options=section.processor)


def load_processor(
    name: str, *, revision: str | None = None, options: Mapping[str, Any] | None = None
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load the processor of an image model, or the tokenizer of a text model.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        options: settings of the processor that take the place of the saved ones.

    Raises:
        ModelError: there is no such folder or name, or neither a processor nor a tokenizer in it.
            The processor does not know an option, or refuses its value.
    """
    _find(name, revision)
    with _model_errors(name, "the processor cannot be loaded"):
        load: Any = AutoProcessor.from_pretrained
        processor = load(name, trust_remote_code=False, revision=revision)
    if options:
        validate_options(processor, options, where=name)
        current = current_options(processor, options)
        with _model_errors(name, "the processor refuses the options"):
            processor = load(name, trust_remote_code=False, revision=revision, **current)
    if not isinstance(processor, (ProcessorMixin, PreTrainedTokenizerBase)):
        raise ModelError(
            "no processor or tokenizer was found",
            where=name,
            expected="a processor with a tokenizer, or a tokenizer",
            found=type(processor).__name__,
            mend="Save the processor beside the model with save_pretrained",
        )
    return processor


def _load_config(name: str, folder: Path | None, revision: str | None) -> PreTrainedConfig:
    if folder is not None and not (folder / _CONFIG).is_file():
        raise ModelError(
            "the folder holds no model",
            where=name,
            expected=_CONFIG,
            mend="Give the folder that save_pretrained wrote",
        )
    with _model_errors(name, "the model's configuration cannot be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=False, revision=revision
        )
    return config


def _load_weights(
    name: str, config: PreTrainedConfig, dtype: str, revision: str | None
) -> PreTrainedModel:
    loader = _loader(config, name)
    with _model_errors(name, "the model's weights cannot be loaded"):
        model, report = loader.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            # transformers then reports wrong shapes like missing weights, and both are refused.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _validate_complete(report, name)
    return model  # type: ignore[no-any-return]


def _loader(config: PreTrainedConfig, name: str) -> Any:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    raise ModelError(
        "the model is neither an image-text-to-text nor a causal language model",
        where=name,
        found=f"model_type {config.model_type}",
        mend="Give a model that transformers can generate text with",
    )


def _find(name: str, revision: str | None = None) -> Path | None:
    """The folder of a model, or None for a model on the hub or in the hub's local cache."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(
                "a folder has no revisions",
                where=name,
                found=f"revision {revision}",
                mend="Leave the revision out, or give the name on the Hugging Face hub",
            )
        return path
    # A hub name is "model" or "owner/model". Anything else that is not a folder is a slip.
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or path.exists()
    if looks_local or not name:
        raise ModelError(
            "there is no such model folder",
            where=name or "model",
            found="a file" if path.is_file() else None,
            mend="Give the folder that save_pretrained wrote, or a name on the Hugging Face hub",
        )
    if try_to_load_from_cache(name, _CONFIG, revision=revision) is None:
        _validate_on_hub(name, revision)
    return None


def _validate_on_hub(name: str, revision: str | None) -> None:
    # One request. transformers would ask for file after file, for minutes when offline.
    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        # Any error, because the hub's client changed its HTTP library and its classes of errors.
        raise ModelError(
            "the name is neither a folder nor reachable on the Hugging Face hub",
            where=name if revision is None else f"{name}, revision {revision}",
            found=first_line(error),
            mend="Give an existing folder, or check the name and the network",
        ) from error


def _validate_safetensors(folder: Path, name: str) -> None:
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin"))
        raise ModelError(
            "the folder holds no safetensors weights, and pickled ones are not opened",
            where=name,
            expected="model.safetensors, or shards of it",
            found=", ".join(others[:3]) or None,
            mend="Save the model with save_pretrained",
        )


def _validate_complete(report: dict[str, Any], name: str) -> None:
    missing = sorted(report.get("missing_keys") or ())
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys") or ())
    problems = [(missing, "missing from the checkpoint"), (mismatched, "of another shape")]
    for keys, problem in problems:
        if keys:
            shown = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            raise ModelError(
                f"{len(keys)} weights are {problem}",
                where=name,
                found=shown,
                mend="Give the whole checkpoint that belongs to the config.json",
            )


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


@contextmanager
def _model_errors(name: str, what: str) -> Iterator[None]:
    """Turn errors of transformers and safetensors on bad folders and names into ``ModelError``."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            what, where=name, found=error, mend="Copy the checkpoint again: it is damaged"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise ModelError(what, where=name, found=first_line(error)) from error
