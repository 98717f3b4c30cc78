"""The teacher pass: every tap of every response token, as sparse distributions, into the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from vlsi_cache.data import ConversationDataset, IndexedConversations, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import StageError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import Backbone, run_backbone
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import CacheWriter, SampleRecord
from vlsi_cache.teacher.failures import (
    Failures,
    KeyedBatch,
    KeyedBatches,
    failed_record,
    reason_of,
)
from vlsi_cache.teacher.partition import Partition
from vlsi_cache.training.processes import share_of
from vlsi_cache.training.workers import workers_faults
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["DumpProgress", "TeacherPass", "fill_cache", "record_uniforms"]

logger = logging.getLogger(__name__)

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class DumpProgress:
    """How far the teacher pass is."""

    num_samples: int
    """Samples that this process has read so far."""
    total_samples: int
    """Samples that it has to read: those of its missing shards."""
    num_tokens: int
    """Response tokens that it has recorded."""


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """Reads batches of conversations into sparse distributions.

    Attributes:
        backbone: the teacher.
        bank: its verbalizers.
        recorder: what is kept of their distributions.
        seed: of the draws.
    """

    backbone: Backbone
    bank: VerbalizerBank
    recorder: TapRecorder
    seed: int

    @torch.no_grad()
    def read(self, batch: Mapping[str, Any], uniforms: Floats) -> SparseDistribution:
        """Distributions of every tap, then of the final output, ``[N, L_t + 1]``.

        Args:
            batch: of ``TokenBatches``, on the backbone's device.
            uniforms: ``[N, L_t + 1]`` float64 in [0, 1).
        """
        decoder = self.backbone.decoder
        positions, labels = batch["positions"], batch["labels"]
        # Apple's devices know no float64; the others lose nothing to rounding in long sums
        sums = torch.float32 if labels.device.type == "mps" else torch.float64
        dice = torch.from_numpy(uniforms).to(dtype=sums, device=labels.device)
        states, final = run_backbone(decoder, self.bank.taps, batch["inputs"], positions)
        reads = [decoder.features(hidden) for hidden in self.bank(states, positions).values()]
        return self.recorder.record([*reads, final], labels, dice)

    def records(
        self, batch: Mapping[str, Any], keys: Sequence[tuple[str, str]]
    ) -> list[SampleRecord | StageError]:
        """One record per sample of a batch, or why there is none: a tap that is not finite.

        Args:
            batch: of ``TokenBatches``.
            keys: for each sample, its id and content key.
        """
        counts = np.bincount(batch["token_samples"].numpy(), minlength=len(keys))
        uniforms = np.concatenate(
            [
                record_uniforms(self.seed, key, int(count), len(self.bank.taps) + 1)
                for (_, key), count in zip(keys, counts, strict=True)
            ]
        )
        device = self.backbone.device
        distribution = self.read(_to_device(batch, device), uniforms)
        labels = batch["labels"].int().numpy()
        records: list[SampleRecord | StageError] = []
        start = 0
        for (sample_id, key), count in zip(keys, counts, strict=True):
            part = slice(start, start + int(count))
            fault = self._find_fault(distribution.entropy[part], sample_id)
            records.append(fault or SampleRecord(sample_id, key, labels[part], distribution[part]))
            start = part.stop
        return records

    def _find_fault(self, entropy: np.ndarray[Any, Any], sample_id: str) -> StageError | None:
        sound = np.isfinite(entropy).all(axis=0)
        if sound.all():
            return None
        taps = [*map(str, self.bank.taps), "output"]
        broken = ", ".join(tap for tap, good in zip(taps, sound, strict=True) if not good)
        return StageError(
            f"teacher's distribution is not finite at tap {broken}",
            where=f"sample {sample_id!r}",
            mend="Try teacher.dtype: float32, or check the teacher's weights; or skip such samples "
            "with cache.on_error: skip",
        )


def record_uniforms(seed: int, key: str, num_tokens: int, num_taps: int) -> Floats:
    """Random numbers behind a sample's record, ``[N, L]`` float64 in [0, 1).

    They follow from the seed and the sample's content alone: a resumed or re-partitioned pass
    draws the same tokens.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.random((num_tokens, num_taps))


def fill_cache(
    teacher: TeacherPass,
    dataset: ConversationDataset,
    collate: TokenBatches,
    writer: CacheWriter,
    *,
    batch_size: int,
    workers: int,
    on_progress: Callable[[DumpProgress], None],
    failures: Failures | None = None,
    partition: Partition | None = None,
) -> None:
    """Write every shard that is not there yet, or a partition's share of them.

    Batches never span shards, so a shard's bytes do not depend on which shards this run writes.

    Args:
        teacher: reads the batches.
        dataset: what to read.
        collate: makes the batches.
        writer: of the cache.
        batch_size: samples per forward pass.
        workers: processes that prepare batches.
        on_progress: called after each batch.
        failures: skip samples that cannot be read, and count them there; None to stop at the
            first.
        partition: whose share this process, and those launched with it, write; None for all.

    Raises:
        DataError, StageError: a sample cannot be read, or too many in a row.
    """
    missing = share_of((partition or Partition()).select(writer.missing_shards()))
    manifest = writer.manifest
    total = sum(len(manifest.shard_range(shard)) for shard in missing)
    done, num_tokens = 0, 0
    for shard in missing:
        if writer.has_shard(shard):  # another writer was here meanwhile
            total -= len(manifest.shard_range(shard))
            continue
        records: list[SampleRecord] = []
        indices = manifest.shard_range(shard)
        keyed = KeyedBatches(collate, skip=failures is not None)
        for batch in _batches(dataset, indices, keyed, batch_size, workers):
            new = _records(teacher, batch, manifest, skip=failures is not None)
            if failures is not None:
                for record in new:
                    failures.add(record)
            records += new
            done += len(new)
            num_tokens += sum(len(record.response_ids) for record in new)
            on_progress(DumpProgress(done, total, num_tokens))
        writer.write_shard(shard, records)


def _batches(
    dataset: ConversationDataset,
    indices: range,
    collate: KeyedBatches,
    batch_size: int,
    workers: int,
) -> Iterator[KeyedBatch]:
    loader: DataLoader[Any] = DataLoader(
        IndexedConversations(dataset),
        batch_sampler=[
            list(indices[start : start + batch_size])
            for start in range(0, len(indices), batch_size)
        ],
        collate_fn=collate,
        num_workers=workers,
    )
    with workers_faults():
        yield from loader


def _records(
    teacher: TeacherPass, batch: KeyedBatch, manifest: CacheManifest, *, skip: bool
) -> list[SampleRecord]:
    """One record per sample of a batch, in order; those that failed have no tokens."""
    left = [key for place, key in enumerate(batch.keys) if place not in batch.failures]
    read = iter(teacher.records(batch.inputs, left) if batch.inputs is not None else ())
    records = []
    for place, (sample_id, key) in enumerate(batch.keys):
        found = batch.failures[place] if place in batch.failures else next(read)
        if isinstance(found, StageError):
            if not skip:
                raise found
            found = reason_of(found)
        if isinstance(found, str):
            found = failed_record(sample_id, key, found, manifest)
        records.append(found)
    return records


def _to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: _to_device(value, device) if isinstance(value, Mapping) else value.to(device)
        for name, value in batch.items()
    }
