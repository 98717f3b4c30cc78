"""Whether a checkpoint holds the weights that its configuration describes."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as library_logging

from vlsi_cache.errors import ModelError, counted
from vlsi_cache.models.binding.skeleton import make_skeleton
from vlsi_cache.models.loading.kinds import has_own_code, loader_of
from vlsi_cache.models.loading.stored import validate_stored
from vlsi_cache.models.loading.tying import ties_head
from vlsi_cache.models.loading.weightfiles import StoredWeight
from vlsi_cache.models.places.quantization import quantization_of
from vlsi_cache.recipe import ModelSection

__all__ = [
    "LoadReport",
    "preview_load",
    "validate_complete",
    "warn_of_unread",
]

logger = logging.getLogger(__name__)

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of safetensors."""
_SHOWN: Final = 3
_HEAD: Final = "lm_head.weight"
_TIE: Final = "Set tie_word_embeddings: true in config.json, if the embedding is the head"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What transformers found when it laid a checkpoint over a model."""

    missing: tuple[str, ...]
    """Weights of the model that the checkpoint lacks."""
    mismatched: tuple[str, ...]
    """Weights of other shapes."""
    unread: tuple[str, ...]
    """Weights of the checkpoint that the model does not have."""
    ties_head: bool = False
    """Whether the model's head is its embedding, as far as it is known."""

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> LoadReport:
        """Take a report of transformers' own."""
        return cls(
            missing=tuple(sorted(report.get("missing_keys") or ())),
            mismatched=tuple(sorted(map(_described, report.get("mismatched_keys") or ()))),
            unread=tuple(sorted(report.get("unexpected_keys") or ())),
        )


def preview_load(
    config: PreTrainedConfig, weights: Mapping[str, StoredWeight], name: str
) -> LoadReport | None:
    """Lay a checkpoint's headers over a model, as loading would lay the weights.

    No value is read: transformers' own loader gets tensors of the meta device.

    Args:
        config: the model's configuration.
        weights: all weights in the headers of the checkpoint.
        name: the model, for errors.

    Returns:
        None if this cannot be known without the values: a quantised checkpoint, or a model whose
        own code is run.

    Raises:
        ModelError: the weights are quantised and the configuration does not say how, or their
            scales are missing.
    """
    if quantization_of(config):
        _validate_scales(config, weights, name)
        return None
    if has_own_code(config):
        return None
    try:
        report = _laid(config, weights, name)
    except Exception as error:  # a family's own code, which loading will run with values
        logger.debug("%s: what loading would find is not known (%s)", name, error)
        return None
    validate_stored(weights, name, config, report.unread)
    return report


def _laid(config: PreTrainedConfig, weights: Mapping[str, StoredWeight], name: str) -> LoadReport:
    """Load tensors of the meta device, which have shapes and no values."""
    with torch.device("meta"):
        tensors = {
            key: torch.empty(one.shape, dtype=_DTYPES.get(one.dtype, torch.float32))
            for key, one in weights.items()
        }
    with _quiet():
        skeleton = make_skeleton(config, loader_of(config, name), ModelSection())
        made_by: Any = type(skeleton)
        _, found = made_by.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=tensors,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return replace(LoadReport.of(found), ties_head=ties_head(skeleton))


def validate_complete(report: LoadReport, name: str) -> None:
    """Refuse a checkpoint that lacks weights, or has some of other shapes.

    Raises:
        ModelError: it does.
    """
    problems = [
        (report.missing, "missing from the checkpoint"),
        (report.mismatched, "of another shape"),
    ]
    for keys, problem in problems:
        if keys:
            verb = "is" if len(keys) == 1 else "are"
            raise ModelError(
                f"{counted(len(keys), 'weight')} {verb} {problem}",
                where=name,
                found=_listed(keys),
                mend=_mend(keys, report),
            )


def _mend(keys: tuple[str, ...], report: LoadReport) -> str:
    """What mends a checkpoint that lacks weights, or has some of other shapes."""
    if keys == (_HEAD,) and keys == report.missing:
        return _TIE
    front = _front(report) if keys == report.missing else None
    if front is None:
        return "Give the whole checkpoint that belongs to the config.json"
    return f"The checkpoint has them under names that begin with {front!r}: take that out"


def _front(report: LoadReport) -> str | None:
    """What stands before the names of all missing weights, as wrappers of a model write it."""
    first, unread = report.missing[0], set(report.unread)
    fronts = [name.removesuffix(first) for name in report.unread if name.endswith(f".{first}")]
    return next(
        (front for front in fronts if all(f"{front}{key}" in unread for key in report.missing)),
        None,
    )


def warn_of_unread(report: LoadReport, name: str) -> None:
    """Warn of weights that the model does not have."""
    if report.unread:
        verb = "is" if len(report.unread) == 1 else "are"
        what = f"{counted(len(report.unread), 'weight')} {verb} not part of the model"
        logger.warning("%s: %s: %s", name, what, _listed(report.unread))


def _validate_scales(
    config: PreTrainedConfig, weights: Mapping[str, StoredWeight], name: str
) -> None:
    """Refuse FP8 weights without the scales that give them their size."""
    method = quantization_of(config).get("quant_method")
    small = [key for key, one in weights.items() if one.dtype.startswith("F8")]
    if small and not any("scale" in key for key in weights):
        raise ModelError(
            "the weights are FP8, and their scales are missing from the checkpoint",
            where=name,
            expected=f"a scale beside each weight, since quant_method is {method}",
            found=f"{small[0]} of dtype {weights[small[0]].dtype}, and no scale",
            mend="Copy the whole checkpoint again, or give the unquantised model",
        )


def _described(entry: Any) -> str:
    key, stored, expected = (*entry, None, None)[:3] if isinstance(entry, tuple) else (entry,) * 3
    if stored is None or isinstance(stored, str):
        return str(key)
    return f"{key} {list(stored)} in place of {list(expected)}"


def _listed(keys: Collection[str]) -> str:
    shown = sorted(keys)[:_SHOWN]
    return ", ".join(shown) + (" …" if len(keys) > _SHOWN else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting a load that is only a preview."""
    verbosity, has_bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(logging.CRITICAL)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if has_bars:
            library_logging.enable_progress_bar()
