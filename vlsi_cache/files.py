"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a text file, or replace it, in one step.

    An interruption leaves the file as it was before, and perhaps a file beside it whose name ends
    with ``.partial``.

    Args:
        path: where the file appears; its folder exists.
        text: content, written as UTF-8.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # a full disk is noticed in writing, where the system names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
