"""Adapter folders of peft: an adapter is merged into its base when a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import tempfile
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PromptLearningConfig
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vlsi_cache.errors import ModelError, counted, excerpt, first_line
from vlsi_cache.models.loading.smallfiles import CONFIG_FILE, read_object
from vlsi_cache.models.loading.weightfiles import is_readable, read_headers
from vlsi_cache.recipe import at_home, is_there, validate_model_folder

__all__ = [
    "Adapter",
    "base_errors",
    "find_adapter",
    "merge_adapter",
    "validate_adapter",
    "warn_of_adapter_files",
    "weights_beside",
]

logger = logging.getLogger(__name__)

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_FILES = (_CONFIG, _WEIGHTS, "adapter_model.bin")
_MOST_SHOWN = 160
_SET_BASE = "Set it to the folder or hub name of the model that the adapter was trained on"
_NAME = "default"
"""The name that peft gives an adapter in the model."""
_OWN_NAME = re.compile(rf"\.{_NAME}(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder that holds a peft adapter."""

    folder: Path
    """The folder."""
    base: str
    """Name or folder of the model that the adapter belongs to."""
    is_beside_base: bool
    """Whether the base lies in the same folder."""


def find_adapter(folder: Path | None) -> Adapter | None:
    """Find the adapter in a folder.

    Raises:
        ModelError: the adapter's configuration cannot be read, or names no base that is there.
    """
    if folder is None or not (folder / _CONFIG).is_file():
        return None
    base = read_object(folder / _CONFIG).get("base_model_name_or_path")
    # Trainers also write the base's config.json beside an adapter, without its weights.
    if (folder / CONFIG_FILE).is_file() and is_readable(folder):
        return Adapter(folder, str(folder), is_beside_base=True)
    if not isinstance(base, str) or not base:
        raise ModelError(
            "the folder holds an adapter that names no base model",
            where=folder / _CONFIG,
            expected="base_model_name_or_path",
            found=base,
            mend=_SET_BASE,
        )
    # Trainers write the path that they were given. It may be relative to the adapter.
    beside = folder / base
    local = not is_there(Path(at_home(base))) and is_there(beside)
    adapter = Adapter(folder, str(beside) if local else base, is_beside_base=False)
    _validate_base(adapter)
    return adapter


def _validate_base(adapter: Adapter) -> None:
    """Refuse a base that is not there, or that is no model but an adapter."""
    where = adapter.folder / _CONFIG
    base = Path(at_home(adapter.base))
    if is_there(base) and (base / _CONFIG).is_file() and not (base / CONFIG_FILE).is_file():
        is_own = base.resolve() == adapter.folder.resolve()
        raise ModelError(
            f"the base of the adapter is {'the adapter itself' if is_own else 'an adapter, too'}",
            where=where,
            found=f"base_model_name_or_path {adapter.base}",
            mend=_SET_BASE if is_own else "Merge that one into its own base first",
        )
    with base_errors(adapter):
        validate_model_folder(adapter.base)


@contextmanager
def base_errors(adapter: Adapter | None) -> Iterator[None]:
    """Turn the error of a base that is not there into one that names the adapter."""
    try:
        yield
    except ModelError as error:
        if adapter is None or adapter.is_beside_base:
            raise
        found = f": {error.found}" if error.found else ""
        raise ModelError(
            "the base of the adapter is not there",
            where=adapter.folder / _CONFIG,
            found=f"base_model_name_or_path {adapter.base}, and {error.what}{found}",
            mend=_SET_BASE,
        ) from error


