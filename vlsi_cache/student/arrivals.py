"""The order of samples of a cache that may still be growing: as its shards come, then any."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from pydantic import BaseModel, ConfigDict

from vlsi_cache.errors import CacheError
from vlsi_cache.recipe import InteractionSection
from vlsi_cache.store import Cache, is_begun, open_cache
from vlsi_cache.student.cache_order import block_size, cache_order, shard_blocks
from vlsi_cache.training.processes import is_main_process, on_main_process
from vlsi_cache.training.sample_order import Parcel, SampleOrder

__all__ = ["ARRIVALS_FILE", "ArrivalLine", "ArrivalOrder", "begun_cache", "recorded_order"]

logger = logging.getLogger(__name__)

ARRIVALS_FILE: Final = "arrivals.jsonl"
_POLL_SECONDS: Final = (0.5, 15.0)
"""Between two looks for new shards, at first and at most."""
_REMINDER_SECONDS: Final = 600.0


class ArrivalLine(BaseModel):
    """Shards that were found at once; the first epoch takes the lines one after another."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shards: list[int]
    """Indices, ascending."""


def begun_cache(path: str | Path, timeout_seconds: float) -> Cache:
    """A cache, which may have to begin first: its teacher trains verbalizers before.

    Raises:
        CacheError: it has not begun for too long, or cannot be opened.
    """
    began, (pause, most) = time.monotonic(), _POLL_SECONDS
    while not is_begun(path) and time.monotonic() - began < timeout_seconds:
        if pause == _POLL_SECONDS[0]:
            logger.info("waiting for the cache to begin: %s", path)
        time.sleep(min(pause, timeout_seconds))
        pause = min(2 * pause, most)
    return open_cache(path)


def recorded_order(cache: Cache, settings: InteractionSection, folder: Path) -> SampleOrder:
    """The samples to learn from: all but those that failed in the dump.

    A stage that has begun to follow a growing cache keeps to the order in which shards came.

    Args:
        cache: complete, unless it is to be followed.
        settings: whether to, and how patiently.
        folder: of the stage.

    Raises:
        CacheError: no sample of a complete cache could be read.
    """
    path = folder / ARRIVALS_FILE

    def begin() -> None:
        if settings.follow and not path.exists() and not cache.is_complete:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    on_main_process(begin)  # the others would find more shards
    if path.exists():
        return ArrivalOrder(cache, path, settings.follow_timeout_seconds)
    order = cache_order(cache)
    num_failed = len(cache) - order.num_places
    if not order.num_places:
        raise _nothing_recorded(cache)
    if num_failed:
        logger.warning(
            "interaction leaves out %d of %d samples, which failed when the teacher was dumped",
            num_failed,
            len(cache),
        )
    return order


@final
class ArrivalOrder:
    """The first epoch follows the shards as they come, and waits for them.

    What came when is written down, so that a resumed stage, and every process of it, sees the same
    order. Failures in shards to come are not known beforehand, so their places are counted in.

    Args:
        cache: open since it was incomplete.
        path: file of ``ArrivalLine``s.
        timeout_seconds: how long to wait for the next shard.
    """

    def __init__(self, cache: Cache, path: Path, timeout_seconds: float) -> None:
        self.cache, self.path, self.timeout_seconds = cache, path, timeout_seconds
        self.num_places = len(cache)
        self.window = block_size(cache.manifest).window

    def parcels(self, epoch: int) -> Iterator[Parcel]:
        """Shard by shard in the first epoch; all at once later.

        Raises:
            CacheError: no shard has come for too long, or no sample could be read.
        """
        if epoch:
            yield from cache_order(self.cache).parcels(epoch)
            return
        num_left, num_blocks = self.cache.manifest.num_shards, 0
        for shards in self._arrivals():
            blocks = [block for shard in shards for block in shard_blocks(self.cache, shard)]
            num_left, num_blocks = num_left - len(shards), num_blocks + len(blocks)
            if not num_left and not num_blocks:
                raise _nothing_recorded(self.cache)
            yield Parcel(blocks, is_last=not num_left)

    def _arrivals(self) -> Iterator[list[int]]:
        """Lines of the file; new ones are written by the main process alone."""
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
        """The next line, when there is one."""
        began = reminded = time.monotonic()
        pause, most = _POLL_SECONDS
        first = True
        while True:
            line = self._look(found, num_read)
            if line is not None:
                return line
            now = time.monotonic()
            if now - began > self.timeout_seconds:
                raise self._came_too_late()
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
            os.fsync(file.fileno())  # batches that a checkpoint counts rest on it
        return line

    def _read(self) -> list[ArrivalLine]:
        # what does not end with its line feed is being written just now
        whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
        return [ArrivalLine.model_validate_json(line) for line in whole.splitlines()]

    def _drop_torn_line(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(self.path, len(whole.encode()))

    def _state(self) -> str:
        missing, num_shards = self.cache.missing_shards(), self.cache.manifest.num_shards
        return f"{num_shards - len(missing)} of {num_shards} shards are there"

    def _came_too_late(self) -> CacheError:
        missing = self.cache.missing_shards()
        named = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        return CacheError(
            f"no new shard has come for {self.timeout_seconds:g} seconds; {self._state()}, "
            f"missing: {named}",
            where=self.cache.path,
            mend="See whether dump-teacher still runs, or start it again; then run train-student "
            "again, which goes on from its last checkpoint. --follow-timeout waits longer",
        )


def _nothing_recorded(cache: Cache) -> CacheError:
    return CacheError(
        "no sample of the cache could be read when the teacher was dumped",
        where=cache.path,
        found=next(iter(cache.failures().values()), None),
        mend="Mend their cause, and dump the teacher again into a new folder",
    )
