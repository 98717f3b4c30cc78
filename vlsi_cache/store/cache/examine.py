"""Examining one shard: what its file and its seal say, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import CacheFolder, read_seal
from vlsi_cache.store.cache.hashing import hash_file
from vlsi_cache.store.cache.seals import ShardSeal
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.shards.archive import Archive
from vlsi_cache.store.shards.layout import INDEX_FILE, seal_key, shard_key
from vlsi_cache.store.shards.shard import OpenShard, ShardHeader, parse_header, prove_in_place

__all__ = ["Fault", "Finding", "examine_shard", "judge_shard"]

Fault = tuple[tuple[str, ...], str, str]
"""Files, what is wrong with them, what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What lies in one shard's place."""

    is_published: bool = False
    """Whether its file is there."""
    is_sealed: bool = False
    """Whether its seal is there."""
    sha256: str = ""
    """Of the file."""
    num_bytes: int = 0
    """Of the file."""
    header: ShardHeader | None = None
    """What the file says of itself, if that can be read."""
    fault: str = ""
    """Why it cannot."""
    seal: ShardSeal | None = None
    """The seal, if it can be read."""
    seal_fault: str = ""
    """Why it cannot."""


def examine_shard(place: Place, shard_index: int, files: Mapping[str, int]) -> Finding:
    """Hash a shard's file, and read its header and its seal."""
    key = shard_key(shard_index)
    seal, seal_fault = None, ""
    try:
        seal = read_seal(place, shard_index)
    except CacheError as error:
        seal_fault = error.what
    sealed = seal_key(shard_index) in files
    if key not in files:
        return Finding(is_sealed=sealed, seal=seal, seal_fault=seal_fault)
    header, fault, digest, num_bytes = None, "", "", 0
    try:
        digest, num_bytes = hash_file(place, key)
        header = parse_header(Archive(place, key))
    except CacheError as error:
        fault = error.what
    except Exception as error:  # whatever damaged bytes make a parser raise
        fault = f"{type(error).__name__}: {error}"
    return Finding(True, sealed, digest, num_bytes, header, fault, seal, seal_fault)


def judge_shard(
    folder: CacheFolder, shard_index: int, finding: Finding, wanted: ShardSeal | None
) -> Iterator[Fault]:
    """What is wrong with one shard.

    File, seal and index tell the same; where one contradicts the other two, it is at fault. Where
    there is no index, a file that still decodes cannot be told from its seal.

    Args:
        folder: the cache, under the manifest that is trusted.
        shard_index: which shard.
        finding: what lies in its place.
        wanted: its seal according to the index, if there is one.
    """
    key, seal = shard_key(shard_index), seal_key(shard_index)
    again = (
        f"Delete {key}, {seal} and {INDEX_FILE}, as far as they are there, and run "
        f"{folder.command}; it writes only what is missing"
    )
    remade = f"Delete {seal} if it is there, and run {folder.command}; it is made anew"
    if not finding.is_published:
        if finding.is_sealed or wanted:
            yield (key,), "is missing", again
        if wanted and not finding.is_sealed:
            yield (seal,), "is missing", remade
        return
    own, misplaced = _own_seal(finding), _misplaced(folder, shard_index, finding)
    if misplaced:
        yield (key,), misplaced, again
    if finding.seal_fault:
        yield (seal,), finding.seal_fault, remade
    elif not finding.is_sealed and wanted:
        yield (seal,), "is missing", remade
    told = [text for text in (finding.seal, wanted) if text is not None]
    if not told:
        fault = "" if misplaced else _undecodable(folder, shard_index)
        if fault:
            yield (key,), fault, again
    elif any(text != own for text in told) or misplaced:
        yield from _contradiction(folder, shard_index, finding, wanted, again, remade)


def _contradiction(
    folder: CacheFolder,
    shard_index: int,
    finding: Finding,
    wanted: ShardSeal | None,
    again: str,
    remade: str,
) -> Iterator[Fault]:
    key, seal = shard_key(shard_index), seal_key(shard_index)
    own = _own_seal(finding)
    if finding.seal is None or finding.seal == wanted:
        if own != wanted:
            yield (key,), f"differs from the index: {_sizes(finding, wanted)}", again
    elif wanted is not None and own == wanted:
        yield (seal,), "differs from the shard and the index", remade
    elif wanted is not None and own == finding.seal:
        if not _misplaced(folder, shard_index, finding):
            yield (INDEX_FILE,), f"differs from shard {shard_index} and its seal", again
        else:
            yield (seal,), "differs from the index", remade
    elif own != finding.seal:
        alone = wanted is None and _undecodable(folder, shard_index)
        files = (key,) if alone else (key, seal)
        yield files, f"shard and seal differ: {_sizes(finding, finding.seal)}", again


def _own_seal(finding: Finding) -> ShardSeal | None:
    """The seal that the file as it stands would get."""
    if finding.header is None:
        return None
    return ShardSeal(
        sha256=finding.sha256,
        num_bytes=finding.num_bytes,
        num_samples=finding.header.num_samples,
        num_tokens=finding.header.num_tokens,
        num_failed=len(finding.header.failures),
    )


def _sizes(finding: Finding, seal: ShardSeal | None) -> str:
    if seal is None or finding.num_bytes == seal.num_bytes:
        return f"{finding.num_bytes:,} bytes, their hash another"
    return f"{finding.num_bytes:,} bytes, {seal.num_bytes:,} sealed"


def _misplaced(folder: CacheFolder, shard_index: int, finding: Finding) -> str:
    if finding.header is None:
        return finding.fault
    try:
        prove_in_place(finding.header, folder, shard_index)
    except ValueError as error:
        return str(error)
    return ""


def _undecodable(folder: CacheFolder, shard_index: int) -> str:
    """Why a shard cannot be decoded, or nothing: for where no seal can be asked."""
    try:
        OpenShard(folder, shard_index).read_record()
    except CacheError as error:
        return error.what
    return ""
