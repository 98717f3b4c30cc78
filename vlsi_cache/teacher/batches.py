"""A teacher's batches: samples of one shard, those of like length together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Sampler

from vlsi_cache.data import ConversationDataset, TokenBatches, rough_length
from vlsi_cache.errors import DataError
from vlsi_cache.store import CacheWriter
from vlsi_cache.training import TokenBound, collate_pieces, reason_of

__all__ = ["KeyedBatch", "KeyedBatches", "ShardBatches"]


@dataclass(frozen=True, slots=True)
class KeyedBatch:
    """Samples of one forward pass, or samples that cannot be encoded."""

    indices: list[int]
    """Index of each sample in the data."""
    keys: list[tuple[str, str]]
    """Id and content key of each."""
    inputs: dict[str, Any] | None = None
    """The tensors of ``TokenBatches``. None for samples that cannot be encoded."""
    reasons: list[str] = field(default_factory=list)
    """Why each sample cannot be encoded."""

    def pin_memory(self) -> KeyedBatch:
        """Return the same batch in pinned memory. The loader calls it for an accelerator."""
        inputs = None if self.inputs is None else _pinned(self.inputs)
        return KeyedBatch(self.indices, self.keys, inputs, self.reasons)


class ShardBatches(Sampler[list[int]]):
    """The batches of all missing shards, one shard after another.

    Padding is small where samples of like length share a batch. So those of a shard come from short
    to long. A shard that another writer has published meanwhile is left out.

    Args:
        data: the conversations.
        writer: knows the shards.
        shards: indices of the shards.
        batch_size: most samples of a batch.
        is_published: called with whether a shard is there, and its number of samples. It decides
            whether the shard is left out.
    """

    def __init__(
        self,
        data: ConversationDataset,
        writer: CacheWriter,
        shards: Sequence[int],
        batch_size: int,
        is_published: Callable[[bool, int], bool],
    ) -> None:
        self.data = data
        self.writer = writer
        self.shards = shards
        self.batch_size = batch_size
        self.is_published = is_published

    def __iter__(self) -> Iterator[list[int]]:
        for shard in self.shards:
            samples = self.writer.manifest.shard_range(shard)
            if self.is_published(self.writer.has_shard(shard), len(samples)):
                continue
            ordered = sorted(samples, key=self._length)
            for start in range(0, len(ordered), self.batch_size):
                yield ordered[start : start + self.batch_size]

    def _length(self, index: int) -> int:
        try:
            return rough_length(self.data[index])
        except DataError:
            return 0  # reported where it is read


@dataclass(frozen=True, slots=True)
class KeyedBatches:
    """Reads and collates samples, and keeps each one's id and content key beside the batch."""

    data: ConversationDataset
    """The conversations."""
    collate: TokenBatches
    """Makes the tensors."""
    bound: TokenBound
    """Most padded tokens of a batch."""
    skip: bool
    """Set samples aside that cannot be encoded, instead of raising."""

    def __call__(self, indices: Sequence[int]) -> list[KeyedBatch]:
        """Read the samples of these indices, in one batch or more.

        Raises:
            DataError: a sample cannot be encoded, and is not to be skipped.
        """
        try:
            return self._encode(indices)
        except DataError:
            if not self.skip:
                raise
        sound = []
        failed = KeyedBatch([], [])
        for index in indices:
            try:
                self.collate([(index, self.data[index])])
                sound.append(index)
            except DataError as error:
                failed.indices.append(index)
                failed.keys.append(self.data.identify(index))
                failed.reasons.append(reason_of(error))
        return [*(self._encode(sound) if sound else []), failed]

    def _encode(self, indices: Sequence[int]) -> list[KeyedBatch]:
        items = [(index, self.data[index]) for index in indices]
        keys = [(conversation.sample_id, conversation.key()) for _, conversation in items]
        return [
            KeyedBatch([indices[row] for row in rows], [keys[row] for row in rows], batch)
            for rows, batch in collate_pieces(self.collate, items, self.bound.most)
        ]


def _pinned(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _pinned(value)
        if isinstance(value, Mapping)
        else value.pin_memory()
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
    }
