"""Reading a cache: any sample at any time, or shard after shard."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import (
    CacheFolder,
    find_missing_shards,
    measure_bytes,
    open_folder,
    read_index,
)
from vlsi_cache.store.cache.lru import RecentlyUsed
from vlsi_cache.store.cache.sealing import fetch_processor
from vlsi_cache.store.cache.seals import CacheIndex
from vlsi_cache.store.cache.statistics import CacheSummary, summarize_cache
from vlsi_cache.store.cache.verify import Verification, verify_cache
from vlsi_cache.store.places.place import open_place, url_scheme
from vlsi_cache.store.shards.arrays import Array, parse_distribution
from vlsi_cache.store.shards.layout import CHUNK_TOKENS, shard_key, token_arrays
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord
from vlsi_cache.store.shards.shard import OpenShard, read_header

__all__ = ["DECODED_BYTES", "Cache", "ShardOutline", "open_cache"]

DECODED_BYTES: Final = 256 * 2**20
"""Decoded chunks that an open cache keeps at most."""

_OPEN_SHARDS: Final = 64
_KEY: Final = re.compile("[0-9a-f]{64}")

Block = dict[str, Array]


def open_cache(path: str | Path) -> Cache:
    """Open a cache for reading, complete or not; reads the manifest and the index only.

    Args:
        path: its folder, or its address.

    Raises:
        CacheError: there is no cache, its manifest or index is damaged, or its version is unknown.
    """
    folder = open_folder(open_place(path))
    return Cache(path if url_scheme(path) else Path(path), folder, read_index(folder))


class ShardOutline(NamedTuple):
    """How much a published shard holds."""

    num_tokens: int
    """Response tokens."""
    failed: tuple[int, ...]
    """Indices of the samples without a record, ascending."""


class Cache:
    """The teacher's record of a dataset: a sequence of samples; made by ``open_cache``.

    A sample is asked for by its index in the dataset, its key (SHA-256 hex of the conversation's
    content) or its name, and comes as a ``SampleRecord`` of NumPy arrays, which belong to the
    caller. Samples of equal contents share a key, and those of a merged cache may share a name:
    the first of those that are published when it is asked for wins, and stays. Decoded chunks of
    tokens are kept up to 256 MiB, so a cache of that size is decoded once. Threads may share a
    cache; processes open their own (pickling one reopens it). While a cache grows, what is
    published can be read, and is seen without opening it again.

    Attributes:
        path: the cache's folder, or its URL in an object store.
        manifest: what it was made from.
    """

    def __init__(self, path: str | Path, folder: CacheFolder, index: CacheIndex | None) -> None:
        self.path = path
        self.manifest = folder.manifest
        self._folder = folder
        self._index = index
        self._named_shards: set[int] = set()
        self._places: dict[str | bytes, int] = {}
        self._shards: RecentlyUsed[int, OpenShard] = RecentlyUsed(_OPEN_SHARDS, lambda _: 1)
        self._blocks: RecentlyUsed[tuple[int, int], Block] = RecentlyUsed(
            DECODED_BYTES, lambda block: sum(array.nbytes for array in block.values())
        )

    def __len__(self) -> int:
        """Number of samples of the complete cache."""
        return self.manifest.dataset.num_samples

    def __getitem__(self, key: int | str) -> SampleRecord:
        """One sample's record, by its index in the dataset (from the end if negative), key or name.

        The first look-up of a key or name reads those of the shards before it.

        Raises:
            IndexError: there is no sample of this index.
            CacheError: no published shard holds the key or name; or the sample's shard is not
                written yet, or damaged.
        """
        if not isinstance(key, str | int):
            kind = type(key).__name__
            raise TypeError(f"a cache is asked by index, key or name of one sample, not by {kind}")
        sample_index = self._index_of(key) if isinstance(key, str) else key
        if -len(self) <= sample_index < 0:
            sample_index += len(self)
        shard_index = self.manifest.shard_of(sample_index)
        return self._sample(
            shard_index, sample_index - self.manifest.shard_range(shard_index).start
        )

    def __repr__(self) -> str:
        return f"<Cache {self.path}: {len(self)} samples, {len(self.manifest.taps)} taps>"

    def __contains__(self, key: object) -> bool:
        """Whether a published shard holds the sample of this index, key or name."""
        if isinstance(key, str):
            return self._find(key) is not None
        if not isinstance(key, int) or not 0 <= key < len(self):
            return False
        return self._folder.place.size(shard_key(self.manifest.shard_of(key))) is not None

    def __iter__(self) -> Iterator[SampleRecord]:
        """Every published sample in the dataset's order, each shard decoded once."""
        for record in self.iter_shards():
            yield from record

    def keys(self) -> Iterator[str]:
        """Keys of the published samples in the dataset's order: SHA-256 hex of their contents.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            for key in self._open(shard_index).keys:
                yield key.tobytes().hex()

    def names(self) -> Iterator[str]:
        """Names of the published samples in the dataset's order.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            yield from self._open(shard_index).sample_ids

    def iter_shards(self) -> Iterator[ShardRecord]:
        """Every published shard, in order, decoded whole, one at a time.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            # not kept: a pass over the cache would push everything else out
            yield OpenShard(self._folder, shard_index).read_record()

    def missing_shards(self) -> list[int]:
        """Indices of the shards that are not published yet, ascending."""
        return find_missing_shards(self._folder)

    @property
    def is_complete(self) -> bool:
        """Whether every shard is published."""
        return not self.missing_shards()

    @property
    def num_tokens(self) -> int:
        """Response tokens of the published shards.

        Raises:
            CacheError: a shard's header is damaged.
        """
        if self._index is not None:
            return sum(seal.num_tokens for seal in self._index.shards)
        return sum(read_header(self._folder, index).num_tokens for index in self._present())

    def failures(self) -> dict[int, str]:
        """Samples that could not be read when the teacher was dumped: index → reason.

        They have no tokens. Shards without such samples are not opened.

        Raises:
            CacheError: a shard's header or seal is damaged.
        """
        found = {}
        for shard_index in self._present():
            seal = self._index.shards[shard_index] if self._index else None
            if seal is None or seal.num_failed:
                first = self.manifest.shard_range(shard_index).start
                for failure in read_header(self._folder, shard_index).failures:
                    found[first + failure.row] = failure.reason
        return found

    def outline(self, shard_index: int) -> ShardOutline:
        """How much a published shard holds; its file is not opened if the index tells.

        Raises:
            CacheError: the shard is not written yet, or its header is damaged.
        """
        seal = self._index.shards[shard_index] if self._index else None
        if seal is not None and not seal.num_failed:
            return ShardOutline(seal.num_tokens, ())
        header = read_header(self._folder, shard_index)
        first = self.manifest.shard_range(shard_index).start
        failed = tuple(first + failure.row for failure in header.failures)
        return ShardOutline(header.num_tokens, failed)

    def statistics(self) -> CacheSummary:
        """What ``vlsi-cache inspect`` shows: sizes, and means per tap; reads the cache once.

        Raises:
            CacheError: a shard is damaged.
        """
        return summarize_cache(self)

    def verify(self) -> Verification:
        """Hash every file and compare it with its seal; reads the whole cache once.

        Damage is told, not raised.
        """
        return verify_cache(self.path)

    @contextlib.contextmanager
    def processor_folder(self) -> Iterator[Path]:
        """The copy of the teacher's processor as a folder of this machine, for a while.

        Raises:
            CacheError: none is kept, or a file of it is damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            fetch_processor(self._folder, Path(folder))
            yield Path(folder)

    def size_bytes(self) -> int:
        """Bytes on disk: manifest and published shards, without the processor's copy."""
        return measure_bytes(self._folder)

    def __reduce__(self) -> tuple[object, ...]:
        return open_cache, (self.path,)

    def _index_of(self, key: str) -> int:
        found = self._find(key)
        if found is None:
            missing = len(self.missing_shards())
            raise CacheError(
                f"no sample {key!r}",
                where=self.path,
                found=f"{len(self)} samples, {missing} shards not written yet" if missing else None,
                mend=f"Sample ids look like {self._example_ids()}",
            )
        return found

    def _find(self, key: str) -> int | None:
        """Index of a sample; keys and names once read are remembered."""
        found = self._known(key)
        for shard_index in self._present() if found is None else ():
            if shard_index not in self._named_shards:
                self._remember(shard_index)
                found = self._known(key)
                if found is not None:
                    break
        return found

    def _known(self, key: str) -> int | None:
        digest = bytes.fromhex(key) if _KEY.fullmatch(key) else b""
        return self._places.get(key, self._places.get(digest))

    def _remember(self, shard_index: int) -> None:
        shard, first = self._open(shard_index), self.manifest.shard_range(shard_index).start
        for row, (name, digest) in enumerate(zip(shard.sample_ids, shard.keys, strict=True)):
            self._places.setdefault(name, first + row)
            self._places.setdefault(digest.tobytes(), first + row)
        self._named_shards.add(shard_index)

    def _present(self) -> list[int]:
        missing = set(self.missing_shards())
        return [index for index in range(self.manifest.num_shards) if index not in missing]

    def _open(self, shard_index: int) -> OpenShard:
        return self._shards.get(shard_index, lambda: OpenShard(self._folder, shard_index))

    def _sample(self, shard_index: int, row: int) -> SampleRecord:
        shard = self._open(shard_index)
        arrays = self._tokens(shard_index, int(shard.offsets[row]), int(shard.offsets[row + 1]))
        return SampleRecord(
            sample_id=shard.sample_ids[row],
            key=shard.keys[row].tobytes().hex(),
            response_ids=arrays["response_ids"],
            distribution=parse_distribution(arrays),
            failure=shard.failures.get(row),
        )

    def _tokens(self, shard_index: int, first: int, stop: int) -> Block:
        parts = []
        shard = self._open(shard_index)
        # a sample without tokens still takes its arrays' shapes from a block
        for index in range(first // CHUNK_TOKENS, max(stop - 1, first) // CHUNK_TOKENS + 1):
            block = self._blocks.get(
                (shard_index, index), functools.partial(shard.read_block, index)
            )
            start = index * CHUNK_TOKENS
            parts.append((block, slice(max(first - start, 0), stop - start)))
        # copies, so that a caller may write into what it was given
        return {
            name: np.concatenate([block[name][part] for block, part in parts])
            for name in token_arrays(self.manifest)
        }

    def _example_ids(self) -> str:
        present = self._present()
        names = self._open(present[0]).sample_ids[:3] if present else ()
        return ", ".join(map(repr, names)) or "nothing yet: no shard is written"
