"""The files of a stage's folder, read line by line, with a note on what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from vlsi_cache.errors import StageError, counted
from vlsi_cache.stagefiles import STAGE_FILE, StageRecord

__all__ = ["iter_lines", "read_record"]

L = TypeVar("L", bound=BaseModel)


def read_record(folder: Path) -> StageRecord:
    """Read how a stage was made.

    Raises:
        StageError: the file cannot be read.
    """
    path = folder / STAGE_FILE
    try:
        return StageRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StageError(
            f"{STAGE_FILE} cannot be read",
            where=path,
            found=_reason(error),
            mend="Restore the file from a copy, or delete the folder and run the stage again",
        ) from error


def iter_lines(path: Path, model: type[L], notes: list[str]) -> Iterator[L]:
    """Yield the whole lines of a file that grows. There may be no file.

    Args:
        path: the file.
        model: what a line holds.
        notes: gets a note on lines that cannot be read.

    Raises:
        StageError: the file cannot be opened.
    """
    damaged: list[int] = []
    number = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    yield model.model_validate_json(text)
                except ValidationError:
                    damaged.append(number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StageError("file cannot be read", where=path, found=_reason(error)) from error
    if damaged == [number]:
        notes.append(f"The last line of {path.name} is not whole, and is left out.")
    elif damaged:
        notes.append(
            f"{counted(len(damaged), 'line')} of {path.name} cannot be read, the first at "
            f"{damaged[0]:,}. The figures are of the other lines."
        )


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])
