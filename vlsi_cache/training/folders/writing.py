"""Errors of reading and writing a run's files, in the user's words: which, why, and what to do."""

from __future__ import annotations

import errno
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from vlsi_cache.errors import StageError, first_line

__all__ = ["plain_read_errors", "plain_write_errors", "quiet_event_writer"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE: Final = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
)
_RUST_NUMBER: Final = re.compile(r"os error ([0-9]+)")
"""The system's number in errors of safetensors and tokenizers."""
_TORCH_WRITER: Final = re.compile(r"inline_container|iostream error|PytorchStreamWriter")
"""Words of torch's own writer, which hides the system's reason."""
_TORCH_NO_FOLDER: Final = re.compile(r"Parent directory .* does not exist")
_TORN: Final = (
    *(OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, pickle.UnpicklingError, zipfile.BadZipFile),
)
"""What torch and safetensors raise for a file that is cut off or is something else."""

_NOT_TORCHS: Final = "a file in it is not what torch has saved"

_EVENT_THREAD: Final = "_AsyncWriterThread"


@contextmanager
def plain_write_errors(where: Path | None = None) -> Iterator[None]:
    """Turn errors of the system and of other libraries' writers into a ``StageError``.

    Args:
        where: what is written, for errors that name no file.

    Raises:
        StageError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else None
        if error.errno not in (*_NO_ROOM, *_UNUSABLE):
            raise  # no question of files, such as a lost connection
        raise _problem(error.errno, Path(named) if named else where) from error
    except SafetensorError as error:
        number = _RUST_NUMBER.search(str(error))
        raise _problem(int(number[1]) if number else errno.EIO, where) from error
    except RuntimeError as error:
        if _TORCH_NO_FOLDER.search(str(error)):
            raise _problem(errno.ENOENT, where) from error
        if not _TORCH_WRITER.search(str(error)):
            raise
        raise _problem(errno.ENOSPC, where) from error
    except Exception as error:
        number = _RUST_NUMBER.search(str(error))
        if type(error) is not Exception or number is None:  # as tokenizers raise it
            raise
        raise _problem(int(number[1]), where) from error


def _problem(number: int, where: Path | None) -> StageError:
    no_room = number in _NO_ROOM
    return StageError(
        "no room for the file" if no_room else "file cannot be read or written",
        where=where,
        found=os.strerror(number),
        mend="Make room, then run the same command again. It goes on where it stopped"
        if no_room
        else "Check that the folder exists and may be written to, then run the same command again",
    )


@contextmanager
def plain_read_errors(checkpoint: str | None) -> Iterator[None]:
    """Turn what torch and safetensors raise for a damaged checkpoint into a ``StageError``.

    Args:
        checkpoint: its folder.

    Raises:
        StageError: a file of the checkpoint is damaged.
    """
    try:
        yield
    except _TORN as error:
        if checkpoint is None:
            raise
        # torch advises to run what a file of unknown origin holds
        other = isinstance(error, pickle.UnpicklingError)
        raise StageError(
            f"checkpoint cannot be read ({_NOT_TORCHS if other else first_line(error)})",
            where=checkpoint,
            mend="Delete this checkpoint. The stage then goes on from the one before, or begins "
            "again",
        ) from error


@contextmanager
def quiet_event_writer() -> Iterator[None]:
    """Keep the traceback of TensorBoard's thread from the terminal.

    The same error comes out of the next call of its writer, as one that can be caught.
    """
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != _EVENT_THREAD:
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
