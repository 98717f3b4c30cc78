"""``OpenShard``: a published shard, read in parts."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from vlsi_cache.contents import HEAD_BYTES, Contents, recognise
from vlsi_cache.errors import CacheError
from vlsi_cache.store.places.keys import INDEX_FILE
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.archive import Archive
from vlsi_cache.store.shards.archivestore import ArchiveStore
from vlsi_cache.store.shards.arrays import (
    Array,
    find_problem,
    parse_distribution,
    parse_sample_ids,
    separate,
)
from vlsi_cache.store.shards.bounds import validate_array, validate_volume
from vlsi_cache.store.shards.coding.codecs import OtherRevisionError, bounded_array
from vlsi_cache.store.shards.header import ShardHeader, parse_header, validate_header
from vlsi_cache.store.shards.layout import (
    CHUNK_TOKENS,
    TOGETHER_REVISION,
    ArrayLayout,
    shard_layout,
    token_arrays,
)
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["OpenShard", "read_array_bytes", "read_sized_header"]


def read_sized_header(address: ShardAddress) -> tuple[ShardHeader, int]:
    """Read the header of a published shard, and the bytes of its file, at the file's end.

    Raises:
        CacheError: the shard is missing, its header is damaged, or it is another shard.
    """
    archive = _open_archive(address)
    with _errors_named(address):
        header = parse_header(archive)
        validate_header(header, address)
        return header, archive.num_bytes


def read_array_bytes(address: ShardAddress) -> dict[str, int]:
    """Return array → its bytes in a published shard, with its own metadata.

    Raises:
        CacheError: the shard is missing, or its file is damaged.
    """
    archive = _open_archive(address)
    sizes: Counter[str] = Counter()
    for name in archive.names:
        array, inside, _ = name.partition("/")
        if inside:
            sizes[array] += archive.size(name) or 0
    return dict(sizes)


class OpenShard:
    """A published shard: the index of its samples in memory, its token arrays on disk.

    Args:
        address: the shard's address.

    Raises:
        CacheError: the shard is missing or damaged, or it is another shard.
    """

    def __init__(self, address: ShardAddress) -> None:
        self.address = address
        self.manifest = address.manifest
        self._token_arrays = token_arrays(self.manifest)
        archive = _open_archive(address)
        with _errors_named(address):
            self.num_bytes = archive.num_bytes
            self.header = parse_header(archive)
            validate_header(self.header, address)
            self._arrays = self._open_arrays(archive)
            self.offsets = self._whole("sample_offsets")
            self.keys = self._whole("sample_keys")
            self.sample_ids = parse_sample_ids(self._whole("sample_ids"))
            self._validate_samples()

    @property
    def num_tokens(self) -> int:
        """Number of the shard's response tokens, N."""
        return self.header.num_tokens

    @property
    def failures(self) -> dict[int, str]:
        """Row of each sample that could not be read → reason."""
        return {failure.row: failure.reason for failure in self.header.failures}

    def read_tokens(self, first: int, stop: int) -> dict[str, Array]:
        """Read the token arrays from one response token up to another, as ``separate`` does.

        Raises:
            CacheError: a chunk is missing, damaged, or holds an impossible value.
        """
        with _errors_named(self.address):
            stored = {
                name: np.asarray(self._arrays[name][first:stop]) for name in self._token_arrays
            }
            arrays = separate(stored, self.manifest.sampling.k)
            problem = find_problem(arrays, self.manifest.tokenizer.vocab_size)
            if problem:
                raise ValueError(problem)
            return arrays

    def read_chunk(self, chunk_index: int) -> dict[str, Array]:
        """Read one chunk of the token arrays: ``CHUNK_TOKENS`` tokens, or the remaining ones."""
        first = chunk_index * CHUNK_TOKENS
        return self.read_tokens(first, min(first + CHUNK_TOKENS, self.num_tokens))

    def iter_parts(self, num_tokens: int) -> Iterator[ShardRecord]:
        """Yield the shard in parts of whole samples, of about so many tokens or one sample.

        A chunk is decoded once, also if it reaches into the next part.
        """
        first, count = 0, len(self.sample_ids)
        reached, ahead = 0, self.read_tokens(0, 0)
        while first < count:
            most = int(self.offsets[first]) + num_tokens
            stop = int(np.searchsorted(self.offsets, most, side="right")) - 1
            stop = min(max(stop, first + 1), count)
            end = int(self.offsets[stop])
            if end > reached:
                chunk_end = min(-(-end // CHUNK_TOKENS) * CHUNK_TOKENS, self.num_tokens)
                ahead = _joined(ahead, self.read_tokens(reached, chunk_end))
                reached = chunk_end
            size = end - int(self.offsets[first])
            yield self._samples(first, stop, {name: array[:size] for name, array in ahead.items()})
            ahead = {name: array[size:] for name, array in ahead.items()}
            first = stop

    def _samples(self, first: int, stop: int, arrays: Mapping[str, Array]) -> ShardRecord:
        begin = int(self.offsets[first])
        return ShardRecord(
            sample_ids=self.sample_ids[first:stop],
            keys=self.keys[first:stop],
            offsets=self.offsets[first : stop + 1] - begin,
            response_ids=arrays["response_ids"],
            distribution=parse_distribution(arrays),
            failures={
                row - first: why for row, why in self.failures.items() if first <= row < stop
            },
            hidden_signs=arrays.get("hidden_signs"),
        )

    def read_record(self) -> ShardRecord:
        """Read the whole shard."""
        return self._samples(0, len(self.sample_ids), self.read_tokens(0, self.num_tokens))

    def _open_arrays(self, archive: Archive) -> dict[str, zarr.Array[Any]]:
        group = zarr.open_group(ArchiveStore(archive), mode="r", zarr_format=3)
        arrays: dict[str, zarr.Array[Any]] = {}
        for name in shard_layout(self.manifest, num_samples=1, num_tokens=0, id_bytes=1):
            array = group[name]
            if not isinstance(array, zarr.Array):
                raise ValueError(f"{name} is not an array")
            arrays[name] = array
        layout = shard_layout(
            self.manifest,
            num_samples=self.header.num_samples,
            num_tokens=self.num_tokens,
            id_bytes=arrays["sample_ids"].size,
        )
        validate_volume(layout, archive.num_bytes)
        for name, wanted in layout.items():
            _validate_layout(name, arrays[name], wanted)
            metadata = arrays[name].metadata.to_dict()
            validate_array(name, metadata, wanted, archive.num_bytes)
            arrays[name] = bounded_array(arrays[name])
        return arrays

    def _whole(self, name: str) -> Array:
        return np.asarray(self._arrays[name][...])

    def _validate_samples(self) -> None:
        offsets = self.offsets
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or (np.diff(offsets) < 0).any():
            raise ValueError("sample_offsets does not ascend from 0 to the number of tokens")
        rows = [failure.row for failure in self.header.failures]
        if rows != sorted(set(rows)) or any(row >= self.header.num_samples for row in rows):
            raise ValueError("failures do not ascend inside the shard")
        if any(offsets[row] != offsets[row + 1] for row in rows):
            raise ValueError("a sample that failed has tokens")
        if len(self.sample_ids) != self.header.num_samples:
            raise ValueError(f"{len(self.sample_ids)} sample ids")
        if not self.keys.any(axis=1).all():
            raise ValueError("sample_keys has a hole")


def _joined(before: Mapping[str, Array], after: Mapping[str, Array]) -> dict[str, Array]:
    """Return the token arrays of two runs of tokens, one after the other."""
    if not len(before["response_ids"]):
        return dict(after)
    return {name: np.concatenate([before[name], after[name]]) for name in after}


def _validate_layout(name: str, array: zarr.Array[Any], wanted: ArrayLayout) -> None:
    if array.shape != wanted.shape or str(array.dtype) != wanted.dtype:
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}, not {wanted.dtype} {wanted.shape}"
        )
    # with another fill value a hole would read as plausible numbers
    if not np.array_equal(array.fill_value, wanted.fill_value, equal_nan=True):
        raise ValueError(f"{name} has fill value {array.fill_value}")


