"""``made_up_processes``: processes that do not exist, for code that asks others for weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from vlsi_cache.errors import StageError

__all__ = ["made_up_processes"]


@contextmanager
def made_up_processes(count: int) -> Iterator[DeviceMesh | None]:
    """Be the first of several processes whose others answer at once, without numbers.

    Args:
        count: processes. For one alone, there is no mesh.

    Raises:
        StageError: this process belongs to others that exist.
    """
    if count == 1:
        yield None
        return
    if torch.distributed.is_initialized():
        raise StageError(
            "a plan of sharded weights is made by one process, and a launcher has started several",
            mend="Start vlsi-cache plan without a launcher",
        )
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()
