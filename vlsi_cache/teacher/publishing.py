"""``Publisher``: packs and publishes one shard while the teacher reads the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from vlsi_cache.store import CacheWriter, Packer, SampleRecord, pack_shard

__all__ = ["Publisher"]


class Publisher:
    """Writes shards in the order in which they are given, one at a time, in a thread.

    At most one shard is on its way, so that no more than two are in memory. A shard is published in
    one step, so a killed process loses the shard on its way and no other. On leaving the context,
    whole shards are still written, whatever the reason.

    Args:
        writer: writes the shards.
        on_published: called with the number of samples of each published shard, in the thread.
        packs_apart: whether a process of its own packs, as an accelerator's work asks for.
    """

    def __init__(
        self,
        writer: CacheWriter,
        on_published: Callable[[int], None],
        *,
        packs_apart: bool = False,
    ) -> None:
        self.writer = writer
        self.on_published = on_published
        self._apart = ExitStack()
        self._pack = self._apart.enter_context(Packer()).pack if packs_apart else pack_shard
        self._thread = ThreadPoolExecutor(1, "vlsi-cache publisher")
        self._running: Future[None] | None = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            with self._apart:  # which is left even if the thread is not waited for
                self._thread.shutdown()

    def submit(self, shard_index: int, records: Sequence[SampleRecord]) -> None:
        """Begin to write a shard, after the one before.

        Raises:
            CacheError: the shard before could not be written.
        """
        self.wait()
        self._running = self._thread.submit(self._write, shard_index, records)

    def raise_problem(self) -> None:
        """Raise what went wrong, without waiting for a shard on its way."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all shards are written.

        Raises:
            CacheError: a shard could not be written.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _write(self, shard_index: int, records: Sequence[SampleRecord]) -> None:
        self.writer.write_shard(shard_index, records, self._pack)
        self.on_published(len(records))
