"""From YAML and flags to a validated recipe, reporting every fault at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from vlsi_cache.errors import RecipeError
from vlsi_cache.recipe.sections import Contradiction, Recipe, Section

__all__ = ["apply_overrides", "load_recipe", "recipe_from_mapping"]


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and lay overrides over it.

    Args:
        path: YAML file; ``None`` starts from the defaults.
        overrides: ``dotted.key=value`` with the value in YAML, later ones winning.

    Raises:
        RecipeError: the file cannot be read, is not a mapping, or any field is unknown, of the
            wrong type or in contradiction with another. All faults are named, with their paths.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(path)
    return recipe_from_mapping(apply_overrides(raw, overrides), where=path or "flags")


def recipe_from_mapping(raw: Mapping[str, Any], *, where: object) -> Recipe:
    """Validate a nested mapping as a recipe.

    Raises:
        RecipeError: naming every fault with its path.
    """
    faults: list[Contradiction] = []
    pruned = copy.deepcopy(dict(raw))
    # What is wrong is reported, taken out, and the rest is validated again: so contradictions
    # between sound fields are reported in the same breath as misspelt keys.
    while True:
        try:
            recipe = Recipe.model_validate(pruned)
            break
        except ValidationError as error:
            located = [(_existing_path(pruned, fault["loc"]), fault) for fault in error.errors()]
            for keys, fault in located:
                faults.append((".".join(map(str, keys)), _explain(fault)))
                _remove(pruned, keys)
    faults += recipe.contradictions()
    if faults:
        listing = "; ".join(f"{path}: {fault}" for path, fault in dict(faults).items())
        noun = "1 fault" if len(dict(faults)) == 1 else f"{len(dict(faults))} faults"
        raise RecipeError(
            f"recipe has {noun}: {listing}",
            where=where,
            mend=f"Every key is described in {files('vlsi_cache.schemas') / 'recipe.json'}",
        )
    return recipe


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``raw`` with ``dotted.key=value`` assignments laid over it.

    Raises:
        RecipeError: an assignment has no ``=``, no valid YAML value, or runs through a plain value.
    """
    merged = copy.deepcopy(dict(raw))
    for assignment in overrides:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            raise RecipeError(
                "override is not key=value", where=assignment, mend="Write it as cache.k=8"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError("override's value is not YAML", where=assignment) from error
        node = merged
        *parents, last = dotted.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise RecipeError(f"{parent} is a plain value, not a section", where=assignment)
            node = child
        node[last] = value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("recipe not found", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe cannot be read ({error})", where=path) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe is not YAML ({error})", where=path) from error
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


def _known_paths(section: type[Section], inside: str = "") -> list[str]:
    """Paths of all fields, of nested sections too."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(inside + name)
        for nested in (field.annotation, *get_args(field.annotation)):
            if isinstance(nested, type) and issubclass(nested, Section):
                paths += _known_paths(nested, f"{inside}{name}.")
    return paths


def _suggestion(path: str) -> str:
    """What an unknown key was meant to be: one of that name elsewhere, or a neighbour."""
    parent, _, name = path.rpartition(".")
    names = {known: known.rpartition(".") for known in _known_paths(Recipe)}
    neighbours = [own for above, _, own in names.values() if above == parent]
    everywhere = {own for _, _, own in names.values()}
    near = get_close_matches(name, neighbours, n=1) if name not in everywhere else []
    if near:
        return f", perhaps {near[0]}"
    near = [name] if name in everywhere else get_close_matches(name, everywhere, n=1)
    found = [known for known, (_, _, own) in names.items() if near and own == near[0]]
    if not found:
        return ""
    named = " or ".join(found[:2]) + (f" (or {len(found) - 2} more)" if len(found) > 2 else "")
    return f", perhaps {named}"


def _existing_path(raw: Any, location: Sequence[int | str]) -> list[int | str]:
    """The part of a pydantic error location that names keys of the input (not union branches)."""
    keys: list[int | str] = []
    node = raw
    for key in location:
        inside_mapping = isinstance(node, dict) and key in node
        inside_list = isinstance(node, list) and isinstance(key, int) and key < len(node)
        if not inside_mapping and not inside_list:
            break
        keys.append(key)
        node = node[key]
    return keys


def _remove(raw: dict[str, Any], keys: Sequence[int | str]) -> None:
    """Take out the faulty value; a fault inside a list takes the whole list."""
    node: Any = raw
    for position, key in enumerate(keys):
        if not isinstance(node, dict) or key not in node:
            return  # an earlier fault of the same value took it out already
        if position == len(keys) - 1 or isinstance(node[key], list):
            del node[key]
            return
        node = node[key]


def _explain(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key" + _suggestion(".".join(map(str, fault["loc"])))
    message = str(fault["msg"])
    return f"{message[0].lower()}{message[1:]}, found {fault['input']!r}"
