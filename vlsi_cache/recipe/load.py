"""From YAML and flags to a validated recipe. An error names every problem at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

import yaml
from pydantic import ValidationError

from vlsi_cache.errors import RecipeError, counted
from vlsi_cache.recipe.recipe import Recipe
from vlsi_cache.recipe.section import Contradiction, Section
from vlsi_cache.recipe.yamlfile import read_yaml

__all__ = [
    "RecipeProblemsError",
    "apply_overrides",
    "keys_named",
    "load_recipe",
    "recipe_from_mapping",
]


_KINDS: Final = {"list_type": "a list", "dict_type": "a mapping", "path_type": "a path"}
"""What an error of pydantic wants, in words of YAML."""
_SET: Final = "--set "
_ALIKE: Final = 0.6
_ALL_BUT_THE_SAME: Final = 0.8
"""How alike a misspelt key and the suggested one are: at 0.8, ``tap`` and ``taps``."""


class RecipeProblemsError(RecipeError):
    """Fields of a recipe are unknown, unsound or contradict one another.

    Args:
        problems: the problem of each field, by its path.
        origin: name of the recipe.
        flags: the flag that gave a key's value, by the dotted key. The error names it.
    """

    def __init__(
        self,
        problems: Mapping[str, str],
        origin: object,
        flags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.problem_by_path = problems
        self.origin = origin
        typed = {path: _flag_of(path, flags) for path in problems}
        listing = [
            f"{typed[path] or path}: {_in_flags(problem, flags)}"
            for path, problem in problems.items()
        ]
        count = counted(len(problems), "problem")
        if all(typed.values()):  # who typed flags need not know the recipe
            what, details = (listing[0], []) if len(listing) == 1 else (count, listing)
            by_key = any(flag.startswith(_SET) for flag in typed.values() if flag)
            super().__init__(what, problems=details, mend=_described() if by_key else "See --help")
            return
        super().__init__(
            f"recipe has {count}",
            where=origin,
            problems=listing,
            mend=_described(),
        )

    def naming(self, flags: Mapping[str, str]) -> RecipeProblemsError:
        """Return the same error in the words of who typed flags."""
        return RecipeProblemsError(self.problem_by_path, self.origin, flags)


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides to it.

    Args:
        path: YAML file. None starts from the defaults.
        overrides: ``dotted.key=value`` with the value in YAML. A later one wins.

    Raises:
        RecipeError: the file cannot be read or is not a mapping. Or a field is unknown, of the
            wrong type, or contradicts another. The error names all problems with their paths.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = read_yaml(path)
    return recipe_from_mapping(apply_overrides(raw, overrides), where=path or "flags")


def recipe_from_mapping(raw: Mapping[str, Any], *, where: object) -> Recipe:
    """Validate a nested mapping as a recipe.

    Raises:
        RecipeError: there are problems. The error names each with its path.
    """
    problems: list[Contradiction] = []
    pruned = copy.deepcopy(dict(raw))
    # Wrong values are noted and removed, and the rest is validated again. So one error names both
    # misspelt keys and contradictions between sound fields.
    while True:
        try:
            recipe = Recipe.model_validate(pruned)
            break
        except ValidationError as error:
            located = [(_existing_path(pruned, found["loc"]), found) for found in error.errors()]
            for keys, found in located:
                problems.append((".".join(map(str, keys)), _explain(found)))
                _remove(pruned, keys)
    problems += recipe.contradictions()
    if problems:
        raise RecipeProblemsError(dict(problems), where)
    return recipe


def _described() -> str:
    return f"Every key is described in {files('vlsi_cache.schemas') / 'recipe.json'}"


def _flag_of(path: str, flags: Mapping[str, str]) -> str | None:
    """Return the flag that gave the value at a path, or a part of it."""
    return next((flag for key, flag in flags.items() if f"{path}.".startswith(f"{key}.")), None)


def _in_flags(problem: str, flags: Mapping[str, str]) -> str:
    """Return a problem with flags in place of the keys whose values they gave."""
    for key, flag in flags.items():
        if "." in key and not flag.startswith(_SET):  # any other may be a plain word
            # a key with its value, or a longer one, is not what the flag gave
            key = rf"(?<![\w.]){re.escape(key)}(?![\w=]|\.\w)"
            problem = re.sub(key, flag, problem)
    return problem


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``raw`` with ``dotted.key=value`` assignments applied.

    Raises:
        RecipeError: an assignment has no ``=`` or no valid YAML value, or its key leads through a
            plain value.
    """
    merged = copy.deepcopy(dict(raw))
    for assignment in overrides:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            raise RecipeError(
                "override is not key=value",
                where=assignment,
                mend="Write it as KEY=VALUE, such as cache.k=8",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(
                "override's value is not YAML",
                where=assignment,
                mend="Quote what the shell would part or change: --set 'teacher.taps=[1, 3]'",
            ) from error
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


def _known_paths(section: type[Section], inside: str = "") -> list[str]:
    """Paths of all fields, also of nested sections."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(inside + name)
        for nested in (field.annotation, *get_args(field.annotation)):
            if isinstance(nested, type) and issubclass(nested, Section):
                paths += _known_paths(nested, f"{inside}{name}.")
    return paths


def keys_named(name: str) -> list[str]:
    """Return the recipe's keys whose last part has a name, as dotted paths."""
    return [path for path in _known_paths(Recipe) if path.rpartition(".")[2] == name]


def _suggestion(path: str) -> str:
    """Guess the intended key: one of the same name elsewhere, or a neighbour."""
    parent, _, name = path.rpartition(".")
    names = {known: known.rpartition(".") for known in _known_paths(Recipe)}
    neighbours = [own for above, _, own in names.values() if above == parent]
    everywhere = {own for _, _, own in names.values()}
    # a name that exists elsewhere is meant there, unless a neighbour is all but the same
    likeness = _ALL_BUT_THE_SAME if name in everywhere else _ALIKE
    near = get_close_matches(name, neighbours, n=1, cutoff=likeness)
    if near:
        return f", perhaps {near[0]}"
    near = [name] if name in everywhere else get_close_matches(name, everywhere, n=1)
    found = [known for known, (_, _, own) in names.items() if near and own == near[0]]
    if not found:
        return ""
    named = " or ".join(found[:2]) + (f" (or {len(found) - 2} more)" if len(found) > 2 else "")
    return f", perhaps {named}"


def _existing_path(raw: Any, location: Sequence[int | str]) -> list[int | str]:
    """The part of a pydantic error's location that names keys of the input, not union branches."""
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
    """Remove a wrong value. A wrong value inside a list removes the whole list."""
    node: Any = raw
    for position, key in enumerate(keys):
        if not isinstance(node, dict) or key not in node:
            return  # an earlier problem with the same value removed it already
        if position == len(keys) - 1 or isinstance(node[key], list):
            del node[key]
            return
        node = node[key]


def _section_keys(location: Sequence[int | str]) -> str:
    """The keys of the section at a place in the recipe, if it is one."""
    kind: Any = Recipe
    kinds: list[Any] = []
    for key in location:
        field = getattr(kind, "model_fields", {}).get(key)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        kind = next((one for one in kinds if hasattr(one, "model_fields")), None)
    names = list(getattr(kind, "model_fields", {}))
    off = ", or null for none" if type(None) in kinds else ""
    return (f" with keys such as {', '.join(names[:4])}" if names else "") + off


def _explain(found: Any) -> str:
    """One of pydantic's errors in our words."""
    if found["type"] == "extra_forbidden":
        return "unknown key" + _suggestion(".".join(map(str, found["loc"])))
    if found["type"] in ("model_type", "model_attributes_type"):
        keys = _section_keys(found["loc"])
        return f"should be a mapping{keys}, found {found['input']!r}"
    if found["type"] == "list_type" and isinstance(found["input"], str | int | float):
        return f"should be a list, found {found['input']!r}: write [{found['input']}]"
    if found["type"] in _KINDS:
        return f"should be {_KINDS[found['type']]}, found {found['input']!r}"
    message = str(found["msg"])
    return f"{message[0].lower()}{message[1:]}, found {found['input']!r}"
