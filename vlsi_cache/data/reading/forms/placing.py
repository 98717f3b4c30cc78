"""The images of a row's own columns, and the places in the turns where they belong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from vlsi_cache.data.conversation import ImagePart, TextPart
from vlsi_cache.data.images import ImageRef, is_known_image
from vlsi_cache.data.reading.context import RowContext
from vlsi_cache.data.reading.forms.imagefields import image_ref, is_image_file, names_image
from vlsi_cache.data.reading.forms.parts import IMAGE_TAG, OpenImage, split_tags
from vlsi_cache.data.reading.forms.turns import Turn
from vlsi_cache.errors import counted

__all__ = ["IMAGE_COLUMNS", "is_named_after_images", "place_images"]

IMAGE_COLUMNS: Final = ("images", "image")
"""Columns that hold images."""
_IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MEDIA_SUFFIXES: Final = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".wav", ".mp3", ".flac", ".ogg")
_MEDIA_TAGS: Final = ("<video>", "<audio>")
_OTHER_TAGS: Final = re.compile(
    r"<\|?(?:image|img|picture|photo)(?:[ _:-]?\d+|[ _-]?(?:pad|soft_token|token|context"
    r"|placeholder|here))\s*/?\|?>|<\|(?:image|img)\|>|<image\s*/?>|<start_of_image>"
    r"|<\|vision_start\|>|&lt;image&gt;|(?<!!)(?-i:\[IMG\])(?!\(|https?:)",
    re.IGNORECASE,
)
"""Places for images in the spellings of other projects and of models' own templates.

HTML's ``<img>`` and ``<picture>`` are not among them, nor images of Markdown and of BBCode.
"""
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""The words of a column's name, such as ``image`` and ``Path`` of ``imagePath``."""
_IMAGE_WORDS: Final = frozenset(
    name + ending
    for name in ("image", "img", "pic", "picture", "photo", "jpg", "jpeg", "png")
    for ending in ("", "s")
)
"""Words in the names of columns that hold images."""
_NUMBERED: Final = re.compile(r"(?:image|img|picture|photo)s?[ _-]?\d+", re.IGNORECASE)
"""Names of columns that hold one of several images each."""
_FILE_WORDS: Final = frozenset(
    name + ending for name in ("file", "filename", "filepath", "path") for ending in ("", "s")
)
"""Words in the names of columns that name files, such as ``file_name`` of `datasets`' folders."""
_ENCODED: Final = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""What PNG, JPEG, GIF and WebP begin with in base64."""
_NAMED_TAG: Final = re.compile(r"<img>[^<>]+</img>")
"""Qwen-VL's ``<img>path</img>``. HTML's and JSX's tags have their source inside."""
_CLOSING_TAG: Final = "</image>"


def place_images(
    turns: Sequence[Turn], row: Mapping[str, Any], context: RowContext, *, tagged: bool
) -> list[Turn]:
    """Put the images of a row's columns to the places that are open for them.

    Without any place they stand at the beginning of the first turn of the user.

    Args:
        turns: the turns, with tags in their texts.
        row: the row. Its ``images`` and ``image`` hold the images.
        context: where the row lies.
        tagged: whether ``<image>`` in a text is a tag even if the row has no images.

    Raises:
        DataError: images and places differ in number, or an image lies where nothing reads it.
    """
    images = _row_images(row, context)
    filled = [image for image in images if image is not None]
    is_structured = any(not isinstance(part, TextPart) for turn in turns for part in turn.parts)
    if tagged or (filled and not is_structured):
        turns = [replace(turn, parts=split_tags(turn.parts)) for turn in turns]
    elif not is_structured:
        _validate_no_image_tags(turns, row, context)
    _validate_no_media_tags(turns, row, context)
    if filled:
        _validate_not_numbered(row, context)
        _validate_no_closing_tags(turns, context)
    if all(isinstance(part, TextPart) for turn in turns for part in turn.parts):
        if not filled:
            _validate_seen(row, context)
            return list(turns)
        _validate_no_other_tags(turns, context)
        _validate_one_column(row, context)
        turns = _open_first(turns, len(filled), context)
    opened = [part for turn in turns for part in turn.parts if isinstance(part, OpenImage)]
    if any(part.index is not None for part in opened):
        return _filled(turns, iter(_by_index(opened, images, context)))
    _validate_number(opened, filled, row, context)
    return _filled(turns, iter(filled))


def _validate_number(
    opened: Sequence[OpenImage],
    filled: Sequence[ImageRef],
    row: Mapping[str, Any],
    context: RowContext,
) -> None:
    if len(opened) != len(filled):
        raise context.error(
            "placeholders and images differ in number",
            expected=f"{counted(len(opened), 'image')}, one for each {IMAGE_TAG} tag or image part",
            found=f"{len(filled)} in the row's image fields{_elsewhere(opened, row)}",
            mend="Give every image its placeholder and every placeholder its image",
        )


