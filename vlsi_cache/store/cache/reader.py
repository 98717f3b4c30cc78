"""``Cache``: reads any sample at any time, or shard after shard."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.documents import render_document
from vlsi_cache.store.cache.figures.statistics import summarize_cache
from vlsi_cache.store.cache.figures.summary import CacheSummary
from vlsi_cache.store.cache.folder import (
    CacheFolder,
    find_missing_shards,
    list_cache,
    measure_bytes,
    open_folder,
)
from vlsi_cache.store.cache.lru import RecentlyUsed
from vlsi_cache.store.cache.sealing import fetch_processor
from vlsi_cache.store.cache.seals import CacheIndex, ShardSeal, sha256_hex
from vlsi_cache.store.cache.verification.agreement import (
    open_shard,
    read_complete,
    read_shard_header,
    validate_listed,
    validate_sealed,
    validate_seals,
)
from vlsi_cache.store.cache.verification.damage import Verification
from vlsi_cache.store.cache.verification.verify import verify_cache
from vlsi_cache.store.places.keys import INDEX_FILE, shard_key
from vlsi_cache.store.places.opening import open_place, url_scheme
from vlsi_cache.store.shards.arrays import Array, parse_distribution
from vlsi_cache.store.shards.header import ShardHeader
from vlsi_cache.store.shards.layout import CHUNK_TOKENS
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord
from vlsi_cache.store.shards.shard import OpenShard, read_array_bytes

__all__ = ["DECODED_BYTES", "Cache", "ShardOutline", "open_cache"]

DECODED_BYTES: Final = 256 * 2**20
"""Most bytes of decoded chunks that an open cache keeps."""

_OPEN_SHARDS: Final = 64
_KEY: Final = re.compile("[0-9a-f]{64}")

Chunk = dict[str, Array]


def open_cache(path: str | Path) -> Cache:
    """Open a cache for reading, complete or not.

    This lists its files, and reads the manifest, the index and the seal of the processor's files.

    Args:
        path: Folder or URL of the cache.

    Raises:
        CacheError: there is no cache, its manifest or index is damaged, or its version is unknown.
            Or a file is missing that the index lists.
    """
    place = open_place(path)
    folder = open_folder(place)
    index = read_complete(folder)
    return Cache(place.locate() if url_scheme(path) else Path(path), folder, index)


class ShardOutline(NamedTuple):
    """The size of a published shard."""

    num_tokens: int
    """Response tokens."""
    failed: tuple[int, ...]
    """Indices of the samples without a record, ascending."""


class Cache:
    """The teacher's records of a dataset, as a sequence of samples. ``open_cache`` makes it.

    A sample is found by its index in the dataset, by its key (SHA-256 hex of the conversation's
    content) or by its name. It is returned as a ``SampleRecord`` of NumPy arrays, which belong to
    the caller. Samples of equal contents share a key, and samples of a merged cache may share a
    name. Such a key or name finds the first sample that is published at its first look-up.

    Decoded chunks of tokens are kept up to 256 MiB, so a cache of that size is decoded once.
    Threads may share a cache. Processes open their own: pickling a cache reopens it. New shards of
    a growing cache can be read without opening it again.

    Attributes:
        path: Folder of the cache, or its URL in an object store.
        manifest: Manifest of the cache.
    """

    def __init__(self, path: str | Path, folder: CacheFolder, index: CacheIndex | None) -> None:
        self.path = path
        self.manifest = folder.manifest
        self._folder = folder
        self._index = index
        self._has_equal_seals = False
        self._named_shards: set[int] = set()
        self._sample_indices: dict[str | bytes, int] = {}
        self._shards: RecentlyUsed[int, OpenShard] = RecentlyUsed(_OPEN_SHARDS, lambda _: 1)
        self._chunks: RecentlyUsed[tuple[int, int], Chunk] = RecentlyUsed(
            DECODED_BYTES, lambda chunk: sum(array.nbytes for array in chunk.values())
        )

    def __len__(self) -> int:
        """Return the number of samples of the complete cache."""
        return self.manifest.dataset.num_samples

    def __getitem__(self, key: int | str) -> SampleRecord:
        """Read a sample's record by its index (from the end if negative), key or name.

        The first look-up of a key or name reads the keys and names of the shards before it.

        Raises:
            IndexError: the index is beyond the dataset.
            CacheError: no published shard holds the key or name, or the sample's shard is not
                written yet or damaged.
        """
        if not isinstance(key, str | int):
            kind = type(key).__name__
            raise TypeError(f"a cache is asked by index, key or name of one sample, not by {kind}")
        sample_index = self.index_of(key) if isinstance(key, str) else key
        if -len(self) <= sample_index < 0:
            sample_index += len(self)
        shard_index = self.manifest.shard_of(sample_index)
        return self._sample(
            shard_index, sample_index - self.manifest.shard_range(shard_index).start
        )

    def __repr__(self) -> str:
        return f"<Cache {self.path}: {len(self)} samples, {len(self.manifest.taps)} taps>"

    def __contains__(self, key: object) -> bool:
        """Report whether a published shard holds the sample of this index, key or name."""
        if isinstance(key, str):
            return self._find(key) is not None
        if not isinstance(key, int) or not 0 <= key < len(self):
            return False
        shard_index = self.manifest.shard_of(key)
        found = self._folder.place.size(shard_key(shard_index)) is not None
        return found or shard_index in self._present()  # an error if the cache is complete

    def __iter__(self) -> Iterator[SampleRecord]:
        """Yield every published sample in the dataset's order. Each shard is decoded once."""
        for record in self.iter_shards():
            yield from record

    def keys(self) -> Iterator[str]:
        """Yield the keys of the published samples in order: SHA-256 hex of their contents.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            for key in self._open(shard_index).keys:
                yield key.tobytes().hex()

    def names(self) -> Iterator[str]:
        """Yield the names of the published samples in the dataset's order.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            yield from self._open(shard_index).sample_ids

    def iter_shards(self) -> Iterator[ShardRecord]:
        """Yield every published shard in order, decoded whole, one at a time.

        Raises:
            CacheError: a shard is damaged.
        """
        for shard_index in self._present():
            # not kept, because a pass over the cache would displace everything else
            yield open_shard(self._folder, self._index, shard_index).read_record()

    def iter_parts(self, shard_index: int, num_tokens: int) -> Iterator[ShardRecord]:
        """Yield a published shard in parts of whole samples, of about so many tokens.

        Raises:
            CacheError: the shard is missing or damaged.
        """
        shard = open_shard(self._folder, self._index, shard_index)
        yield from shard.iter_parts(num_tokens)

    def present_shards(self) -> list[int]:
        """Find the indices of the published shards, ascending.

        Raises:
            CacheError: a shard of a complete cache is missing.
        """
        return self._present()

    def missing_shards(self) -> list[int]:
        """Find the indices of the shards that are not published yet, ascending."""
        return find_missing_shards(self._folder)

    @property
    def is_complete(self) -> bool:
        """Whether every shard is published."""
        return not self.missing_shards()

    @property
    def is_indexed(self) -> bool:
        """Whether the cache has an index. A shard that is missing is then damage."""
        return self._index is not None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the index, which covers every file; None while the cache has none."""
        return None if self._index is None else sha256_hex(render_document(self._index))

    @property
    def num_tokens(self) -> int:
        """Response tokens of the published shards.

        Raises:
            CacheError: a shard's header is damaged.
        """
        present, seals = self._present(), self._seals()
        if seals is not None:
            return sum(seal.num_tokens for seal in seals)
        return sum(self._header(shard_index).num_tokens for shard_index in present)

    def failures(self) -> dict[int, str]:
        """Return index → reason of the samples that could not be read.

        Such samples have no tokens. Shards without them are not opened.

        Raises:
            CacheError: a shard's header or seal is damaged.
        """
        found = {}
        present, seals = self._present(), self._seals()
        for shard_index in present:
            if seals is None or seals[shard_index].num_failed:
                first = self.manifest.shard_range(shard_index).start
                for failure in self._header(shard_index).failures:
                    found[first + failure.row] = failure.reason
        return found

    def outline(self, shard_index: int) -> ShardOutline:
        """Return the size of a published shard. The seals mostly answer without its file.

        Raises:
            CacheError: the shard is not written yet, or its header or a seal is damaged.
        """
        seals = self._seals()
        if seals is not None and not seals[shard_index].num_failed:
            return ShardOutline(seals[shard_index].num_tokens, ())
        header = self._header(shard_index)
        first = self.manifest.shard_range(shard_index).start
        failed = tuple(first + failure.row for failure in header.failures)
        return ShardOutline(header.num_tokens, failed)

    def index_of(self, key: str) -> int:
        """Find the index in the dataset of the first sample with this key or name.

        Raises:
            CacheError: no published shard holds it.
        """
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

    def statistics(self, *, processes: int = 1) -> CacheSummary:
        """Return what ``vlsi-cache inspect`` shows: sizes, and means per tap. Reads all shards.

        Args:
            processes: processes that read at once. With several, a script needs
                ``if __name__ == "__main__":``.

        Raises:
            CacheError: a shard is damaged.
        """
        return summarize_cache(self, processes=processes)

    def verify(self) -> Verification:
        """Hash every file and compare it with its seal. Reads the whole cache once.

        Damage is reported, not raised.
        """
        return verify_cache(self.path)

    @contextlib.contextmanager
    def processor_folder(self) -> Iterator[Path]:
        """Provide the copy of the teacher's processor in a temporary folder.

        Raises:
            CacheError: no copy is kept, or a file of it is damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            fetch_processor(self._folder, Path(folder))
            yield Path(folder)

    def size_bytes(self, *, processor: bool = False) -> int:
        """Return the bytes of manifest, index, seals and published shards.

        Args:
            processor: whether the processor's copy is counted, too.
        """
        return measure_bytes(self._folder, processor=processor)

    def array_bytes(self) -> dict[str, int]:
        """Return array → its bytes on disk, in all published shards together.

        Raises:
            CacheError: a shard is damaged.
        """
        totals: Counter[str] = Counter()
        for shard_index in self._present():
            totals.update(read_array_bytes(self._folder.address(shard_index)))
        return dict(totals)

    def __reduce__(self) -> tuple[object, ...]:
        return open_cache, (self.path,)

    def _find(self, key: str) -> int | None:
        """Find the index of a sample. Keys and names are read once."""
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
        return self._sample_indices.get(key, self._sample_indices.get(digest))

    def _remember(self, shard_index: int) -> None:
        shard, first = self._open(shard_index), self.manifest.shard_range(shard_index).start
        for row, (name, digest) in enumerate(zip(shard.sample_ids, shard.keys, strict=True)):
            self._sample_indices.setdefault(name, first + row)
            self._sample_indices.setdefault(digest.tobytes(), first + row)
        self._named_shards.add(shard_index)

    def _present(self) -> list[int]:
        """Return the published shards: all of them where there is an index, or an error."""
        files = list_cache(self._folder.place)
        if self._index is None and INDEX_FILE in files:
            self._index = read_complete(self._folder)  # completed since it was opened
        elif self._index is not None:
            validate_listed(self._folder, self._index, files)
        everything = range(self.manifest.num_shards)
        if self._index is not None:
            return list(everything)
        validate_sealed(self._folder, files)
        return [index for index in everything if shard_key(index) in files]

    def _seals(self) -> tuple[ShardSeal, ...] | None:
        """Return what the index and the seals both say, or None where there is no index."""
        if self._index is None:
            return None
        if not self._has_equal_seals:
            validate_seals(self._folder, self._index)
            self._has_equal_seals = True
        return self._index.shards

    def _header(self, shard_index: int) -> ShardHeader:
        return read_shard_header(self._folder, self._index, shard_index)

    def _open(self, shard_index: int) -> OpenShard:
        return self._shards.get(
            shard_index, lambda: open_shard(self._folder, self._index, shard_index)
        )

    def _sample(self, shard_index: int, row: int) -> SampleRecord:
        shard = self._open(shard_index)
        arrays = self._tokens(shard_index, int(shard.offsets[row]), int(shard.offsets[row + 1]))
        return SampleRecord(
            sample_id=shard.sample_ids[row],
            key=shard.keys[row].tobytes().hex(),
            response_ids=arrays["response_ids"],
            distribution=parse_distribution(arrays),
            failure=shard.failures.get(row),
            hidden_signs=arrays.get("hidden_signs"),
        )

    def _tokens(self, shard_index: int, first: int, stop: int) -> Chunk:
        parts = []
        shard = self._open(shard_index)
        # a sample without tokens takes its arrays' shapes from a chunk too
        for index in range(first // CHUNK_TOKENS, max(stop - 1, first) // CHUNK_TOKENS + 1):
            chunk = self._chunks.get(
                (shard_index, index), functools.partial(shard.read_chunk, index)
            )
            start = index * CHUNK_TOKENS
            parts.append((chunk, slice(max(first - start, 0), stop - start)))
        # copies, so that a caller may write into its arrays
        return {
            name: np.concatenate([chunk[name][part] for chunk, part in parts])
            for name in parts[0][0]
        }

    def _example_ids(self) -> str:
        present = self._present()
        names = self._open(present[0]).sample_ids[:3] if present else ()
        return ", ".join(map(repr, names)) or "nothing yet: no shard is written"
