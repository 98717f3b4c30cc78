"""Files that appear whole or not at all, and that others may read as the user wishes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

__all__ = ["read_file", "share_weights", "write_whole"]


def read_file(path: Path) -> bytes:
    """Read a file. Where a pipe or a device has its name, reading might never end.

    Raises:
        OSError: the file cannot be read, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # whoever opens a pipe waits otherwise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, or replace it, in one step.

    An interruption leaves the file as it was before, and perhaps a file beside it whose name ends
    with ``.partial``.

    Args:
        path: where the file appears; its folder exists.
        text: content, written as UTF-8.
    """
    # jobs of an array may write the same file at once
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # a full disk is noticed in writing, where the system names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def share_weights(path: Path) -> None:
    """Give weights the mode of any other file that the user makes beside them.

    The writer of safetensors makes them by a temporary file, which the user alone may read.

    Args:
        path: weights that were just written, or the folder of such.
    """
    folder = path if path.is_dir() else path.parent
    private = [file for file in folder.glob("*.safetensors") if not file.is_symlink()]
    # A new file has what the umask and the folder's own rules make of it. The umask itself cannot
    # be read without a change to it, which would concern the files of other threads.
    probe = folder / f".mode.{secrets.token_hex(8)}.partial"
    with contextlib.suppress(OSError):
        try:
            probe.touch(exist_ok=False)
            mode = stat.S_IMODE(probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)
        for file in private if path.is_dir() else [path]:
            with contextlib.suppress(OSError):  # a file system may have no modes
                file.chmod(mode)
