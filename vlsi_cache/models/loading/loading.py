"""Loading models. Every error is one line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from vlsi_cache.errors import ModelError, counted
from vlsi_cache.models.binding.skeleton import make_skeleton
from vlsi_cache.models.loading.adapters import Adapter, find_adapter, merge_adapter, weights_beside
from vlsi_cache.models.loading.configs import load_config, load_config_of
from vlsi_cache.models.loading.sources import (
    base_of,
    find_folder,
    loaded_folder,
    model_errors,
    validate_safetensors,
)
from vlsi_cache.models.loading.stored import (
    validate_stored,
    warn_of_two_copies,
    warn_of_unread_code,
)
from vlsi_cache.models.places.arguments import is_placed, loading_arguments
from vlsi_cache.models.places.devices import bring_head_back, is_plain, log_places
from vlsi_cache.recipe import ModelSection

__all__ = ["load_model", "loader_of", "sketch_model", "validate_files"]

logger = logging.getLogger(__name__)

_REMOTE = "transformers_modules."
_MASKED = "ForMaskedLM"


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
    base, base_revision = _sound_base(name, revision)
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


def _sound_base(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the model that holds the weights, and its revision; its files are looked at first."""
    base, base_revision = base_of(name, revision)
    folder = find_folder(base, base_revision)
    if folder is not None:
        validate_safetensors(folder, base)
    return base, base_revision


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


def validate_files(name: str, config: PreTrainedConfig, *, revision: str | None = None) -> None:
    """Refuse a model that cannot be loaded, as far as it shows without the weights.

    Raises:
        ModelError: as in ``load_model``.
    """
    base, revision = base_of(name, revision)
    folder = find_folder(base, revision)
    if folder is not None:
        validate_safetensors(folder, base)
    loader_of(config, base)


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
    _validate_complete(report, name)
    folder = loaded_folder(source, config)
    if folder is not None:
        validate_stored(folder, name, config, report.get("unexpected_keys") or ())
        warn_of_two_copies(folder, name)
    warn_of_unread_code(config, name)
    _validate_tied(model, name)
    return model  # type: ignore[no-any-return]


def _return_named_outputs(config: PreTrainedConfig) -> None:
    """Undo ``return_dict: false``, under which a model gives tuples to itself and to others."""
    config.return_dict = True
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            _return_named_outputs(inner)


def loader_of(config: PreTrainedConfig, name: str) -> Any:
    """Return the automatic class that loads a model.

    Raises:
        ModelError: the model is of another kind.
    """
    own_code = getattr(config, "auto_map", None) or {}
    for loader in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if loader.__name__ in own_code and type(config).__module__.startswith(_REMOTE):
            return loader
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        _validate_decoder(config, name)
        return AutoModelForCausalLM
    raise ModelError(
        "the model is neither an image-text-to-text nor a causal language model",
        where=name,
        found=f"model_type {config.model_type}",
        mend="Give a model that transformers can generate text with",
    )


def _validate_decoder(config: PreTrainedConfig, name: str) -> None:
    """Refuse encoder-decoders and masked models, which transformers would load as decoders."""
    made_for = getattr(config, "architectures", None) or ()
    if config.is_encoder_decoder and any("ConditionalGen" in one for one in made_for):
        kind = "an encoder-decoder"
    elif made_for and all(one.endswith(_MASKED) for one in made_for):
        kind = "a masked language model, which reads later tokens"
    else:
        return
    raise ModelError(
        f"the model is {kind}",
        where=name,
        expected="a decoder that reads prompt and response",
        found=", ".join(made_for),
        mend="Give a decoder-only model of transformers",
    )


def _validate_complete(report: dict[str, Any], name: str) -> None:
    missing = sorted(report.get("missing_keys") or ())
    mismatched = sorted(str(entry[0]) for entry in report.get("mismatched_keys") or ())
    problems = [(missing, "missing from the checkpoint"), (mismatched, "of another shape")]
    for keys, problem in problems:
        if keys:
            verb = "is" if len(keys) == 1 else "are"
            shown = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            raise ModelError(
                f"{counted(len(keys), 'weight')} {verb} {problem}",
                where=name,
                found=shown,
                mend="Give the whole checkpoint that belongs to the config.json",
            )
    unread = sorted(report.get("unexpected_keys") or ())
    if unread:
        shown = ", ".join(unread[:3]) + (" …" if len(unread) > 3 else "")
        what = f"{counted(len(unread), 'weight')} {'is' if len(unread) == 1 else 'are'}"
        logger.warning("%s: %s not part of the model: %s", name, what, shown)


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
