"""``Passes``: batches through the teacher, in smaller ones where the memory does not hold them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch

from vlsi_cache.errors import StageError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import is_split
from vlsi_cache.store import SampleRecord
from vlsi_cache.teacher.batches import KeyedBatch, KeyedBatches
from vlsi_cache.teacher.failures import failed_record
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import (
    is_out_of_memory,
    padded_tokens,
    reason_of,
    release_memory,
    row_lengths,
)

__all__ = ["Indexed", "Passes", "num_batches_ahead"]

logger = logging.getLogger(__name__)

Indexed = list[tuple[int, SampleRecord]]
"""Records, each with its sample's index in the data."""
_Read = Callable[[], list[SampleRecord | StageError]]


def num_batches_ahead(device: torch.device) -> int:
    """Return how many batches are begun before the records of the first are taken."""
    return 0 if device.type == "cpu" else 1


class Passes:
    """Runs batches through the teacher.

    An accelerator works on the next batch while the records of the one before are taken from it.

    Args:
        teacher: reads the batches.
        read: encodes samples again, where a batch has to be divided.
        manifest: the cache's, for the records of samples that cannot be read.
        settle: waits until nothing else of this process uses much memory.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        read: KeyedBatches,
        manifest: CacheManifest,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self.settle = settle
        self.teacher = teacher
        self.read = read
        self.manifest = manifest
        self._num_ahead = num_batches_ahead(teacher.backbone.device)
        self._begun: deque[tuple[KeyedBatch, _Read]] = deque()
        self._has_warned = False

    def run(self, batches: Iterable[KeyedBatch]) -> Iterator[Indexed]:
        """Yield the records of batch after batch, as they are ready.

        Raises:
            StageError: a sample's distribution is not finite, or the memory does not hold one
                sample, and it is not to be skipped.
        """
        for batch in batches:
            for begun in self._begin(batch):
                self._begun.append(begun)
                while len(self._begun) > self._num_ahead:
                    yield self._end()
        yield from self.drain()

    def drain(self) -> Iterator[Indexed]:
        """Yield the records of the batches that were begun."""
        while self._begun:
            yield self._end()

    def _begin(self, batch: KeyedBatch) -> Iterator[tuple[KeyedBatch, _Read]]:
        """Begin a batch, or its parts where the memory is too small for the whole."""
        pending = deque([batch])
        while pending:
            batch = pending.popleft()
            if batch.inputs is None:
                yield batch, list
                continue
            most, tokens = self.read.bound.most, padded_tokens(batch.inputs)
            is_alone = len(batch.indices) == 1
            if most is not None and tokens > most and not is_alone:
                # a worker made it before the bound fell
                pending.extendleft(reversed(self.read(batch.indices)))
                continue
            begun = self._try(batch) or (self._try_alone(batch) if is_alone else None)
            if begun is not None:
                yield batch, begun
                continue
            release_memory()
            if is_alone:
                found = [self._too_large(batch)]
                yield batch, lambda found=found: found  # type: ignore[misc]
                continue
            self.read.bound.lower(tokens // 2)
            self._warn(batch, tokens)
            pending.appendleft(batch)

    def _try_alone(self, batch: KeyedBatch) -> _Read | None:
        """Begin a batch of one sample again, with all the memory that there is."""
        release_memory()
        self.settle()
        return self._try(batch)

    def _try(self, batch: KeyedBatch) -> _Read | None:
        """Begin a batch. None if the memory does not hold it."""
        assert batch.inputs is not None
        try:
            return self.teacher.begin_records(batch.inputs, batch.keys)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if is_split(self.teacher.backbone.decoder.model):  # the others have read this batch
                raise self._cannot_halve() from error
        return None

    def _cannot_halve(self) -> StageError:
        return StageError(
            "out of memory, and processes that hold one teacher together cannot halve a batch",
            where=str(self.teacher.backbone.device),
            mend="Lower cache.batch_size or cache.batch_tokens, then run the same command again. "
            "It goes on where it stopped",
        )

    def _warn(self, batch: KeyedBatch, tokens: int) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            "%s: out of memory at %d samples of %s tokens together, padding included. Batches are "
            "halved from here on where they are too large; cache.batch_tokens bounds them from the "
            "start",
            self.teacher.backbone.device,
            len(batch.indices),
            f"{tokens:,}",
        )

    def _too_large(self, batch: KeyedBatch) -> StageError:
        assert batch.inputs is not None
        (sample_id, _), (length,) = batch.keys[0], row_lengths(batch.inputs)
        return StageError(
            f"out of memory at this sample alone, on {self.teacher.backbone.device.type}",
            where=f"sample {sample_id!r}",
            found=f"{length:,} tokens",
            mend="Use a device with more memory, or teacher.dtype: bfloat16. Or leave such samples "
            f"out: cache.on_error: skip, with data.max_length below {length}",
        )

    def _end(self) -> Indexed:
        batch, begun = self._begun.popleft()
        found = [self._failed(batch, row, why) for row, why in enumerate(batch.reasons)]
        for row, record in enumerate(begun()):
            if isinstance(record, StageError):
                if not self.read.skip:
                    raise record
                found.append(self._failed(batch, row, reason_of(record)))
            else:
                found.append((batch.indices[row], record))
        return found

    def _failed(self, batch: KeyedBatch, row: int, reason: str) -> tuple[int, SampleRecord]:
        return batch.indices[row], failed_record(*batch.keys[row], reason, self.manifest)
