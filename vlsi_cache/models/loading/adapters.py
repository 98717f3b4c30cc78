"""Adapter folders of peft: an adapter is merged into its base when a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import tempfile
import textwrap
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vlsi_cache.errors import ModelError, counted, first_line

__all__ = ["Adapter", "find_adapter", "merge_adapter", "weights_beside"]

logger = logging.getLogger(__name__)

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_FILES = (_CONFIG, _WEIGHTS, "adapter_model.bin")
_MOST_SHOWN = 160
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
        ModelError: the adapter's configuration cannot be read, or names no base.
    """
    if folder is None or not (folder / _CONFIG).is_file():
        return None
    try:
        fields = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        base = fields.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            "the adapter's configuration cannot be read",
            where=folder / _CONFIG,
            found=first_line(error),
        ) from error
    if (folder / "config.json").is_file():
        return Adapter(folder, str(folder), is_beside_base=True)
    if not isinstance(base, str) or not base:
        raise ModelError(
            "the folder holds an adapter that names no base model",
            where=folder / _CONFIG,
            expected="base_model_name_or_path",
            found=base,
            mend="Set it to the folder or hub name of the model that the adapter was trained on",
        )
    # Trainers write the path that they were given. It may be relative to the adapter.
    beside = folder / base
    local = not Path(base).expanduser().is_dir() and beside.is_dir()
    return Adapter(folder, str(beside) if local else base, is_beside_base=False)


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
        ModelError: the adapter has no safetensors weights, does not fit its base, or is of a kind
            that cannot be merged.
    """
    if not (adapter.folder / _WEIGHTS).is_file():
        raise ModelError(
            "the adapter has no safetensors weights, and pickled ones are not opened",
            where=adapter.folder,
            expected=_WEIGHTS,
            mend="Save the adapter with save_pretrained",
        )
    adapted, unread = _adapted(model, adapter)
    merge: Any = getattr(adapted.base_model, "merge_and_unload", None)
    if merge is None:
        kind: Any = adapted.peft_config[_NAME].peft_type
        raise ModelError(
            f"an adapter of kind {kind.value} cannot be merged into its base",
            where=adapter.folder,
            expected="LoRA, or another kind that changes weights",
            mend="Give a model without it",
        )
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
