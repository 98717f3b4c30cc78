"""The small files beside a model's weights. Damaged ones are named before a library reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from vlsi_cache.contents import find_contents
from vlsi_cache.errors import ModelError, excerpt, first_line

__all__ = [
    "CONFIG_FILE",
    "explain_config",
    "explain_processor",
    "read_object",
    "validate_config_files",
    "validate_processor_files",
]

CONFIG_FILE: Final = "config.json"
_CONFIGS: Final = (CONFIG_FILE, "generation_config.json")
_WORDS: Final = "tokenizer.json"
_PROCESSOR: Final = "processor_config.json"
_PROCESSORS: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    _PROCESSOR,
    "preprocessor_config.json",
    "chat_template.json",
)
_SELDOM_READ: Final = ("added_tokens.json", "vocab.json", "video_preprocessor_config.json")
"""Files that a processor may do without, although they are there."""
_VOCABULARIES: Final = ("tokenizer.model", "spiece.model", "vocab.txt", "merges.txt")
_TEMPLATES: Final = ("chat_template.jinja", "additional_chat_templates/*.jinja")
_LARGE_BYTES: Final = 1 << 20
"""Of a larger file, the two ends are looked at. Its reader parses the rest anyway."""
_BEFORE: Final = 20
_AGAIN: Final = "Copy or download it again"


def validate_config_files(folder: Path) -> None:
    """Refuse a damaged configuration of the model, or of its generation.

    transformers passes over the second one in silence, and generates with other settings.

    Raises:
        ModelError: a file is not a JSON object.
    """
    _validate_objects(folder, _CONFIGS)


def validate_processor_files(folder: Path) -> None:
    """Refuse a damaged file of the processor, as far as it shows without loading it.

    Raises:
        ModelError: a file is not a JSON object, or a template is not text.
    """
    _validate_objects(folder, _PROCESSORS)
    words = folder / _WORDS
    if words.exists():
        _validate_ends(words)
    for pattern in _TEMPLATES:
        for path in sorted(folder.glob(pattern)):
            _validate_template(path)


def explain_processor(folder: Path) -> None:
    """Refuse the file for which a processor could not be loaded. The library rarely names it.

    Raises:
        ModelError: a file is damaged.
    """
    validate_config_files(folder)
    words = folder / _WORDS
    if words.is_file():
        read_object(words)
        try:
            Tokenizer.from_file(str(words))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelError(
                "the file is JSON, but not a tokenizer",
                where=words,
                found=first_line(error),
                mend=_AGAIN,
            ) from error
    _validate_objects(folder, _SELDOM_READ)
    _validate_image_processor(folder)
    for name in _VOCABULARIES:
        if (folder / name).exists():
            _validate_not_lost(folder / name)


def explain_config(folder: Path) -> None:
    """Refuse a configuration that names no family, or one that transformers does not have.

    Raises:
        ModelError: it is such a one.
    """
    from transformers import CONFIG_MAPPING

    fields = read_object(folder / CONFIG_FILE)
    if fields.get("auto_map"):
        return
    family = fields.get("model_type")
    if family is None:
        raise ModelError(
            "the configuration names no model_type",
            where=folder / CONFIG_FILE,
            found=f"the fields {', '.join(sorted(fields)[:8])}" if fields else "no field at all",
            mend="Copy the model's own config.json again",
        )
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise ModelError(
            "transformers has no such model_type",
            where=folder / CONFIG_FILE,
            found=excerpt(str(family)),
            mend="Correct it, or update transformers if the model is newer",
        )


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    _validate_text(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, text, error) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            "the file cannot be read", where=path, found=first_line(error), mend=_AGAIN
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            "the file holds no JSON object",
            where=path,
            expected="{…}",
            found=excerpt(json.dumps(found)),
            mend="Copy the model's own file again",
        )
    return found


def _not_json(path: Path, text: str, error: json.JSONDecodeError) -> ModelError:
    rest = text[error.pos :].strip()
    is_cut = not rest or error.msg.startswith("Unterminated")
    shown = excerpt(text[max(0, error.pos - _BEFORE) :].strip())
    place = f"line {error.lineno}, column {error.colno}"
    return ModelError(
        f"the file is not JSON ({error.msg.removesuffix(' at')} at {place})",
        where=path,
        found=shown if rest else "the end of the file",
        mend=f"{_AGAIN}: it ends before its JSON does" if is_cut else "Mend it there, or copy it",
    )


def _validate_objects(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        if path.exists() or path.is_symlink():
            read_object(path)


def _validate_image_processor(folder: Path) -> None:
    """Refuse a processor's file that describes no image processor, where no other file does."""
    path = folder / _PROCESSOR
    if not path.is_file() or (folder / "preprocessor_config.json").exists():
        return
    fields = read_object(path)
    if "image_processor" not in fields:
        raise ModelError(
            "the file describes no image processor",
            where=path,
            expected="image_processor in it, or preprocessor_config.json beside it",
            found=f"the fields {', '.join(sorted(fields)[:8])}" if fields else "no field at all",
            mend="Copy the processor's own files again",
        )


def _validate_ends(path: Path) -> None:
    """Refuse a large file of JSON that is none, or that is cut off."""
    _validate_text(path)
    size = path.stat().st_size
    if size <= _LARGE_BYTES:
        read_object(path)
        return
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
        file.seek(size - 64)
        end = file.read().rstrip()
    if not begin.startswith(b"{") or not end.endswith(b"}"):
        read_object(path)


def _validate_template(path: Path) -> None:
    _validate_text(path, "a template")
    try:
        path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            "the file cannot be read",
            where=path,
            found=first_line(error),
            mend="Save the file as UTF-8",
        ) from error


def _validate_text(path: Path, expected: str = "JSON") -> None:
    """Refuse a file that does not hold text, with what it does hold."""
    found = _contents_of(path)
    if found.kind != "text":
        raise ModelError(
            f"the file is not {expected}, but {found.words}", where=path, mend=found.mend
        )


def _validate_not_lost(path: Path) -> None:
    found = _contents_of(path)
    if found.kind == "not the file":
        raise ModelError(f"the file is {found.words}", where=path, mend=found.mend)


def _contents_of(path: Path) -> Any:
    try:
        return find_contents(path)
    except OSError as error:
        raise ModelError(
            "the file cannot be read",
            where=path,
            found="a folder" if path.is_dir() else error.strerror,
            mend=_AGAIN,
        ) from error