def _row_images(row: Mapping[str, Any], context: RowContext) -> list[ImageRef | None]:
    """The images of the columns, with None for those that name none."""
    images: list[ImageRef | None] = []
    for name in IMAGE_COLUMNS:
        value = row.get(name)
        for source in value if isinstance(value, list) else [value]:
            is_empty = not names_image(source) and not _is_unknown(source)
            images.append(None if is_empty else image_ref(source, context))
        if not isinstance(value, list) and images[-1] is None:
            images.pop()
    return images


def _is_unknown(source: object) -> bool:
    """Whether a mapping holds something, but under no key that names an image."""
    return isinstance(source, Mapping) and any(value is not None for value in source.values())


def _by_index(
    opened: Sequence[OpenImage], images: Sequence[ImageRef | None], context: RowContext
) -> list[ImageRef]:
    """The images that the places name by number."""
    chosen: list[ImageRef] = []
    for part in opened:
        image = None
        if part.index is not None and part.index < len(images):
            image = images[part.index]
        if image is None:
            raise context.error(
                "an image part names an image that the row does not have",
                expected=f"an index below {len(images)} in every image part",
                found=f"index {part.index}",
            )
        chosen.append(image)
    used = {part.index for part in opened}
    unused = [n for n, image in enumerate(images) if image is not None and n not in used]
    if unused:
        raise context.error(
            "no image part names some of the row's images",
            found=f"{counted(len(images), 'image')}, without a part for index {unused[0]}",
            mend="Give every image its placeholder and every placeholder its image",
        )
    return chosen


def _open_first(turns: Sequence[Turn], count: int, context: RowContext) -> list[Turn]:
    """Open places at the beginning of the user's first turn, as TRL does."""
    for number, turn in enumerate(turns):
        if turn.role == "user":
            opened = replace(turn, parts=[*[OpenImage()] * count, *turn.parts])
            return [*turns[:number], opened, *turns[number + 1 :]]
    raise context.error("row has images, but no turn of the user", mend="Drop the sample")


def _filled(turns: Sequence[Turn], images: Iterator[ImageRef]) -> list[Turn]:
    return [
        replace(
            turn,
            parts=[
                ImagePart(next(images)) if isinstance(part, OpenImage) else part
                for part in turn.parts
            ],
        )
        for turn in turns
    ]


def _validate_no_image_tags(
    turns: Sequence[Turn], row: Mapping[str, Any], context: RowContext
) -> None:
    """Refuse tags that no image fills. The model would read the tag, and see nothing."""
    tagged = _find_tagged(turns, IMAGE_TAG)
    if tagged is not None:
        raise context.error(
            f"the {tagged.role}'s text holds {IMAGE_TAG}, and no image belongs to it",
            expected="as many images in the row's field images or image",
            found=_elsewhere((), row, "; ".join(_named(row, IMAGE_COLUMNS)) or "no such field"),
            mend="Name the column of the images in data.columns, or take the tag out",
        )


def _validate_no_media_tags(
    turns: Sequence[Turn], row: Mapping[str, Any], context: RowContext
) -> None:
    if any(_NAMED_TAG.search(_text_of(turn)) for turn in turns if turn.role != "assistant"):
        raise context.error(
            "a text names an image in <img>…</img>, and nothing reads it",
            mend=f"Write {IMAGE_TAG} in its context, and the image into images",
        )
    for tag in _MEDIA_TAGS:
        if _find_tagged(turns, tag) is None:
            continue
        suffixes = _MEDIA_SUFFIXES + _IMAGE_SUFFIXES  # frames may stand for a video
        columns = [name for name in row if _looks_like(row[name], suffixes)]
        columns = [name for name in columns if name not in IMAGE_COLUMNS]
        if columns:
            raise context.error(
                f"a text holds {tag}, and nothing reads {tag[1:-1]}s",
                found="a file in " + ", ".join(columns),
                mend="Drop the sample",
            )


def _validate_no_closing_tags(turns: Sequence[Turn], context: RowContext) -> None:
    """Refuse ``<image></image>``, of which half would stay as text. SVG has such ends, too."""
    for turn in turns:
        for part, after in pairwise(turn.parts):
            is_end = isinstance(after, TextPart) and after.text.lstrip().startswith(_CLOSING_TAG)
            if is_end and isinstance(part, OpenImage):
                raise context.error(
                    f"a text holds {_CLOSING_TAG}, which is not read",
                    mend=f"Write {IMAGE_TAG} alone",
                )


def _validate_no_other_tags(turns: Sequence[Turn], context: RowContext) -> None:
    """Refuse places for images in the spelling of another project, which would stay as text."""
    for turn in turns:
        found = _OTHER_TAGS.search(_text_of(turn))
        if found is not None and turn.role != "assistant":
            raise context.error(
                "a text holds a place for an image that is not read",
                expected=f"{IMAGE_TAG} for each image, or none",
                found=found.group(),
                mend=f"Write {IMAGE_TAG} in its place",
            )


def _text_of(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, TextPart))


