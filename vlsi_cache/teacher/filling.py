"""``fill_cache``: writes every shard that is missing, or a partition's of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vlsi_cache.data import TokenBatches, encoder_for
from vlsi_cache.errors import StageError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import CacheWriter, SampleRecord
from vlsi_cache.teacher.failures import (
    Failures,
    KeyedBatch,
    KeyedBatches,
    failed_record,
    reason_of,
)
from vlsi_cache.teacher.partition import Partition
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run
from vlsi_cache.training.loader import make_loader, or_raise
from vlsi_cache.training.processes import slice_of

__all__ = ["DumpProgress", "fill_cache"]


@dataclass(frozen=True, slots=True)
class DumpProgress:
    """How far the teacher pass is."""

    num_samples: int
    """Samples that this process has read so far."""
    total_samples: int
    """Samples that it has to read: those of its missing shards."""
    num_tokens: int
    """Response tokens that it has recorded."""

    def after(self, records: Sequence[SampleRecord]) -> DumpProgress:
        """Return the progress with these records added."""
        return DumpProgress(
            self.num_samples + len(records),
            self.total_samples,
            self.num_tokens + sum(len(record.response_ids) for record in records),
        )


def fill_cache(
    run: Run,
    teacher: TeacherPass,
    writer: CacheWriter,
    partition: Partition,
    on_progress: Callable[[DumpProgress], None],
) -> None:
    """Write every shard of a partition that is not there yet.

    Batches never span shards, so a shard's bytes do not depend on which shards this run writes.

    Args:
        run: the recipe and its data.
        teacher: reads the batches.
        writer: writes the shards.
        partition: which shards this process, and those launched with it, write.
        on_progress: called after each batch.

    Raises:
        DataError, StageError: a sample cannot be read, or too many in a row.
    """
    manifest = writer.manifest
    failures = Failures(run.recipe.cache.max_failures_in_a_row)
    missing = slice_of(partition.select(writer.missing_shards()))
    progress = DumpProgress(0, sum(len(manifest.shard_range(shard)) for shard in missing), 0)
    for shard in missing:
        samples = manifest.shard_range(shard)
        if writer.has_shard(shard):  # another writer published it meanwhile
            progress = replace(progress, total_samples=progress.total_samples - len(samples))
            continue
        records: list[SampleRecord] = []
        for new in _read(run, teacher, samples, manifest):
            for record in new:
                failures.add(record)
            records += new
            progress = progress.after(new)
            on_progress(progress)
        writer.write_shard(shard, records)


def _read(
    run: Run, teacher: TeacherPass, samples: range, manifest: CacheManifest
) -> Iterator[list[SampleRecord]]:
    """Yield the records of one shard, batch by batch."""
    settings = run.recipe.cache
    skip = run.recipe.skips_failures
    tokens = TokenBatches(encoder_for(teacher.backbone, run.recipe.data))
    starts = range(0, len(samples), settings.batch_size)
    loader = make_loader(
        KeyedBatches(run.data, tokens, skip=skip),
        [list(samples[start : start + settings.batch_size]) for start in starts],
        workers=settings.workers,
    )
    for batch in loader:
        yield _records(teacher, or_raise(batch), manifest, skip=skip)


def _records(
    teacher: TeacherPass, batch: KeyedBatch, manifest: CacheManifest, *, skip: bool
) -> list[SampleRecord]:
    """Return one record per sample of a batch, in order; those that failed have no tokens."""
    sound = [key for position, key in enumerate(batch.keys) if position not in batch.failures]
    read = iter(teacher.records(batch.inputs, sound) if batch.inputs is not None else ())
    records = []
    for position, (sample_id, key) in enumerate(batch.keys):
        found = batch.failures[position] if position in batch.failures else next(read)
        if isinstance(found, StageError):
            if not skip:
                raise found
            found = reason_of(found)
        if isinstance(found, str):
            found = failed_record(sample_id, key, found, manifest)
        records.append(found)
    return records
