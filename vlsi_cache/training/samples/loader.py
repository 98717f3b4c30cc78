"""A stage's batches as PyTorch's loader gives them: in order, read ahead, one slice per process."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from multiprocessing.queues import Queue
from typing import Any, Final, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from transformers import TrainerCallback

from vlsi_cache.errors import VlsiCacheError, first_line
from vlsi_cache.limits import find_limit, plain_limit_errors
from vlsi_cache.training.samples.budget import collate_pieces
from vlsi_cache.training.samples.order import ProcessSlice, SampleOrder, slice_batches

__all__ = [
    "FURTHER",
    "BatchReader",
    "BatchSampler",
    "EpochSetter",
    "Pick",
    "SizedDataset",
    "make_loader",
    "or_raise",
    "quiet_forks",
]

logger = logging.getLogger(__name__)

K = TypeVar("K")
B = TypeVar("B")

FURTHER: Final = "further"
"""Key of a micro-batch's other pieces."""
_FURTHER_SHUFFLE = 1 << 40
"""Between the numbers of an epoch's shuffles. No training has as many epochs."""
_PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True, slots=True)
class Pick:
    """One sample of a batch."""

    index: int
    """Its position in the dataset."""
    weight: int
    """1, or 0 in a batch that only keeps this process in step with the others."""


class SizedDataset(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class BatchSampler(Sampler[list[Pick]]):
    """One process's batches of an epoch, as many as every process has.

    A process that is short of a batch at the end repeats a sample with weight 0. An order may have
    counted samples that turned out to have failed. Others then take their places, in a new shuffle.

    Args:
        order: order of the samples.
        process: this process's slice of them.
    """

    def __init__(self, order: SampleOrder, process: ProcessSlice) -> None:
        self.order = order
        self.process = process
        self.epoch = 0

    def __len__(self) -> int:
        return self.process.num_batches(self.order.num_samples)

    def __iter__(self) -> Iterator[list[Pick]]:
        num_given = 0
        last: list[int] = []
        for last in islice(self._shuffles(), len(self)):
            num_given += 1
            yield [Pick(index, 1) for index in last]
        if not num_given:  # the last process has samples wherever there are any
            having = replace(self.process, rank=self.process.num_ranks - 1)
            last = next(slice_batches(self.order, having, self.epoch))
        for _ in range(len(self) - num_given):
            yield [Pick(last[0], 0)]

    def _shuffles(self) -> Iterator[list[int]]:
        """Yield the epoch's batches, and more shuffles of them until at most one is short."""
        num_given, num_before = 0, -1
        epoch = self.epoch
        while num_before < num_given < max(len(self) - 1, 1):
            num_before = num_given
            for batch in slice_batches(self.order, self.process, epoch):
                num_given += 1
                yield batch
            epoch += _FURTHER_SHUFFLE


class EpochSetter(TrainerCallback):
    """Sets the sampler's epoch, however the training was resumed."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):  # type: ignore[no-untyped-def]
        """Count epochs as the Trainer does when it resumes."""
        sampler = train_dataloader.batch_sampler
        num_updates = -(-len(sampler) // args.gradient_accumulation_steps)
        sampler.epoch = state.global_step // num_updates


@dataclass(frozen=True, slots=True)
class BatchReader:
    """Reads and collates the samples of one batch."""

    dataset: SizedDataset
    """Samples by index."""
    collate: Callable[[list[Any]], dict[str, Any]]
    """Samples → the keyword arguments of the module's forward."""
    batch_tokens: int | None = None
    """Most padded tokens of one forward pass; None for no bound."""

    def __call__(self, picks: Sequence[Pick]) -> dict[str, Any]:
        """Return the collated batch, with its ``weight``: 1, or 0, and its samples' ``indices``.

        A batch beyond the bound is its first piece, with the others under ``FURTHER``.
        """
        items = [self.dataset[pick.index] for pick in picks]
        pieces = collate_pieces(self.collate, items, self.batch_tokens)
        first, *further = (
            {**batch, "weight": picks[0].weight, "indices": tuple(picks[row].index for row in rows)}
            for rows, batch in pieces
        )
        return {**first, FURTHER: further} if further else first


def make_loader(
    read: Callable[[list[K]], B],
    batches: Sampler[list[K]] | Sequence[list[K]],
    *,
    workers: int,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> DataLoader[B | VlsiCacheError]:
    """Make a loader whose workers stay from epoch to epoch and read ahead.

    What a user can mend comes out as a value, for ``or_raise``: torch would wrap an exception of a
    worker into one whose message is the worker's traceback.

    Args:
        read: a batch's keys → the batch; picklable where workers are spawned.
        batches: keys of each batch.
        workers: processes; 0 reads in this one, when a batch is asked for.
        pin_memory: pin the batches for copies to an accelerator.
        start_method: how workers start; Python's default if None.
    """
    return DataLoader(
        _Keys(),
        batch_sampler=batches,
        collate_fn=_Guarded(read),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=start_method if workers else None,
        worker_init_fn=_begin_worker,
        # it draws a number whenever it starts, and training must not notice
        generator=torch.Generator(),
    )


def or_raise(batch: B | VlsiCacheError) -> B:
    """Return what a loader gave, or raise it."""
    if isinstance(batch, VlsiCacheError):
        raise batch
    return batch


@contextmanager
def quiet_forks(workers: int) -> Iterator[None]:
    """Keep tokenizers from warning in every forked worker: the workers are the parallelism here."""
    if not workers or _PARALLELISM in os.environ:
        yield
        return
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        del os.environ[_PARALLELISM]


def _begin_worker(_worker: int) -> None:
    """Let Ctrl-C and SLURM's SIGUSR1, which reach all processes of a job, end no worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]  # noqa: SLF001


def _end_worker(error: Exception, _batch: object) -> None:
    """End a worker that cannot send a batch, which the reader would wait for without end."""
    logger.error("a worker cannot send a batch: %s", find_limit(error) or first_line(error))
    os._exit(1)


def _share(batch: object) -> None:
    """Move a batch to shared memory. Where that is done on sending, nobody hears of its failure."""
    if isinstance(batch, Tensor):
        batch.share_memory_()
    elif isinstance(batch, Mapping):
        _share(tuple(batch.values()))
    elif isinstance(batch, list | tuple):
        for item in batch:
            _share(item)
    elif is_dataclass(batch):
        _share(tuple(getattr(batch, field.name) for field in fields(batch)))


class _Keys(Dataset[Any]):
    """Returns each key as it is: whole batches are read later, where errors can be caught."""

    def __getitem__(self, key: Any) -> Any:
        return key


@dataclass(frozen=True, slots=True)
class _Guarded(Generic[K, B]):
    read: Callable[[list[K]], B]

    def __call__(self, keys: list[K]) -> B | VlsiCacheError:
        try:
            with plain_limit_errors():
                batch = self.read(keys)
                if get_worker_info() is not None:
                    _share(batch)
            return batch
        except VlsiCacheError as error:
            error.add_note(traceback.format_exc())  # pickling drops the traceback itself
            return error
