"""A stage's batches as PyTorch's loader gives them: in order, read ahead, one share per process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback

from vlsi_cache.training.sample_order import SampleOrder, Share, share_batches

__all__ = ["SPARE", "EpochSetter", "ShareSampler", "SizedDataset", "make_loader", "without_spares"]

SPARE: Final = "spare"
"""Key of a batch that keeps a process in step with the others and counts for nothing."""


class SizedDataset(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Collate = Callable[[list[Any]], dict[str, Any]]


class ShareSampler(Sampler[list[int]]):
    """A process's batches of the epoch that was set, as many as every process has.

    What it is short of are spares: a sample that was there before, as its complement ``~index``.

    Args:
        order: of the samples.
        share: which part of it is this process's.
    """

    def __init__(self, order: SampleOrder, share: Share) -> None:
        self.order, self.share = order, share
        self.epoch = 0

    def __len__(self) -> int:
        return self.share.num_batches(self.order.num_places)

    def __iter__(self) -> Iterator[list[int]]:
        num_given, last = 0, [0]
        for last in share_batches(self.order, self.share, self.epoch):
            num_given += 1
            yield last
        if not num_given:  # the last process has samples wherever there are any
            having = replace(self.share, rank=self.share.num_ranks - 1)
            last = next(share_batches(self.order, having, self.epoch))
        for _ in range(len(self) - num_given):
            yield [~last[0]]


class EpochSetter(TrainerCallback):
    """Tells the sampler which epoch begins, however the training was resumed."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):  # type: ignore[no-untyped-def]
        """Count epochs as the Trainer does when it resumes."""
        sampler = train_dataloader.batch_sampler
        num_updates = -(-len(sampler) // args.gradient_accumulation_steps)
        sampler.epoch = state.global_step // num_updates


def make_loader(
    dataset: SizedDataset,
    collate: Collate,
    sampler: ShareSampler,
    *,
    workers: int,
    pin_memory: bool,
    start_method: str | None = None,
) -> DataLoader[Any]:
    """A loader whose workers stay from epoch to epoch and read ahead.

    Args:
        dataset: samples by index.
        collate: samples → a batch.
        sampler: which, when.
        workers: processes; 0 reads in this one, when a batch is asked for.
        pin_memory: for copies to an accelerator.
        start_method: of the workers; Python's default if not given.
    """
    return DataLoader(
        _Places(dataset),
        batch_sampler=sampler,
        collate_fn=_Spares(collate),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=start_method if workers else None,
    )


def without_spares(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same batches, with no labels to count in those that are spare."""
    return [
        {**batch, "labels": torch.full_like(batch["labels"], _NO_LABEL)}
        if SPARE in batch
        else batch
        for batch in batches
    ]


_NO_LABEL: Final = -100
"""What the Trainer does not count."""


class _Places(Dataset[tuple[bool, Any]]):
    """A dataset that knows spares."""

    def __init__(self, dataset: SizedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> tuple[bool, Any]:
        return place < 0, self.dataset[~place if place < 0 else place]


class _Spares:
    """Collation that marks spare batches."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, places: Sequence[tuple[bool, Any]]) -> dict[str, Any]:
        batch = self.collate([item for _, item in places])
        if places[0][0]:
            batch[SPARE] = True
        return batch
