"""``FirstBatches``: batches from all over the data, for what is fitted before a stage's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.training.processes import raise_together

__all__ = ["FirstBatches"]


@dataclass(frozen=True, slots=True)
class FirstBatches:
    """Batches from all over the data, as many for each process."""

    collate: Callable[[list[int]], dict[str, Any]]
    """Indices of samples → a batch with ``labels`` and ``token_samples``."""
    indices: np.ndarray[Any, Any]
    """The samples to choose from."""
    batch_size: int
    """Samples of a batch."""
    is_shared: bool = False
    """Whether all processes read the same."""

    def until(self, num_tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield batches until about so many tokens were read by all processes together.

        With each goes the number of its first rows that count. Other processes have the rest.
        """
        own, num_own = self._own()
        num_batches = math.ceil(len(own) / self.batch_size)
        number = 0
        while number < num_batches:
            chosen = own[number * self.batch_size : (number + 1) * self.batch_size]
            batch = self._collated(chosen)
            if number == 0:
                per_round = max(self._per_round(len(batch["labels"])), 1)
                num_batches = min(num_batches, max(1, math.ceil(num_tokens / per_round)))
            yield batch, max(num_own - number * self.batch_size, 0)
            number += 1

    def _own(self) -> tuple[np.ndarray[Any, Any], int]:
        """Return this process's samples, and how many of the first are no other process's."""
        state = PartialState()
        order = np.random.default_rng(0).permutation(self.indices)
        if self.is_shared or not len(order):
            return order, len(order)
        # as many for each process, since a sharded model's forward waits for all of them
        each = -(-len(order) // state.num_processes)
        start = state.process_index * each
        own = order.take(range(start, start + each), mode="wrap")
        return own, min(max(len(order) - start, 0), each)

    def _collated(self, chosen: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Make a batch. What is wrong in one process is raised in all of them."""
        batch, problem = {}, None
        try:
            batch = self.collate([int(index) for index in chosen])
        except VlsiCacheError as error:
            problem = error
        raise_together(problem)
        return batch

    def _per_round(self, num_tokens: int) -> int:
        """Count the tokens of one batch of every process."""
        if self.is_shared:
            return num_tokens
        found = torch.tensor(num_tokens, device=PartialState().device)
        return int(reduce(found, "sum"))
