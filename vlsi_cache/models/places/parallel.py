"""Tensor parallelism: the plan of a model that several processes hold together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from transformers import PreTrainedConfig, PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.binding.skeleton import names_of

__all__ = ["head_counts", "head_plan", "is_split", "validate_parallel"]

_WHOLE: Final = "replicate"
_HEADS: Final = ("num_attention_heads", "num_key_value_heads")


def head_plan(model: PreTrainedModel) -> dict[str, str]:
    """Return the changes of the model's own plan: embedding and head stay whole everywhere.

    Each process records other tokens of a batch, over the whole vocabulary. So each needs the whole
    head, and a tied embedding with it.
    """
    untyped: Any = model
    parts = (untyped.get_input_embeddings(), untyped.get_output_embeddings())
    return {name: _WHOLE for part in parts if part is not None for name in names_of(model, part)}


def is_split(model: PreTrainedModel) -> bool:
    """Report whether several processes hold the model together, and read the same batches."""
    untyped: Any = model
    return (untyped.tp_size or 1) > 1


def head_counts(config: PreTrainedConfig) -> dict[str, int]:
    """Return the numbers of heads that tensor parallelism divides, by the configuration's names."""
    text = config.get_text_config(decoder=True)
    counts = {name: getattr(text, name, None) for name in _HEADS}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def validate_parallel(
    model: PreTrainedModel, config: PreTrainedConfig, num_processes: int, where: str
) -> None:
    """Refuse tensor parallelism that a model cannot have.

    Args:
        model: the model without weights.
        config: its configuration.
        num_processes: processes that are to hold it.
        where: name of the model, for errors.

    Raises:
        ModelError: the model has no plan, or its heads cannot be divided.
    """
    plan: Mapping[str, str] = model.tp_plan or {}
    if not any("*" in name for name in plan):
        raise ModelError(
            "the model has no plan for tensor parallelism",
            where=where,
            expected="a family with base_model_tp_plan in transformers",
            found=f"teacher.tensor_parallel {num_processes} for {type(model).__name__}",
            mend="Give teacher.device_map: auto in its place",
        )
    odd = {name: count for name, count in head_counts(config).items() if count % num_processes}
    if odd:
        raise ModelError(
            "attention heads cannot be divided among the processes",
            where=where,
            expected=f"numbers of heads that teacher.tensor_parallel {num_processes} divides",
            found=", ".join(f"{name} {count}" for name, count in odd.items()),
            mend="Choose a number that divides both, or teacher.device_map: auto",
        )
