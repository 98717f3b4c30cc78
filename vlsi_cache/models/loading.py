"""Loading models and processors, with every refusal in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
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

from vlsi_cache.errors import ModelError

__all__ = ["load_model", "load_processor", "text_config"]

_CONFIG = "config.json"
_HUB_SECONDS = 10.0


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's language side (the whole one for a text model)."""
    return model.config.get_text_config(decoder=True)


def load_model(
    name: str, *, dtype: str = "auto", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load an image-text-to-text model, or a causal language model if it sees no images.

    Weights must be safetensors, and every one of them must be in the checkpoint: transformers
    would fill gaps with random numbers and go on.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        dtype: a floating dtype of torch by name (`bfloat16`), or `auto` for the checkpoint's own.
        device: where the whole model goes.

    Raises:
        ModelError: no such folder or name, no configuration, a model of another kind, weights that
            are missing, pickled, damaged or of other shapes, an unknown dtype.
    """
    if dtype != "auto" and not _is_floating(dtype):
        raise ModelError(
            "unknown dtype",
            where=name,
            expected="auto, float32, bfloat16 or float16",
            found=dtype,
        )
    folder = _find(name)
    config = _load_config(name, folder)
    loader = _loader(config, name)
    if folder is not None:
        _require_safetensors(folder, name)
    with _refusals(name, "the model's weights cannot be loaded"):
        model, report = loader.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            # Wrong shapes are reported like missing weights, and refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _require_complete(report, name)
    model.to(device)
    return model.eval()  # type: ignore[no-any-return]


def load_processor(name: str) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load the processor of an image model, or the tokenizer of a text model.

    Args:
        name: a folder, or a name on the Hugging Face hub.

    Raises:
        ModelError: no such folder or name, or neither a processor nor a tokenizer in it.
    """
    _find(name)
    with _refusals(name, "the processor cannot be loaded"):
        load: Any = AutoProcessor.from_pretrained
        processor = load(name, trust_remote_code=False)
    if not isinstance(processor, (ProcessorMixin, PreTrainedTokenizerBase)):
        raise ModelError(
            "no processor or tokenizer was found",
            where=name,
            expected="a processor with a tokenizer, or a tokenizer",
            found=type(processor).__name__,
            mend="Save the processor beside the model with save_pretrained",
        )
    return processor


def _load_config(name: str, folder: Path | None) -> PreTrainedConfig:
    if folder is not None and not (folder / _CONFIG).is_file():
        raise ModelError(
            "the folder holds no model",
            where=name,
            expected=_CONFIG,
            mend="Give the folder that save_pretrained wrote",
        )
    with _refusals(name, "the model's configuration cannot be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    return config


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


def _find(name: str) -> Path | None:
    """The folder behind a name; None if it names a model on the hub, or cached from there."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    # A hub name is "model" or "owner/model"; anything else that is no folder is a slip.
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or path.exists()
    if looks_local or not name:
        raise ModelError(
            "there is no such model folder",
            where=name or "model",
            found="a file" if path.is_file() else None,
            mend="Give the folder that save_pretrained wrote, or a name on the Hugging Face hub",
        )
    if try_to_load_from_cache(name, _CONFIG) is None:
        _require_on_hub(name)
    return None


def _require_on_hub(name: str) -> None:
    # Asked once here, because transformers asks for file after file, for minutes when offline.
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:
        # The hub's client changed its HTTP library, and the errors' class with it.
        raise ModelError(
            "the name is neither a folder nor reachable on the Hugging Face hub",
            where=name,
            found=_first_line(error),
            mend="Give an existing folder, or check the name and the network",
        ) from error


def _require_safetensors(folder: Path, name: str) -> None:
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin"))
        raise ModelError(
            "the folder holds no safetensors weights, and pickled ones are not opened",
            where=name,
            expected="model.safetensors, or shards of it",
            found=", ".join(others[:3]) or None,
            mend="Save the model with save_pretrained",
        )


def _require_complete(report: dict[str, Any], name: str) -> None:
    missing = sorted(report.get("missing_keys") or ())
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys") or ())
    faults = [(missing, "missing from the checkpoint"), (mismatched, "of another shape")]
    for keys, fault in faults:
        if keys:
            shown = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            raise ModelError(
                f"{len(keys)} weights are {fault}",
                where=name,
                found=shown,
                mend="Give the whole checkpoint that belongs to the config.json",
            )


def _is_floating(dtype: str) -> bool:
    found = getattr(torch, dtype, None)
    return isinstance(found, torch.dtype) and found.is_floating_point


@contextmanager
def _refusals(name: str, what: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise on bad folders and names into one line."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            what, where=name, found=error, mend="Copy the checkpoint again: it is damaged"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise ModelError(what, where=name, found=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
