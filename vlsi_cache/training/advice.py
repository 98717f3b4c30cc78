"""What to do about a sample that cannot be read, said where it ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlsi_cache.errors import DataError

__all__ = ["ADVICE", "advising"]

ADVICE = "`vlsi-cache check` lists all such rows before a run, and --on-error skip leaves them out"


@contextmanager
def advising() -> Iterator[None]:
    """Add the advice to the error of a sample that cannot be read."""
    try:
        yield
    except DataError as error:
        raise _advised(error) from error


def _advised(error: DataError) -> DataError:
    mend = error.mend or ""
    return DataError(
        error.what,
        where=error.where,
        expected=error.expected,
        found=error.found,
        mend=f"{mend.rstrip('.')}. {ADVICE}" if mend else ADVICE,
    )
