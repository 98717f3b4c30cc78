"""The longest text that a model reads."""

from __future__ import annotations

from transformers import PreTrainedConfig

__all__ = ["context_length"]

_STRETCHING = ("yarn", "dynamic")
"""Kinds of scaled rotary positions that a user adds to a model, beside its old length."""


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens of a text, or None if the configuration names no limit.

    YaRN and dynamic scaling read `factor` times as many tokens as the model was trained on. Their
    configurations often keep the old `max_position_embeddings`.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if not limit:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    for fields in (rope, *rope.values()):
        if isinstance(fields, dict) and fields.get("rope_type") in _STRETCHING:
            trained = fields.get("original_max_position_embeddings") or limit
            limit = max(limit, int(trained * (fields.get("factor") or 1)))
    return limit
