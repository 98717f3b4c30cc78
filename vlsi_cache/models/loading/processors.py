"""Loading processors and tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading.configs import load_config
from vlsi_cache.models.loading.options import (
    current_options,
    validate_options,
    validate_pixels,
)
from vlsi_cache.models.loading.smallfiles import (
    CONFIG_FILE,
    explain_processor,
    validate_processor_files,
)
from vlsi_cache.models.loading.sources import base_of, find_folder, local_copy, model_errors
from vlsi_cache.recipe import ModelSection

__all__ = ["load_processor", "load_processor_of"]

_TOKENIZER = "tokenizer_config.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def load_processor_of(section: ModelSection) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load the processor that a recipe's ``teacher`` or ``student`` names, with its options.

    Raises:
        ModelError: as `load_processor`.
    """
    return load_processor(
        section.model or "",
        revision=section.revision,
        options=section.processor,
        trust=section.trust_remote_code,
    )


def load_processor(
    name: str,
    *,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load the processor of an image model, or the tokenizer of a text model.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        options: settings of the processor that take the place of the saved ones.
        trust: whether code that comes with the model is run.

    Raises:
        ModelError: there is no such folder or name, or neither a processor nor a tokenizer in it.
            The processor does not know an option, or refuses its value.
    """
    name, revision = _processor_source(name, revision)
    load: Any = partial(AutoProcessor.from_pretrained, name, trust_remote_code=trust)
    processor = _load(load, name, revision)
    if options:
        validate_options(processor, options, where=name)
        validate_pixels(options, where=name)
        with model_errors(name, "the processor refuses the options"):
            processor = load(revision=revision, **current_options(processor, options))
    if not isinstance(processor, (ProcessorMixin, PreTrainedTokenizerBase)):
        raise ModelError(
            "no processor or tokenizer was found",
            where=name,
            expected="a processor with a tokenizer, or a tokenizer",
            found=type(processor).__name__,
            mend="Save the processor beside the model with save_pretrained",
        )
    return processor


def _load(load: Any, name: str, revision: str | None) -> Any:
    """Load a processor, or refuse the file for which it cannot be loaded."""
    find_folder(name, revision)  # refuses a name that is nowhere
    files = (_TOKENIZER, *_PROCESSORS, CONFIG_FILE)
    before = local_copy(name, revision, files)
    if before is not None:
        validate_processor_files(before)
    try:
        with model_errors(name, "the processor cannot be loaded"):
            processor = load(revision=revision)
    except ModelError:
        if (copy := local_copy(name, revision, files)) is not None:
            explain_processor(copy)
        raise
    if before is None and (copy := local_copy(name, revision, files)) is not None:
        validate_processor_files(copy)  # what was downloaded now
    return processor


def _processor_source(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return where the processor lies: in the folder, or with the base of the adapter in it.

    Trainers save the tokenizer alone beside an adapter. An image model needs more than that.
    """
    folder = find_folder(name, revision)
    base, base_revision = base_of(name, revision)
    if folder is None or base == name:
        return name, revision
    sees = type(load_config(base, revision=base_revision)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    needed = _PROCESSORS if sees else (_TOKENIZER,)
    is_whole = any((folder / file).is_file() for file in needed)
    return (name, revision) if is_whole else (base, base_revision)
