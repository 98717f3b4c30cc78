"""``fill_cache``: writes every shard that is missing, or a partition's of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vlsi_cache.data import TokenBatches, encoder_for
from vlsi_cache.interruption import finishing_steps, stop_if_asked
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import is_split
from vlsi_cache.phases import Phase, phase
from vlsi_cache.recipe.partition import Partition
from vlsi_cache.store import CacheWriter, SampleRecord
from vlsi_cache.teacher.batches import KeyedBatches, ShardBatches
from vlsi_cache.teacher.failures import Failures
from vlsi_cache.teacher.passes import Indexed, Passes
from vlsi_cache.teacher.publishing import Publisher
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.teacher.team import Team
from vlsi_cache.training import Run, TokenBound, make_loader, or_raise
from vlsi_cache.training.processes import has_lost_others, lost_others

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

    def after(self, records: Indexed) -> DumpProgress:
        """Return the progress with these records added."""
        return DumpProgress(
            self.num_samples + len(records),
            self.total_samples,
            self.num_tokens + sum(len(record.response_ids) for _, record in records),
        )


def fill_cache(
    run: Run,
    teacher: TeacherPass,
    writer: CacheWriter,
    partition: Partition,
    on_progress: Callable[[DumpProgress], None],
) -> None:
    """Write every shard of a partition that is not there yet.

    Batches never span shards, so a shard's bytes do not depend on which shards this run writes, but
    for rounding once batches were halved.
    Whole shards are packed and published while the teacher reads the next.

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
        except RuntimeError as error:
            # A SIGTERM to the whole job has ended the workers too.
            stop_if_asked("between two batches of the teacher pass")
            if not has_lost_others(error):
                raise
            raise lost_others(run.recipe.cache_path) from error
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

    def is_published(self, has_shard: bool, num_samples: int) -> bool:
        """Report whether another writer has published a shard, and count it no longer if so."""
        if not self.team.agreed(has_shard):
            return False
        total = self.progress.total_samples - num_samples
        self.progress = replace(self.progress, total_samples=total)
        self.samples.total = total
        return True

    def keep(self, num_samples: int) -> None:
        """Count the samples of a published shard."""
        self.kept += num_samples

    def after(self, records: Indexed) -> None:
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
        kept = self.team.agreed(self.kept)  # one of them publishes
        self.team.stop_if_asked(f"{where}, of which whole shards keep {kept:,}")


def _fill(
    run: Run, teacher: TeacherPass, writer: CacheWriter, missing: Sequence[int], watch: _Watch
) -> None:
    settings = run.recipe.cache
    tokens = TokenBatches(encoder_for(teacher.backbone, run.recipe.data))
    bound = TokenBound(settings.batch_tokens)
    read = KeyedBatches(run.data, tokens, bound, skip=run.recipe.skips_failures)
    loader = make_loader(
        read,
        ShardBatches(run.data, writer, missing, settings.batch_size, watch.is_published),
        workers=settings.workers,
        pin_memory=run.device.type == "cuda",
    )
    failures = Failures(settings.max_failures_in_a_row)
    packs_apart = teacher.backbone.device.type != "cpu"
    with Publisher(writer, watch.keep, packs_apart=packs_apart) as publisher:
        passes = Passes(teacher, read, writer.manifest, publisher.wait)
        shards = _Shards(writer.manifest, failures, publisher, watch.team)
        for records in passes.run(batch for batches in loader for batch in or_raise(batches)):
            shards.add(records)
            watch.after(records)
            watch.team.write(publisher.raise_problem)
            if watch.team.requested_signal():
                for begun in passes.drain():
                    shards.add(begun)
                watch.team.write(publisher.wait)
                watch.stop_if_asked()
        watch.team.write(publisher.wait)


class _Shards:
    """Collects the records of a shard, and hands them on in the order of its samples.

    Args:
        manifest: the cache's.
        failures: counts samples that failed.
        publisher: takes whole shards.
        team: the processes of which one writes.
    """

    def __init__(
        self, manifest: CacheManifest, failures: Failures, publisher: Publisher, team: Team
    ) -> None:
        self.team = team
        self.manifest = manifest
        self.failures = failures
        self.publisher = publisher
        self._records: dict[int, SampleRecord] = {}

    def add(self, records: Indexed) -> None:
        """Take the records of a batch. Batches never span shards.

        Raises:
            StageError: too many samples in a row have failed.
            CacheError: the shard before could not be written.
        """
        self._records.update(records)
        shard = self.manifest.shard_of(records[0][0])
        samples = self.manifest.shard_range(shard)
        if len(self._records) < len(samples):
            return
        ordered = [self._records[index] for index in samples]
        self._records.clear()
        for record in ordered:
            self.failures.add(record)
        self.team.write(partial(self.publisher.submit, shard, ordered))
