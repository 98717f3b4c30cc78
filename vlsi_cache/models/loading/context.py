"""The longest text that a model reads."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

__all__ = ["context_length", "short_length"]


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens of a text, or None if the configuration names no limit.

    YaRN reads `factor` times as many tokens as the model was trained on. Its configuration often
    keeps the old `max_position_embeddings`. Dynamic scaling would do so, too. But then a text's
    positions follow from the longest one that was read before it.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if not limit:
        return None
    for fields in _scalings(config, "yarn"):
        trained = fields.get("original_max_position_embeddings") or limit
        limit = max(limit, int(trained * (fields.get("factor") or 1)))
    return limit


def short_length(config: PreTrainedConfig) -> int | None:
    """The tokens up to which LongRoPE reads a batch with its short factors. None for other models.

    The longest text of a batch decides for all of it.
    """
    own = getattr(config, "original_max_position_embeddings", None)
    found = [
        fields.get("original_max_position_embeddings") or own
        for fields in _scalings(config, "longrope")
    ]
    return min((length for length in found if length), default=None)


def _scalings(config: PreTrainedConfig, kind: str) -> list[dict[str, Any]]:
    """The rotary positions of a kind. Some families have one set for each kind of block."""
    rope = getattr(config, "rope_parameters", None) or {}
    both = [fields for fields in (rope, *rope.values()) if isinstance(fields, dict)]
    return [fields for fields in both if fields.get("rope_type") == kind]
