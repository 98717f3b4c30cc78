"""Memory that runs out: how it is recognised, and a bound that falls with it."""

from __future__ import annotations

import contextlib
from typing import Final

import torch
from accelerate.utils.memory import clear_device_cache

__all__ = ["TokenBound", "is_out_of_memory", "release_memory"]

_WORDS: Final = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad allocation",
    "bad_alloc",
)
"""What the allocators of torch and its libraries say where they raise a plain ``RuntimeError``."""


def is_out_of_memory(error: BaseException) -> bool:
    """Report whether an error says that a device, or this machine, has no memory for more."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release_memory() -> None:
    """Return what a failed pass has allocated. The error must be gone: it holds the tensors."""
    clear_device_cache(garbage_collection=True)


class TokenBound:
    """Most padded tokens of a batch, which loader workers see falling.

    Args:
        most: the bound at first; None for none.
    """

    def __init__(self, most: int | None) -> None:
        self._most = torch.tensor(most or 0)
        with contextlib.suppress(RuntimeError):  # no shared memory: workers keep the first bound
            self._most.share_memory_()

    @property
    def most(self) -> int | None:
        """The bound now; None for none."""
        return int(self._most) or None

    def lower(self, most: int) -> None:
        """Allow no more than so many tokens, at least one."""
        self._most.fill_(max(most, 1))
