"""Loading models and processors. Every error is one line."""

from __future__ import annotations

import logging
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
from vlsi_cache.models.adapters import find_adapter, merge_adapter, weights_beside
from vlsi_cache.models.options import current_options, validate_options
from vlsi_cache.recipe import ModelSection, validate_model_folder

__all__ = [
    "load_config",
    "load_model",
    "load_processor",
    "load_processor_of",
    "text_config",
    "validate_files",
]

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_TOKENIZER = "tokenizer_config.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
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
    adapter = find_adapter(_find(name, revision))
    config = load_config(name, revision=revision)
    base, base_revision = _base_of(name, revision)
    folder = _find(base, base_revision)
    if folder is not None:
        _validate_safetensors(folder, base)
    with weights_beside(adapter, name) as source:
        model: Any = _load_weights(source, base, config, dtype, base_revision)
    model.config.name_or_path = name
    if adapter is not None:
        model = merge_adapter(model, adapter)
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def load_config(name: str, *, revision: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration. An adapter has that of its base.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it.
    """
    base, revision = _base_of(name, revision)
    folder = _find(base, revision)
    if folder is not None and not (folder / _CONFIG).is_file():
        raise _no_model(folder, base)
    with _model_errors(base, "the model's configuration cannot be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            base, trust_remote_code=False, revision=revision
        )
    return config


def _base_of(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the model whose weights are read, and its revision: an adapter's base, or itself."""
    adapter = find_adapter(_find(name, revision))
    return (name, revision) if adapter is None else (adapter.base, None)


def validate_files(name: str, config: PreTrainedConfig, *, revision: str | None = None) -> None:
    """Refuse a model that cannot be loaded, as far as it shows without the weights.

    Raises:
        ModelError: as in ``load_model``.
    """
    base, revision = _base_of(name, revision)
    folder = _find(base, revision)
    if folder is not None:
        _validate_safetensors(folder, base)
    _loader(config, base)


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
    name, revision = _processor_source(name, revision)
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


def _processor_source(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return where the processor lies: in the folder, or with the base of the adapter in it.

    Trainers save the tokenizer alone beside an adapter. An image model needs more than that.
    """
    folder = _find(name, revision)
    base, base_revision = _base_of(name, revision)
    if folder is None or base == name:
        return name, revision
    sees = type(load_config(base, revision=base_revision)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    needed = _PROCESSORS if sees else (_TOKENIZER,)
    is_whole = any((folder / file).is_file() for file in needed)
    return (name, revision) if is_whole else (base, base_revision)


def _no_model(folder: Path, name: str) -> ModelError:
    quantised = sorted(path.name for path in folder.glob("*.gguf"))
    if quantised:
        return _gguf_error(name, quantised[0])
    return ModelError(
        "the folder holds no model",
        where=name,
        expected=_CONFIG,
        mend="Give the folder that save_pretrained wrote",
    )


def _gguf_error(name: str, file: str) -> ModelError:
    return ModelError(
        "GGUF files are not read",
        where=name,
        expected="a folder with config.json and safetensors weights",
        found=file,
        mend="Give the model that it was made from. Or rebuild one, with its tokenizer: "
        f"AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={file!r}).save_pretrained(NEW)",
    )


def _load_weights(
    source: str, name: str, config: PreTrainedConfig, dtype: str, revision: str | None
) -> PreTrainedModel:
    loader = _loader(config, name)
    _return_named_outputs(config)
    with _model_errors(name, "the model's weights cannot be loaded"):
        model, report = loader.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            # transformers then reports wrong shapes like missing weights, and both are refused.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the hub repository holds an adapter, which is merged from a folder alone",
            where=name,
            mend=f"Download it (hf download {name} --local-dir FOLDER), and give the folder",
        )
    _validate_complete(report, name)
    _validate_tied(model, name)
    return model  # type: ignore[no-any-return]


def _return_named_outputs(config: PreTrainedConfig) -> None:
    """Undo ``return_dict: false``, under which a model gives tuples to itself and to others."""
    config.return_dict = True
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            _return_named_outputs(inner)


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
    if name.endswith(".gguf"):
        raise _gguf_error(name, path.name)
    validate_model_folder(name)
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
    unread = sorted(report.get("unexpected_keys") or ())
    if unread:
        shown = ", ".join(unread[:3]) + (" …" if len(unread) > 3 else "")
        logger.warning("%s: %d weights are not part of the model: %s", name, len(unread), shown)


def _validate_tied(model: Any, name: str) -> None:
    # transformers would go on with a head of its own, which the saved config then denies.
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model, "_tied_weights_keys", None) or ()
    if not model.config.tie_word_embeddings or "lm_head.weight" not in tied:
        return
    if output is not None and output.weight is not embedding.weight:
        raise ModelError(
            "the head and the embedding differ, while the configuration ties them",
            where=name,
            expected="one matrix for both",
            found="lm_head.weight with values of its own",
            mend="Set tie_word_embeddings: false in config.json, if the head was trained",
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
