"""``Packer``: packs shards in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from vlsi_cache.errors import CacheError, VlsiCacheError, first_line
from vlsi_cache.store.cache.processes import fresh_processes, processes_begin
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.packing import pack_shard
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["Packer"]

logger = logging.getLogger(__name__)

_PATIENCE: Final = 5.0
"""Seconds that a process has to end by itself, once its pipe is closed."""


class Packer:
    """Packs shards elsewhere, so that this interpreter is free meanwhile.

    Packing is Python code. In a thread beside one that feeds an accelerator, each of the latter's
    thousand calls a batch would wait for its turn.

    The process ends with this one, and takes no notice of Ctrl-C, SIGTERM and SIGUSR1. All may be
    meant for every process of a job, and this one still has whole shards to write.
    """

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Packer:
        context = fresh_processes()
        ours, theirs = context.Pipe()
        process = context.Process(target=_pack_all, args=(theirs,), daemon=True)
        try:
            with processes_begin():
                process.start()
        except OSError as error:
            logger.warning("no process can be started that packs shards (%s)", first_line(error))
            ours.close()
        else:
            self._process, self._pipe = process, ours
        finally:
            theirs.close()  # so that its end is noticed here
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._pipe is not None:
                # Said, because processes that were forked since then hold the pipe open as well.
                with contextlib.suppress(OSError):
                    self._pipe.send(None)
                self._pipe.close()
            if self._process is not None:
                self._process.join(_PATIENCE)
        finally:
            if self._process is not None:
                self._process.kill()  # nobody waits for what it still packs
                self._process.join()

    @property
    def process_id(self) -> int | None:
        """The number of the process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """With what the process ended, negative if a signal ended it."""
        return None if self._process is None else self._process.exitcode

    def pack(self, address: ShardAddress, record: ShardRecord) -> bytes:
        """Return a shard's file, as ``pack_shard`` does.

        If the system ended the process, this one packs.

        Raises:
            CacheError: the shard is beyond the bounds that readers keep, or the process failed.
        """
        if self._pipe is None:
            return pack_shard(address, record)
        try:
            self._pipe.send((address, record))
            packed: bytes | VlsiCacheError = self._pipe.recv()
        except (EOFError, OSError):
            logger.warning(
                "%s: the system ended the process that packs shards, perhaps for want of memory. "
                "This one packs them from here on",
                address.where,
            )
            self._pipe.close()
            self._pipe = None
            return pack_shard(address, record)
        if isinstance(packed, VlsiCacheError):
            raise packed
        return packed


def _pack_all(pipe: Connection) -> None:
    """Pack what the pipe brings, until None comes or it is closed."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError, MemoryError):  # the other packs by itself then
        while (given := pipe.recv()) is not None:
            address, record = given
            try:
                packed: bytes | VlsiCacheError = pack_shard(address, record)
            except VlsiCacheError as error:
                packed = error
            except MemoryError:
                raise
            except Exception as error:
                # Anything, because whoever waits for the shard must hear of it.
                packed = CacheError(
                    "shard could not be packed", where=address.where, found=first_line(error)
                )
            pipe.send(packed)
