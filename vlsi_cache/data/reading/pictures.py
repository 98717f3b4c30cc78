"""The pictures of a row's own columns, and the places in the turns where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vlsi_cache.data.conversation import ImagePart, TextPart
from vlsi_cache.data.images import ImageRef, is_known_image
from vlsi_cache.data.reading.imagefields import image_ref, names_image
from vlsi_cache.data.reading.parts import IMAGE_TAG, OpenImage, split_tags
from vlsi_cache.data.reading.place import Place
from vlsi_cache.data.reading.turns import Turn

__all__ = ["PICTURE_COLUMNS", "place_pictures"]

PICTURE_COLUMNS: Final = ("images", "image")
"""Columns that hold pictures."""
_PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MEDIA_SUFFIXES: Final = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".wav", ".mp3", ".flac", ".ogg")
_MEDIA_TAGS: Final = ("<video>", "<audio>")
_NAMED_TAG: Final = "</img>"
"""The end of Qwen-VL's ``<img>path</img>``. HTML has no such tag."""


def place_pictures(
    turns: Sequence[Turn], row: Mapping[str, Any], place: Place, *, tagged: bool
) -> list[Turn]:
    """Put the pictures of a row's columns to the places that are open for them.

    Without any place they stand at the beginning of the first turn of the user.

    Args:
        turns: the turns, with tags in their texts.
        row: the row. Its ``images`` and ``image`` hold the pictures.
        place: where the row lies.
        tagged: whether ``<image>`` in a text is a tag even if the row has no pictures.

    Raises:
        DataError: pictures and places differ in number, or a picture lies where nothing reads it.
    """
    pictures = _row_pictures(row, place)
    filled = [picture for picture in pictures if picture is not None]
    is_structured = any(not isinstance(part, TextPart) for turn in turns for part in turn.parts)
    if tagged or (filled and not is_structured):
        turns = [replace(turn, parts=split_tags(turn.parts)) for turn in turns]
    elif not is_structured:
        _validate_no_image_tags(turns, row, place)
    _validate_no_media_tags(turns, row, place)
    if all(isinstance(part, TextPart) for turn in turns for part in turn.parts):
        if not filled:
            _validate_seen(row, place)
            return list(turns)
        turns = _open_first(turns, len(filled), place)
    opened = [part for turn in turns for part in turn.parts if isinstance(part, OpenImage)]
    if any(part.index is not None for part in opened):
        chosen = _by_index(opened, pictures, place)
    else:
        chosen = filled
        if len(opened) != len(filled):
            raise place.error(
                "placeholders and images differ in number",
                expected=f"{len(opened)} images, one for each {IMAGE_TAG} tag or image part",
                found=f"{len(filled)} in the row's image fields{_elsewhere(opened, row)}",
                mend="Give every image its placeholder and every placeholder its image",
            )
    return _filled(turns, iter(chosen))


def _row_pictures(row: Mapping[str, Any], place: Place) -> list[ImageRef | None]:
    """The pictures of the columns, with None for those that name none."""
    pictures: list[ImageRef | None] = []
    for name in PICTURE_COLUMNS:
        value = row.get(name)
        for source in value if isinstance(value, list) else [value]:
            is_empty = not names_image(source) and not _is_unknown(source)
            pictures.append(None if is_empty else image_ref(source, place))
        if not isinstance(value, list) and pictures[-1] is None:
            pictures.pop()
    return pictures


def _is_unknown(source: object) -> bool:
    """Whether a mapping holds something, but under no key that names an image."""
    return isinstance(source, Mapping) and any(value is not None for value in source.values())


def _by_index(
    opened: Sequence[OpenImage], pictures: Sequence[ImageRef | None], place: Place
) -> list[ImageRef]:
    """The pictures that the places name by number."""
    chosen: list[ImageRef] = []
    for part in opened:
        picture = None
        if part.index is not None and part.index < len(pictures):
            picture = pictures[part.index]
        if picture is None:
            raise place.error(
                "an image part names a picture that the row does not have",
                expected=f"an index below {len(pictures)} in every image part",
                found=f"index {part.index}",
            )
        chosen.append(picture)
    used = {part.index for part in opened}
    unused = [n for n, picture in enumerate(pictures) if picture is not None and n not in used]
    if unused:
        raise place.error(
            "no image part names some of the row's pictures",
            found=f"{len(pictures)} pictures, without a part for index {unused[0]}",
            mend="Give every image its placeholder and every placeholder its image",
        )
    return chosen


