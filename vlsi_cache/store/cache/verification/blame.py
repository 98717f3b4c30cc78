"""Who is at fault when a file, its seal and the index disagree: a pure function."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Blame", "FileState", "blame"]

T = TypeVar("T")


class Blame(enum.Enum):
    """The party at fault."""

    NOBODY = enum.auto()
    FILE = enum.auto()
    SEAL = enum.auto()
    INDEX = enum.auto()
    FILE_AND_SEAL = enum.auto()
    """Both are at fault."""
    FILE_OR_SEAL = enum.auto()
    """One of the two is at fault, and nothing shows which."""


@dataclass(frozen=True, slots=True)
class FileState(Generic[T]):
    """What a published file shows."""

    seal: T | None
    """The seal that would be made of it; None if the file cannot be read."""
    is_in_place: bool = True
    """Whether it is the file that its name and the manifest ask for."""
    decodes: bool = True
    """Whether its values can be read."""


def blame(file: FileState[T], seal: T | None, index: T | None) -> Blame:
    """Find the party at fault. Where three speak, two outvote one.

    Args:
        file: what the file shows.
        seal: the seal beside it; None if it is missing or damaged.
        index: the file's seal according to the index; None if there is no index.
    """
    if index is None:
        return _blame_without_index(file, seal)
    if seal is None or seal == index:
        return Blame.NOBODY if file.is_in_place and file.seal == index else Blame.FILE
    # seal and index differ: the file decides, if it is what it should be
    if not file.is_in_place:
        return Blame.FILE_AND_SEAL if file.seal in (seal, index) else Blame.FILE_OR_SEAL
    if file.seal == index:
        return Blame.SEAL
    if file.seal == seal:
        return Blame.INDEX
    return Blame.FILE_OR_SEAL


def _blame_without_index(file: FileState[T], seal: T | None) -> Blame:
    if seal is None or file.seal == seal:
        sound = file.is_in_place and (file.decodes or seal is not None)
        return Blame.NOBODY if sound else Blame.FILE
    # a file that decodes may be right, and its seal wrong
    return Blame.FILE_OR_SEAL if file.decodes else Blame.FILE
