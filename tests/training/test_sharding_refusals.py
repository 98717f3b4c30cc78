"""What is said where a module cannot be sharded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import PartialState
from torch import nn

from vlsi_cache.errors import StageError
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.sharding import FsdpOptions, shard


class _Odd(StageModule):
    """A module with a part that FSDP2 does not take: a list is never called."""

    def units(self) -> list[nn.Module]:
        return [nn.ModuleList([nn.Linear(2, 2)])]

    def begin_sharding(self) -> None:
        """Have nothing to prepare."""


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    PartialState(cpu=True)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("was_asked_for", "where", "mend"),
    [
        (True, "_Odd: the module cannot be sharded by FSDP2 (", "Start the command without FSDP"),
        (
            False,
            "teacher.tensor_parallel: the teacher's verbalizers cannot be sharded",
            "Start one process, with teacher.device_map: auto in place of teacher.tensor_parallel.",
        ),
    ],
)
def test_what_cannot_be_sharded_is_named_with_its_cause(
    was_asked_for: bool, where: str, mend: str, group: None
) -> None:
    module = _Odd()
    with pytest.raises(StageError) as caught:
        shard(module, FsdpOptions(was_asked_for=was_asked_for), torch.device("cpu"))
    assert str(caught.value).startswith(where)
    assert mend in str(caught.value)
    assert ("FSDP" in str(caught.value).partition("(")[0]) == was_asked_for
