"""The order of a growing cache's samples: as its shards arrive, and shuffled later."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, final

from pydantic import BaseModel, ConfigDict

from vlsi_cache.errors import CacheError, StageError
from vlsi_cache.files import read_file
from vlsi_cache.recipe import InteractionSection
from vlsi_cache.store import Cache, nothing_recorded
from vlsi_cache.student.cached.order import cache_order, group_size, shard_groups
from vlsi_cache.training import Indices, Parcel, SampleOrder
from vlsi_cache.training.processes import is_main_process, on_main_process

__all__ = ["ARRIVALS_FILE", "ArrivalLine", "ArrivalOrder", "recorded_order"]

logger = logging.getLogger(__name__)

ARRIVALS_FILE: Final = "arrivals.jsonl"
_POLL_SECONDS: Final = (0.5, 15.0)
"""Between two looks for new shards, at first and at most."""
_REMINDER_SECONDS: Final = 600.0


class ArrivalLine(BaseModel):
    """Shards that were found together. The first epoch takes the lines one after another."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shards: list[int]
    """Indices, ascending."""


def recorded_order(
    cache: Cache,
    settings: InteractionSection,
    folder: Path,
    unreadable: Collection[int] = (),
) -> SampleOrder:
    """Return the order of the samples to learn from: all but those that failed in the dump.

    A stage that has begun to follow a growing cache keeps the order in which its shards arrived.

    Args:
        cache: the teacher's record; complete, unless it is to be followed.
        settings: whether to follow, and the longest wait.
        folder: the stage's folder.
        unreadable: indices of samples that the student cannot read.

    Raises:
        CacheError: no sample of a complete cache could be read.
    """
    path = folder / ARRIVALS_FILE

    def begin() -> None:
        if settings.follow and not path.exists() and not cache.is_complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    on_main_process(begin)  # a moment later, another process could find more shards
    if path.exists():
        return ArrivalOrder(cache, path, settings.follow_timeout_seconds, sorted(unreadable))
    order = cache_order(cache, sorted(unreadable))
    if not order.num_samples:
        raise nothing_recorded(cache)
    return order


@final
class ArrivalOrder:
    """An order whose first epoch follows the shards as they arrive, and waits for them.

    Their order is written down, so that a resumed stage, and every process of it, sees the same.
    Failures in shards to come are not known beforehand, so those samples are counted too.

    Args:
        cache: the growing cache.
        path: file of ``ArrivalLine``s.
        timeout_seconds: longest wait for the next shard.
        unreadable: indices of samples that the student cannot read.
    """

    def __init__(
        self, cache: Cache, path: Path, timeout_seconds: float, unreadable: Sequence[int] = ()
    ) -> None:
        self.cache = cache
        self.path = path
        self.timeout_seconds = timeout_seconds
        self.unreadable = unreadable
        self.num_samples = len(cache) - len(unreadable)
        self.window = group_size(cache.manifest).window

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """Yield the shards as they arrive in the first epoch, and all at once later.

        Raises:
            CacheError: no shard arrived in time, or no sample could be read.
        """
        if epoch:
            yield from cache_order(self.cache, self.unreadable).parcels(epoch)
            return
        num_missing = self.cache.manifest.num_shards
        num_groups = 0
        for shards in self._arrivals():
            groups = [group for shard in shards for group in self._groups(shard)]
            num_missing -= len(shards)
            num_groups += len(groups)
            if not num_missing and not num_groups:
                raise nothing_recorded(self.cache)
            yield Parcel(groups, is_last=not num_missing)

    def _groups(self, shard: int) -> list[Indices]:
        return shard_groups(self.cache, shard, self.unreadable)

    def _arrivals(self) -> Iterator[list[int]]:
        """Yield the lines of the file; the main process alone writes new ones."""
        found: set[int] = set()
        num_read = 0
        if is_main_process():
            self._drop_torn_line()
        while len(found) < self.cache.manifest.num_shards:
            lines = self._read()[num_read:] or [self._wait(found, num_read)]
            num_read += len(lines)
            for line in lines:
                found.update(line.shards)
                yield line.shards

    def _wait(self, found: set[int], num_read: int) -> ArrivalLine:
        """Wait for the next line."""
        began = reminded = time.monotonic()
        pause, most = _POLL_SECONDS
        first = True
        while True:
            line = self._look(found, num_read)
            if line is not None:
                return line
            now = time.monotonic()
            if now - began > self.timeout_seconds:
                raise self._timed_out()
            if first or now - reminded > _REMINDER_SECONDS:
                logger.info("interaction: waiting for the cache, %s", self._state())
                first, reminded = False, now
            time.sleep(min(pause, max(began + self.timeout_seconds - now, 0.01)))
            pause = min(2 * pause, most)

    def _look(self, found: set[int], num_read: int) -> ArrivalLine | None:
        if not is_main_process():
            return next(iter(self._read()[num_read:]), None)
        missing = set(self.cache.missing_shards())
        new = [i for i in range(self.cache.manifest.num_shards) if i not in missing | found]
        if not new:
            return None
        line = ArrivalLine(shards=new)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint's count of batches rests on it
        return line

    def _read(self) -> list[ArrivalLine]:
        # a line without its line feed is still being written
        whole, _, _ = read_file(self.path).rpartition(b"\n")
        try:
            lines = [ArrivalLine.model_validate_json(line) for line in whole.split(b"\n") if whole]
        except ValueError as error:
            raise self._damaged("a line is not a list of shards") from error
        named = [shard for line in lines for shard in line.shards]
        known = range(self.cache.manifest.num_shards)
        if len(set(named)) < len(named) or any(shard not in known for shard in named):
            raise self._damaged(f"shards are not numbers from 0 to {known.stop - 1}, each once")
        return lines

    def _damaged(self, what: str) -> StageError:
        return StageError(
            f"the record of the shards' arrival is damaged: {what}",
            where=self.path,
            mend="Delete the stage's folder to train it again",
        )

    def _drop_torn_line(self) -> None:
        content = read_file(self.path)
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))

    def _state(self) -> str:
        missing, num_shards = self.cache.missing_shards(), self.cache.manifest.num_shards
        return f"{num_shards - len(missing)} of {num_shards} shards are there"

    def _timed_out(self) -> CacheError:
        missing = self.cache.missing_shards()
        named = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        return CacheError(
            f"no new shard has arrived for {self.timeout_seconds:g} seconds; {self._state()}, "
            f"missing: {named}",
            where=self.cache.path,
            mend="Check that dump-teacher still runs, or start it again. Then run train-student "
            "again, which goes on from its last checkpoint. --follow-timeout waits longer",
        )
