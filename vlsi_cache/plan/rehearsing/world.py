"""``rehearsing``: a context in which tensors on an accelerator have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["forget_conversions", "rehearsing"]


class _ShortMemory(dict[Any, Any]):
    """A memory of one pair.

    ``Module.to`` exchanges a fake parameter for its copy, and refuses to while something refers to
    it weakly. The mode's own memory of converted tensors would.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep the pair in place of the one before."""
        self.clear()
        super().__setitem__(key, value)


def forget_conversions() -> None:
    """Let go of the tensor that a rehearsal has converted last, so that it counts no more."""
    mode: Any = detect_fake_mode()
    mode.fake_tensor_converter.meta_converter.tensor_memo.clear()


@contextmanager
def rehearsing() -> Iterator[None]:
    """Run everything inside on fake tensors, with the kernels' choices of a CUDA device.

    No device is needed, no memory is taken, and no weight is read. What decides by numbers fails.
    """
    mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
    mode.fake_tensor_converter.meta_converter.tensor_memo = _ShortMemory()
    with mode:
        yield