def _open_first(turns: Sequence[Turn], count: int, place: Place) -> list[Turn]:
    """Open places at the beginning of the user's first turn, as TRL does."""
    for number, turn in enumerate(turns):
        if turn.role == "user":
            opened = replace(turn, parts=[*[OpenImage()] * count, *turn.parts])
            return [*turns[:number], opened, *turns[number + 1 :]]
    raise place.error("row has pictures, but no turn of the user", mend="Drop the sample")


def _filled(turns: Sequence[Turn], pictures: Iterator[ImageRef]) -> list[Turn]:
    return [
        replace(
            turn,
            parts=[
                ImagePart(next(pictures)) if isinstance(part, OpenImage) else part
                for part in turn.parts
            ],
        )
        for turn in turns
    ]


def _validate_no_image_tags(turns: Sequence[Turn], row: Mapping[str, Any], place: Place) -> None:
    """Refuse tags that no picture fills. The model would read the tag, and see nothing."""
    tagged = _find_tagged(turns, IMAGE_TAG)
    if tagged is not None:
        raise place.error(
            f"the {tagged.role}'s text holds {IMAGE_TAG}, and no picture belongs to it",
            expected="as many pictures in the row's field images or image",
            found=_elsewhere((), row, "; ".join(_named(row, PICTURE_COLUMNS)) or "no such field"),
            mend="Name the column of the pictures in data.columns, or take the tag out",
        )


def _validate_no_media_tags(turns: Sequence[Turn], row: Mapping[str, Any], place: Place) -> None:
    if _find_tagged(turns, _NAMED_TAG) is not None:
        raise place.error(
            f"a text names an image in <img>…{_NAMED_TAG}, and nothing reads it",
            mend=f"Write {IMAGE_TAG} in its place, and the image into images",
        )
    for tag in _MEDIA_TAGS:
        if _find_tagged(turns, tag) is None:
            continue
        columns = [name for name in row if _looks_like(row[name], _MEDIA_SUFFIXES)]
        if columns:
            raise place.error(
                f"a text holds {tag}, and nothing reads {tag[1:-1]}s",
                found="a file in " + ", ".join(columns),
                mend="Drop the sample",
            )


def _find_tagged(turns: Sequence[Turn], tag: str) -> Turn | None:
    """The first turn with a tag in its text. An answer may speak of tags."""
    for turn in turns:
        if turn.role == "assistant":
            continue
        for part in turn.parts:
            if isinstance(part, TextPart) and tag in part.text:
                return turn
    return None


def _validate_seen(row: Mapping[str, Any], place: Place) -> None:
    """Refuse a row without pictures whose other columns hold encoded ones."""
    columns = [
        name for name, value in row.items() if not isinstance(value, str) and _looks_like(value)
    ]
    if columns:
        raise place.error(
            "a column holds pictures, and nothing reads it",
            expected="pictures in images or image",
            found=", ".join(columns),
            mend=f"Set data.columns: {{{columns[0]}: image}}, or {{{columns[0]}: null}} to leave "
            "it out",
        )


def _elsewhere(opened: Sequence[OpenImage], row: Mapping[str, Any], found: str = "") -> str:
    """Say what may be meant as the missing pictures: keys of parts, or other columns."""
    keys = sorted({key for part in opened for key in part.keys})
    columns = [name for name in row if _looks_like(row[name], _PICTURE_SUFFIXES)]
    columns = [name for name in columns if name not in PICTURE_COLUMNS]
    if keys:
        found += f"; an image part names no image, but has the keys {', '.join(keys)}"
    if columns:
        found += f"; pictures in {', '.join(columns)}"
    return found


def _named(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{name} is {row[name]!r:.60}" for name in names if name in row]


def _looks_like(value: object, suffixes: tuple[str, ...] = ()) -> bool:
    """Whether a column holds an encoded picture, or names a file with one of the suffixes."""
    if isinstance(value, list):
        return bool(value) and _looks_like(value[0], suffixes)
    if isinstance(value, Mapping):
        suffixes = suffixes or _PICTURE_SUFFIXES
        return _looks_like(value.get("bytes"), suffixes) or _looks_like(value.get("path"), suffixes)
    if isinstance(value, bytes):
        return is_known_image(value)
    return isinstance(value, str) and value.lower().endswith(suffixes or ("\0",))
