"""A recipe's file to plain values. Its errors name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from vlsi_cache.contents import find_contents
from vlsi_cache.errors import RecipeError, excerpt, first_line
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.nearby import nothing_at, perhaps

__all__ = ["read_yaml"]

_MERGE: Final = "tag:yaml.org,2002:merge"
_DATA: Final = (".jsonl", ".ndjson", ".parquet", ".arrow", ".csv")
_NO_TABS: Final = "found character '\\t' that cannot start any token"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice. YAML's own loader takes the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the sections of a recipe. An empty file has none.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        if path.is_dir():
            found = find_folder_contents(path).words
            raise RecipeError("a recipe is a file of YAML", where=path, found=f"{found}, a folder")
        if path.is_file():  # a pipe gives its bytes once
            _validate_kind(path)
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        raise RecipeError(
            "recipe not found",
            where=path,
            found=nothing_at(path),
            mend=perhaps(path, "Give a file of YAML"),
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            "recipe is not UTF-8", where=path, found=first_line(error), mend="Save it as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError("recipe cannot be read", where=path, found=error.strerror) from error
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise RecipeError(
            "recipe is not a mapping of sections",
            where=path,
            expected="keys such as teacher, student, data",
            found=type(raw).__name__,
        )
    return raw


def _validate_kind(path: Path) -> None:
    """Refuse a file that is known not to be a recipe by its name or its first bytes."""
    found = find_contents(path)
    if path.suffix.lower() in _DATA:
        raise RecipeError(
            "this is data, and a recipe is wanted", where=path, mend=f"Give it as --data {path}"
        )
    if found.kind not in ("text", "empty"):
        raise RecipeError(
            f"recipe is not text, but {found.words}", where=path, mend="Give a file of YAML"
        )


def _not_yaml(path: Path, error: yaml.YAMLError) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    line = (mark.get_snippet(indent=0) or "").splitlines()[:1] if mark is not None else []
    return RecipeError(
        f"recipe is not YAML ({problem}{place})",
        where=where,
        found=excerpt(line[0].strip()) if line and line[0].strip() else None,
        mend="Indent with spaces: YAML takes no tabs" if problem == _NO_TABS else None,
    )
