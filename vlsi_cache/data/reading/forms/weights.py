"""Which of the assistant's turns are learned, by the fields in which trainers mark them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.errors import excerpt

__all__ = ["MARKS", "WEIGHT_KEYS", "is_learned", "validate_row_marks", "validate_unweighted"]

WEIGHT_KEYS: Final = (
    *("weight", "train", "loss", "loss_weight", "training", "trainable"),
    *("loss_scale", "loss_multiplier", "step_loss_mask", "train_on_turn", "learn", "loss_mask"),
)
_MASK_KEYS: Final = (
    *("mask", "masked", "is_masked", "train_detail", "training_detail"),
    *("ignore_loss", "no_loss", "ignore", "skip"),
)
"""Keys by which other trainers leave out a turn, or parts of it."""
MARKS: Final = frozenset((*WEIGHT_KEYS, *_MASK_KEYS))
"""Fields of a turn that say whether it is learned."""
_NEGATED_KEYS: Final = ("masked", "is_masked", "ignore_loss", "no_loss", "ignore", "skip")
"""Those that mean the default where they are false."""
_OF_TURNS: Final = frozenset((*WEIGHT_KEYS, *_MASK_KEYS, "weights", "loss_masks", "train_mask"))
"""Columns that may hold a list of marks, one for each turn."""


def is_learned(turn: Mapping[str, Any], role: str, context: RowContext, *, default: bool) -> bool:
    """Whether the turn is learned: by its own ``weight``, ``train`` or ``loss``, which agree.

    Args:
        turn: its fields.
        role: its role.
        context: the row.
        default: whether an answer is learned that does not say so itself.

    Raises:
        DataError: the turn is marked in a way that is not read.
    """
    if role == "assistant":
        _validate_answer(turn, context)
    default = default or role != "assistant"
    given = {key: turn[key] for key in WEIGHT_KEYS if turn.get(key) is not None}
    if not given:
        return default
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise context.error(
                f"{key} of a turn is neither 0 nor 1",
                found=excerpt(repr(value)),
                mend="Turns are learned or not. Weights between are not read",
            )
    if len(set(map(bool, given.values()))) > 1:
        raise context.error(f"{' and '.join(given)} of a turn contradict one another")
    learned = bool(next(iter(given.values())))
    if learned and role != "assistant":
        raise context.error(
            f"the {role}'s turn is marked to be learned by {next(iter(given))}",
            mend="Take the mark out. Only the assistant's turns are learned",
        )
    return learned or role != "assistant"


def _validate_answer(turn: Mapping[str, Any], context: RowContext) -> None:
    """Refuse an answer that is marked in a way that is not read."""
    for key in _MASK_KEYS:
        if _is_marked(turn, key):
            raise context.error(
                f"a turn has {key}, which nothing reads",
                mend="Set weight to 0 or 1: turns are learned or not, as a whole",
            )
    if turn.get("label") is False:
        raise context.error(
            "label of a turn is False, which marks a bad answer",
            mend="Set weight: 0 to leave the turn out, or drop the field",
        )


def _is_marked(fields: Mapping[str, Any], key: str) -> bool:
    """Whether a key of masks holds something else than the default."""
    value = fields.get(key)
    return is_given(value) and not (key in _NEGATED_KEYS and value in (0, False))


def validate_unweighted(part: Mapping[str, Any], role: str, context: RowContext) -> None:
    """Refuse a part of an answer that is not learned by itself.

    Args:
        part: its fields.
        role: the role of its turn. Only the assistant's parts are learned.
        context: the row.

    Raises:
        DataError: the part has a mark of its own, other than the default.
    """
    if role != "assistant":
        return
    weighted = [key for key in WEIGHT_KEYS if part.get(key) not in (None, 1, True)]
    for key in (*weighted, *(key for key in _MASK_KEYS if _is_marked(part, key))):
        raise context.error(
            f"a part of a message has {key}, which is read of whole turns alone",
            found=excerpt(repr(part[key])),
            mend="Set weight to 0 or 1 in the turn",
        )


def validate_row_marks(
    row: Mapping[str, Any], num_turns: Sequence[int], context: RowContext
) -> None:
    """Refuse marks of what is learned that stand beside the turns, where nothing reads them.

    Args:
        row: its fields.
        num_turns: how many marks a list for all turns has, or one for the answers alone.
        context: the row.

    Raises:
        DataError: a mark leaves out the row, or some of its turns.
    """
    for key in _OF_TURNS & row.keys():
        value = row[key]
        if isinstance(value, list) and _are_marks(value, num_turns):
            raise context.error(
                f"row has {key}, a list for its turns, which nothing reads",
                found=excerpt(repr(value)),
                mend="Set weight to 0 or 1 in each turn, or leave the list out with data.columns: "
                f"{{{key}: null}}",
            )
        is_figure = key == "loss" and not isinstance(value, bool)  # of some model
        if (
            key in WEIGHT_KEYS
            and isinstance(value, bool | int | float)
            and not is_figure
            and not value
        ):
            raise context.error(
                f"row has {key}: {value}, which marks it as one not to learn",
                mend=f"Drop the row, or leave the mark out with data.columns: {{{key}: null}}",
            )


def _are_marks(values: list[Any], num_turns: Sequence[int]) -> bool:
    """Whether a list has a number for each turn, and leaves one out."""
    are_numbers = all(isinstance(value, bool | int | float) for value in values)
    return are_numbers and len(values) in num_turns and any(value != 1 for value in values)