def validate_adapter(adapter: Adapter) -> None:
    """Refuse an adapter that cannot be merged, as far as its files show without its base.

    Raises:
        ModelError: its weights are missing, pickled or damaged, or its kind is unknown, or it
            changes no weights.
    """
    weights = adapter.folder / _WEIGHTS
    if not weights.exists() and not weights.is_symlink():
        raise ModelError(
            "the adapter has no safetensors weights, and pickled ones are not opened",
            where=adapter.folder,
            expected=_WEIGHTS,
            mend="Save the adapter with save_pretrained",
        )
    read_headers([weights])
    kind = str(read_object(adapter.folder / _CONFIG).get("peft_type"))
    kinds: Mapping[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    known = kinds.get(kind)
    if known is None:
        raise ModelError(
            "peft has no such kind of adapter",
            where=adapter.folder / _CONFIG,
            found=f"peft_type {excerpt(kind)}",
            mend="Correct it, or update peft if the adapter is newer",
        )
    if issubclass(known, PromptLearningConfig):
        raise _not_mergeable(adapter, kind)


def warn_of_adapter_files(folder: Path) -> None:
    """Warn of an adapter beside whole weights, which may hold it already, and of a lost one."""
    if not is_readable(folder):
        return
    if (folder / _CONFIG).is_file():
        logger.warning(
            "%s holds a model and an adapter, which is merged into it. If the model holds it "
            "already, take %s away",
            folder,
            _CONFIG,
        )
    elif any((folder / name).is_file() for name in _FILES):
        logger.warning("%s: the weights of an adapter are not read without %s", folder, _CONFIG)


def _not_mergeable(adapter: Adapter, kind: str) -> ModelError:
    return ModelError(
        f"an adapter of kind {kind} cannot be merged into its base",
        where=adapter.folder,
        expected="LoRA, or another kind that changes weights",
        mend="Give a model without it",
    )


@contextmanager
def weights_beside(adapter: Adapter | None, name: str) -> Iterator[str]:
    """Yield where the base's own weights are loaded from.

    transformers puts an adapter on the model whose folder it lies in. So the base is loaded from a
    folder of links to all other files.
    """
    if adapter is None or not adapter.is_beside_base:
        yield name if adapter is None else adapter.base
        return
    with tempfile.TemporaryDirectory() as links:
        for file in adapter.folder.resolve().iterdir():
            if file.name not in _FILES:
                (Path(links) / file.name).symlink_to(file)
        yield links


def merge_adapter(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Merge an adapter into its base, and say so.

    Raises:
        ModelError: the adapter does not fit its base, or is of a kind that cannot be merged.
    """
    adapted, unread = _adapted(model, adapter)
    merge: Any = getattr(adapted.base_model, "merge_and_unload", None)
    if merge is None:
        kind: Any = adapted.peft_config[_NAME].peft_type
        raise _not_mergeable(adapter, str(kind.value))
    _warn_of_unread(adapted, adapter, unread)
    merged: PreTrainedModel = merge()
    logger.info("merged the adapter in %s into its base, %s", adapter.folder, adapter.base)
    return merged


def _warn_of_unread(adapted: PeftModel, adapter: Adapter, tensors: Collection[str]) -> None:
    """Warn of tensors and settings that peft passes over. It says nothing, or hides it."""
    fields = json.loads((adapter.folder / _CONFIG).read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(adapted.peft_config[_NAME])}
    for noun, names in (("tensor", tensors), ("setting", set(fields) - known)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            what = f"{counted(len(names), noun)} of the adapter"
            verb = "is" if len(names) == 1 else "are"
            logger.warning("%s: %s %s not read: %s", adapter.folder, what, verb, shown)


def _adapted(model: PreTrainedModel, adapter: Adapter) -> tuple[PeftModel, set[str]]:
    """Return the model with its adapter, and the names of tensors that have no place in it."""
    renaming = getattr(model, "_checkpoint_conversion_mapping", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # peft warns, and goes on with random or zero adapters
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            adapted: PeftModel = PeftModel.from_pretrained(model, str(adapter.folder))
            # peft keeps to itself what it passed over. The same load once more returns it, by the
            # names that tensors have in the model: peft renames those of some families.
            loaded = adapted.load_adapter(str(adapter.folder), _NAME, key_mapping=renaming)
        except SafetensorError as error:
            raise ModelError(
                "the adapter cannot be loaded",
                where=adapter.folder / _WEIGHTS,
                found=error,
                mend="Copy the adapter again: it is damaged",
            ) from error
        except Exception as error:
            # Anything, because each kind of adapter fails in its own way.
            raise ModelError(
                "the adapter does not fit its base model",
                where=adapter.folder,
                expected=f"an adapter of {adapter.base}",
                found=textwrap.shorten(first_line(error), _MOST_SHOWN, placeholder=" …"),
            ) from error
    return adapted, {_OWN_NAME.sub("", name) for name in loaded.unexpected_keys}