def _open_archive(address: ShardAddress) -> Archive:
    if address.place.size(address.key) is None:
        raise CacheError(
            f"shard {address.shard_index} is not written yet, or lost",
            where=address.where,
            mend=f"Run {address.command}; it writes only what is missing",
        )
    with _errors_named(address):
        return Archive(address.place, address.key)


@contextlib.contextmanager
def _errors_named(address: ShardAddress) -> Iterator[None]:
    """Turn any failure to read a published shard into damage, with how to mend it."""
    try:
        yield
    except CacheError:
        raise
    except OtherRevisionError as error:
        raise CacheError(
            "records are coded in a revision that this library does not read",
            where=address.where,
            expected=f"revision {TOGETHER_REVISION}",
            found=error.found,
            mend="Dump the teacher into a new folder",
        ) from error
    # damaged bytes surface as whatever error Zarr, a codec or a parser happens to raise
    except Exception as error:
        lost = _find_lost(address)
        raise CacheError(
            f"file is not a shard, but {lost.words}"
            if lost is not None
            else f"shard is damaged ({type(error).__name__}: {error})",
            where=address.where,
            mend=f"{'Delete' if lost is None else f'{lost.mend}. Or delete'} "
            f"this file, {address.seal_key} and {INDEX_FILE}, as far as they are "
            f"there, and run {address.command}; it writes only what is missing",
        ) from error


def _find_lost(address: ShardAddress) -> Contents | None:
    """Find what was saved in a shard's place, such as a pointer of git-lfs."""
    try:
        head = address.place.read_range(address.key, 0, HEAD_BYTES)
        found = recognise(head, address.place.size(address.key) or 0)
    except CacheError:
        return None
    return found if found.kind in ("empty", "not the file") else None
