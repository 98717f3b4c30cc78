"""A path that is not there to the one that is perhaps meant."""

from __future__ import annotations

import itertools
import os
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final

__all__ = ["find_near", "nothing_at", "perhaps"]

_ALIKE: Final = 0.7
"""How alike two names are, without their suffixes, of which one is perhaps meant by the other."""
_MOST_NAMES: Final = 2000
"""Names of a folder that are compared. A folder of pictures may have millions."""
_MOST_CHARACTERS: Final = 255
"""Longest name of a file. Whatever is longer is compared with nothing."""


def perhaps(path: str | Path, otherwise: str, *, folder: bool = False) -> str:
    """Return the advice for a path that is not there: the one that is near, or another advice.

    Args:
        path: what is not there.
        otherwise: the advice where nothing is near.
        folder: whether a folder is wanted.
    """
    near = find_near(path, folder=folder)
    return otherwise if near is None else f"Perhaps {near} is meant"


def find_near(path: str | Path, *, folder: bool = False) -> str | None:
    """Find what lies where a misspelt path leads: each of its names may be nearly right.

    Args:
        path: what is not there.
        folder: whether only folders count.
    """
    wanted = Path(path)
    found = Path(wanted.anchor)
    names = wanted.parts[1:] if wanted.anchor else wanted.parts
    for number, name in enumerate(names, start=1):
        is_last = number == len(names)
        if name == os.pardir or (not is_last and _is_folder(found / name)):
            found /= name
            continue
        near = _nearest(name, _names(found, folder=folder or not is_last))
        if near is None:
            return None
        found /= near
    return str(found) if names else None


def nothing_at(path: str | Path) -> str:
    """Return what is found in place of a path that is not there: the folder that lacks it."""
    whole = Path.cwd() / path
    for above in whole.parents:
        if _is_folder(above):
            return f"no {whole.relative_to(above).parts[0]} in {above}"
    return "nothing"


def _nearest(name: str, names: list[str]) -> str | None:
    """Return the name that is most like another, if one is like it."""
    if len(name) > _MOST_CHARACTERS:
        return None
    likeness = {other: _likeness(name.lower(), other.lower()) for other in sorted(names)}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] >= _ALIKE else None


def _likeness(one: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1. Suffixes only decide between equals."""
    (first, first_suffix), (second, second_suffix) = _split(one), _split(other)
    alike = SequenceMatcher(None, first, second).ratio()
    return alike + 0.01 * SequenceMatcher(None, first_suffix, second_suffix).ratio()


def _split(name: str) -> tuple[str, str]:
    """Part a name at its suffix. That of a version, such as ``.5-VL``, is none."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, suffix) if stem and dot and suffix.isalpha() else (name, "")


def _names(inside: Path, *, folder: bool) -> list[str]:
    """Return the names of files and folders, or of folders alone."""
    try:
        with os.scandir(inside) as entries:
            shown = itertools.islice(entries, _MOST_NAMES)
            return [entry.name for entry in shown if not folder or entry.is_dir()]
    except (OSError, ValueError):  # such as a folder that cannot be listed
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # such as a name that is too long, or that holds a NUL byte
        return False
