"""Files of JSON lines, one per step: what a resumed stage keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vlsi_cache.errors import StageError
from vlsi_cache.files import read_file, write_whole
from vlsi_cache.stagefiles import SteppedLine

__all__ = ["keep_lines"]

_MEND: Final = "Move the file elsewhere. The stage then goes on, with a new journal"


def keep_lines(path: Path, model: type[SteppedLine], step: int) -> None:
    """Drop the lines after a step: they will be written again.

    Args:
        path: the file, which need not be there.
        model: the model of a line.
        step: the last step whose line is kept.

    Raises:
        StageError: a line is damaged, and not by an interruption: that tears only the last.
    """
    if not path.exists():
        return
    kept = []
    texts = _read(path).rstrip(b"\0\n").split(b"\n")
    for number, text in enumerate(texts, start=1):
        try:
            line = model.model_validate_json(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise StageError(
                f"line {number} of the journal is damaged",
                where=path,
                mend=_MEND,
            ) from error
        if line.step > step:
            break
        kept.append(text.decode() + "\n")
    write_whole(path, "".join(kept))


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise StageError(
            f"journal cannot be read ({error.strerror})", where=path, mend=_MEND
        ) from error
