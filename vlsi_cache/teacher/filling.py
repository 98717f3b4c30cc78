"""``fill_cache``: writes every shard that is missing, or a partition's of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vlsi_cache.data import TokenBatches, encoder_for
from vlsi_cache.errors import StageError
from vlsi_cache.interruption import finishing_steps, stop_if_asked
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import is_split
from vlsi_cache.phases import Phase, phase
from vlsi_cache.store import CacheWriter, SampleRecord
from vlsi_cache.teacher.failures import (
    Failures,
    KeyedBatch,
    KeyedBatches,
    failed_record,
)
from vlsi_cache.teacher.partition import Partition
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.teacher.team import Team
from vlsi_cache.training import Run, make_loader, or_raise, reason_of

__all__ = ["DumpProgress", "fill_cache"]

logger = logging.getLogger(__name__)


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
        Interrupted: a stop was asked for; whole shards are there.
    """
    team = Team(is_split(teacher.backbone.decoder.model))
    missing = team.shards(partition.select(writer.missing_shards()))
    total = sum(len(writer.manifest.shard_range(shard)) for shard in missing)
    if not missing:
        logger.info("teacher pass: no shard is missing, nothing to do")
        return
    with phase("teacher pass", total=total, unit="samples") as samples, finishing_steps():
        try:
            _fill(run, teacher, writer, missing, _Watch(samples, on_progress, total, team))
        except RuntimeError:
            # A SIGTERM to the whole job has ended the workers too.
            stop_if_asked("between two batches of the teacher pass")
            raise
    stop_if_asked("after the teacher pass")


class _Watch:
    """Reports the progress of the pass.

    Args:
        samples: the phase that is reported.
        on_progress: called after each batch.
        total: samples to read.
        team: the processes that stop together.
    """

    def __init__(
        self,
        samples: Phase,
        on_progress: Callable[[DumpProgress], None],
        total: int,
        team: Team,
    ) -> None:
        self.team = team
        self.samples = samples
        self.on_progress = on_progress
        self.progress = DumpProgress(0, total, 0)
        self.kept = 0
        self._began = time.monotonic()

    def leave_out(self, num_samples: int) -> None:
        """Count no longer what another writer has published."""
        total = self.progress.total_samples - num_samples
        self.progress = replace(self.progress, total_samples=total)
        self.samples.total = total

    def after(self, records: Sequence[SampleRecord]) -> None:
        """Report the records of a batch."""
        self.progress = progress = self.progress.after(records)
        self.samples.advance(len(records))
        seconds = max(time.monotonic() - self._began, 1e-9)
        self.samples.detail = f"{progress.num_tokens / seconds:,.0f} tokens/s"
        self.on_progress(progress)

    def stop_if_asked(self) -> None:
        """Stop here if that was asked for.

        Raises:
            Interrupted: a stop was asked for.
        """
        progress = self.progress
        where = f"at sample {progress.num_samples:,} of {progress.total_samples:,}"
        self.team.stop_if_asked(f"{where}, of which whole shards keep {self.kept:,}")


def _fill(
    run: Run, teacher: TeacherPass, writer: CacheWriter, missing: Sequence[int], watch: _Watch
) -> None:
    failures = Failures(run.recipe.cache.max_failures_in_a_row)
    for shard in missing:
        samples = writer.manifest.shard_range(shard)
        if watch.team.agreed(writer.has_shard(shard)):  # another writer published it meanwhile
            watch.leave_out(len(samples))
            continue
        records: list[SampleRecord] = []
        for new in _read(run, teacher, samples, writer.manifest):
            for record in new:
                failures.add(record)
            records += new
            watch.after(new)
            if len(records) < len(samples):
                watch.stop_if_asked()
        watch.team.write(partial(writer.write_shard, shard, records))
        watch.kept = watch.progress.num_samples
        watch.stop_if_asked()


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
