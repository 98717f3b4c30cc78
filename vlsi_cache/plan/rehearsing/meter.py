"""``AllocationMeter``: the most bytes of tensors that were alive at once."""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["AllocationMeter"]

_COPYING = ("c10d._allgather_base_.default", "c10d._reduce_scatter_base_.default")
"""Operations of which gloo makes a whole copy while it works."""

_STORAGE: Any = torch.UntypedStorage


class AllocationMeter(TorchDispatchMode):
    """Counts the storages that operations allocate inside the context, and those that die.

    It sees every operation of forward, backward and optimizer. What an operation allocates and
    frees inside itself is not seen. Tensors may be fake, so nothing of a counted model need exist.
    A fake tensor that is asked for its number says 0.

    Args:
        by_gloo: count the copies that gloo makes of what it gathers or reduces.
    """

    def __init__(self, *, by_gloo: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes that are alive now."""
        self.peak = 0
        """The most bytes that were alive at once, since the beginning or the last ``lower``."""
        self._by_gloo = by_gloo
        self._known: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()
        self._resize = _STORAGE.resize_

    def __enter__(self) -> Self:
        """Begin to count. FSDP empties storages and fills them again, which is no operation."""
        meter = self

        def resize(storage: Any, size: int) -> Any:
            found = meter._resize(storage, size)
            if storage in meter._known:
                meter._change(meter._known[storage], storage.nbytes())
            return found

        _STORAGE.resize_ = resize
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Let storages be resized as before."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _STORAGE.resize_ = self._resize

    def lower(self) -> None:
        """Forget the peak so far: what is alive now is the new one."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it allocates."""
        try:
            output = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001 (its name)
                raise
            return _zero(args[0].dtype)
        if self._by_gloo and str(func) in _COPYING:
            sizes = [one.nbytes for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            self.peak = max(self.peak, self.live + max(sizes))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._add(value)
        return output

    def _add(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):  # whose own storage says the size of all slices
            tensor = tensor._local_tensor  # noqa: SLF001 (to_local would be an operation)
        storage = tensor.untyped_storage()
        if storage in self._known:  # a view, or a result in place
            return
        size = self._known[storage] = [0]
        self._change(size, storage.nbytes())
        weakref.finalize(storage, self._change, size, 0).atexit = False

    def _change(self, size: list[int], now: int) -> None:
        """Note the size that a storage has now."""
        self.live += now - size[0]
        size[0] = now
        self.peak = max(self.peak, self.live)


def _zero(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0