def _find_tagged(turns: Sequence[Turn], tag: str) -> Turn | None:
    """The first turn with a tag in its text. An answer may speak of tags."""
    for turn in turns:
        if turn.role == "assistant":
            continue
        for part in turn.parts:
            if isinstance(part, TextPart) and tag in part.text:
                return turn
    return None


def _validate_one_column(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse two columns of images without a place for any. They may hold the same ones."""
    given = [name for name in IMAGE_COLUMNS if names_image(row.get(name))]
    if len(given) > 1:
        raise context.error(
            f"row has both {' and '.join(given)}, and no place says what belongs where",
            mend=f"Write {IMAGE_TAG} for each image, or leave one column out with data.columns: "
            f"{{{given[-1]}: null}}",
        )


def _validate_not_numbered(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse images beside those that are read, in columns such as ``image_2``."""
    others = [name for name in row if _NUMBERED.fullmatch(str(name))]
    others = [name for name in others if _looks_like(row[name], _IMAGE_SUFFIXES)]
    if others:
        raise context.error(
            "numbered columns hold images beside those that are read",
            expected="all images of a row in images, as a list",
            found=", ".join(others),
            mend=f"Put them into images, or set data.columns: {{{others[0]}: null}}",
        )


def _validate_seen(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse a row without images whose other columns hold some: encoded, or as files here."""
    columns = [name for name, value in row.items() if _holds_image(str(name), value, context)]
    if columns:
        raise context.error(
            "a column holds images, and nothing reads it",
            expected="images in images or image",
            found=", ".join(columns),
            mend=f"Set data.columns: {{{columns[0]}: image}}, or {{{columns[0]}: null}} to leave "
            "it out",
        )
    for name, value in row.items():
        first = value[0] if isinstance(value, list) and value else value
        if _names_file(str(name), first, _MEDIA_SUFFIXES, context):
            raise context.error(
                "a column names a video or a sound, and nothing reads it",
                found=f"{name}: {first}",
                mend=f"Drop the sample, or set data.columns: {{{name}: null}} to leave it out",
            )


def _holds_image(name: str, value: object, context: RowContext) -> bool:
    """Whether a column holds encoded images, or is named after images and names files that exist.

    So is ``file_name``. Addresses and names of files that are elsewhere are what many sets of texts
    say of a row.
    """
    if isinstance(value, list):
        return bool(value) and _holds_image(name, value[0], context)
    if isinstance(value, Mapping):
        return any(_holds_image("image", value.get(key), context) for key in ("bytes", "path"))
    if _is_prose(value) or not isinstance(value, str):
        return _looks_like(value)
    if _looks_like(value):
        return True
    return _names_file(name, value, _IMAGE_SUFFIXES, context)


def _names_file(name: str, value: object, suffixes: tuple[str, ...], context: RowContext) -> bool:
    """Whether a column is named after images or files, and names one that exists."""
    if not isinstance(value, str) or _is_prose(value) or not _looks_like(value, suffixes):
        return False
    is_named = is_named_after_images(name) or not _FILE_WORDS.isdisjoint(_words(name))
    return is_named and is_image_file(value, context)


def is_named_after_images(name: str) -> bool:
    """Whether a word of a column's name means images, such as the first of ``image_path``."""
    return not _IMAGE_WORDS.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _is_prose(value: object) -> bool:
    """Whether a text goes over words, as no encoded image and few names of files do."""
    return isinstance(value, str) and len(value.split(None, 3)) > 3


def _elsewhere(opened: Sequence[OpenImage], row: Mapping[str, Any], found: str = "") -> str:
    """Say what may be meant as the missing images: keys of parts, or other columns."""
    keys = sorted({key for part in opened for key in part.keys})
    columns = [name for name in row if _looks_like(row[name], _IMAGE_SUFFIXES)]
    columns = [name for name in columns if name not in IMAGE_COLUMNS]
    if keys:
        found += f"; an image part names no image, but has the keys {', '.join(keys)}"
    if columns:
        found += f"; images in {', '.join(columns)}"
    return found


def _named(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{name} is {row[name]!r:.60}" for name in names if name in row]


def _looks_like(value: object, suffixes: tuple[str, ...] = ()) -> bool:
    """Whether a column holds an encoded image, or names a file with one of the suffixes."""
    if isinstance(value, list):
        return bool(value) and _looks_like(value[0], suffixes)
    if isinstance(value, Mapping):
        suffixes = suffixes or _IMAGE_SUFFIXES
        return _looks_like(value.get("bytes"), suffixes) or _looks_like(value.get("path"), suffixes)
    if isinstance(value, bytes):
        return is_known_image(value)
    if not isinstance(value, str):
        return False
    return value.startswith(_ENCODED) or _file_name(value).endswith(suffixes or ("\0",))


def _file_name(text: str) -> str:
    """A name of a file or an address, in small letters and without its query."""
    return (text.partition("?")[0] if "://" in text[:9] else text).lower()
