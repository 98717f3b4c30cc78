"""Fields of videos, sounds and images in places where nothing reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vlsi_cache.data.reading.context import RowContext, is_given

__all__ = ["MEDIA_COLUMNS", "validate_row_media", "validate_turn_media"]

MEDIA_COLUMNS: Final = ("videos", "video", "audios", "audio")
"""Fields of videos and sounds, which no stage reads."""
_TURN_FIELDS: Final = ("images", "image", *MEDIA_COLUMNS)


def validate_row_media(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse a row with videos or sounds.

    Raises:
        DataError: the row has such a field, and it is not empty.
    """
    for name in MEDIA_COLUMNS:
        if is_given(row.get(name)):
            raise context.error(
                f"row has {name}, and nothing reads it",
                mend=f"Drop the sample, or leave the field out with data.columns: {{{name}: null}}",
            )


def validate_turn_media(turn: Mapping[str, Any], role: str, context: RowContext) -> None:
    """Refuse a turn with images, videos or sounds beside its content.

    Raises:
        DataError: the turn has such a field, and it is not empty.
    """
    if turn.keys().isdisjoint(_TURN_FIELDS):
        return
    for name in _TURN_FIELDS:
        if is_given(turn.get(name)):
            raise context.error(
                f"the {role}'s turn has {name} beside its content, and nothing reads it",
                mend="Move images into the content, or into the row's images",
            )
