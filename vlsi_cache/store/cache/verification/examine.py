"""Examining one shard: what its file and its seal show, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import CacheFolder, read_seal
from vlsi_cache.store.cache.hashing import hash_file
from vlsi_cache.store.cache.seals import ShardSeal
from vlsi_cache.store.cache.verification.blame import Blame, FileState, blame
from vlsi_cache.store.cache.verification.damage import (
    Advice,
    Damage,
    advice_on,
    describe_damage,
)
from vlsi_cache.store.places.keys import INDEX_FILE, seal_key, shard_key
from vlsi_cache.store.places.place import Place
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.archive import Archive
from vlsi_cache.store.shards.header import ShardHeader, parse_header, validate_header
from vlsi_cache.store.shards.shard import OpenShard

__all__ = ["Finding", "examine_shard", "is_published", "judge_shard"]

_UNHASHED: Final = "0" * 64
"""In place of the hash of a file whose size neither its seal nor the index states."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What lies under one shard's names."""

    is_published: bool = False
    """Whether the shard's file is there."""
    is_sealed: bool = False
    """Whether its seal is there."""
    sha256: str = ""
    """SHA-256 of the file."""
    num_bytes: int = 0
    """Bytes of the file."""
    header: ShardHeader | None = None
    """The file's header, if it can be read."""
    problem: str = ""
    """Why the header cannot be read."""
    advice: Advice = "shard"
    """What to do about the file, if its header cannot be read."""
    seal: ShardSeal | None = None
    """The seal, if it can be read."""
    seal_problem: str = ""
    """Why the seal cannot be read."""
    seal_advice: Advice = "seal"
    """What to do about the seal, if it cannot be read."""

    @property
    def own_seal(self) -> ShardSeal | None:
        """The seal that would be made of the file."""
        if self.header is None:
            return None
        return ShardSeal(
            sha256=self.sha256,
            num_bytes=self.num_bytes,
            num_samples=self.header.num_samples,
            num_tokens=self.header.num_tokens,
            num_failed=len(self.header.failures),
        )


def is_published(place: Place, key: str, files: Mapping[str, int]) -> bool:
    """Report whether a file is there, and look again if it is not listed.

    A writer may have published it since the listing, or while it was made.
    """
    try:
        return key in files or place.size(key) is not None
    except CacheError:
        return True  # something is, and reading it says what


def examine_shard(
    place: Place, shard_index: int, files: Mapping[str, int], listed: ShardSeal | None
) -> Finding:
    """Hash a shard's file, and read its header and its seal.

    Args:
        place: place of the cache.
        shard_index: the shard.
        files: every file of the cache.
        listed: the shard's seal according to the index, if there is one.
    """
    seal, seal_problem = None, ""
    seal_advice: Advice = "seal"
    try:
        seal = read_seal(place, shard_index)
    except CacheError as error:
        seal_problem, seal_advice = error.what, advice_on(error, "seal")
    key = shard_key(shard_index)
    is_sealed = seal is not None or bool(seal_problem) or seal_key(shard_index) in files
    is_expected = is_sealed or listed is not None
    finding = Finding(
        is_published=is_published(place, key, files) if is_expected else key in files,
        is_sealed=is_sealed,
        seal=seal,
        seal_problem=seal_problem,
        seal_advice=seal_advice,
    )
    return _examine_file(place, shard_index, finding, listed) if finding.is_published else finding


def _examine_file(
    place: Place, shard_index: int, finding: Finding, listed: ShardSeal | None
) -> Finding:
    key = shard_key(shard_index)
    digest, num_bytes = _UNHASHED, 0
    try:
        num_bytes = place.size(key) or 0
        # a file of another size differs anyway, and hashing it may take for ever
        if num_bytes in [seal.num_bytes for seal in (finding.seal, listed) if seal is not None]:
            digest, num_bytes = hash_file(place, key)
        header = parse_header(Archive(place, key))
    except CacheError as error:
        advice = advice_on(error, "shard")
        return replace(finding, problem=error.what, num_bytes=num_bytes, advice=advice)
    except Exception as error:  # whatever damaged bytes make a parser raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(finding, sha256=digest, num_bytes=num_bytes, problem=problem)
    return replace(finding, sha256=digest, num_bytes=num_bytes, header=header)


def judge_shard(
    folder: CacheFolder, shard_index: int, finding: Finding, wanted: ShardSeal | None
) -> Iterator[Damage]:
    """Find what is wrong with one shard.

    Args:
        folder: the cache, under a manifest that is trusted.
        shard_index: the shard.
        finding: what lies under its names.
        wanted: its seal according to the index, if there is one.
    """
    key, seal = shard_key(shard_index), seal_key(shard_index)
    if not finding.is_published and (finding.is_sealed or wanted):
        yield describe_damage((key,), "is missing", "shard", folder, shard_index)
    if finding.is_published and finding.seal_problem:
        yield describe_damage(
            (seal,), finding.seal_problem, finding.seal_advice, folder, shard_index
        )
    elif wanted and not finding.is_sealed:
        yield describe_damage((seal,), "is missing", "seal", folder, shard_index)
    if finding.is_published:
        yield from _judge_published(folder, shard_index, finding, wanted)


def _judge_published(
    folder: CacheFolder, shard_index: int, finding: Finding, wanted: ShardSeal | None
) -> Iterator[Damage]:
    address = folder.address(shard_index)
    if finding.advice == "access":
        yield describe_damage((address.key,), finding.problem, "access", folder, shard_index)
        return
    own = finding.own_seal
    misplaced = _find_misplaced(address, finding)
    # decoding takes long, and an index or a fitting seal makes it needless
    vouched = wanted is not None or (finding.seal is not None and finding.seal == own)
    undecodable = "" if vouched or misplaced else _find_undecodable(address)
    state = FileState(own, is_in_place=not misplaced, decodes=not (misplaced or undecodable))
    found = blame(state, finding.seal, wanted)
    if misplaced:
        yield describe_damage((address.key,), misplaced, "shard", folder, shard_index)
    if found is Blame.INDEX:
        problem = f"differs from shard {shard_index} and its seal"
        yield describe_damage((INDEX_FILE,), problem, "index", folder)
        undecodable = _find_undecodable(address)
        if undecodable:
            yield describe_damage((address.key,), undecodable, "shard", folder, shard_index)
    elif found in (Blame.SEAL, Blame.FILE_AND_SEAL):
        others = "the shard and the index" if own == wanted else "the index"
        problem = f"differs from {others}"
        yield describe_damage((address.seal_key,), problem, "seal", folder, shard_index)
    elif found is Blame.FILE_OR_SEAL:
        problem = f"shard and seal differ: {_sizes(finding, finding.seal)}"
        files = (address.key, address.seal_key)
        yield describe_damage(files, problem, "shard", folder, shard_index)
    elif found is Blame.FILE:
        problem = _describe_file(finding, wanted, undecodable)
        if problem:
            yield describe_damage((address.key,), problem, "shard", folder, shard_index)


def _describe_file(finding: Finding, wanted: ShardSeal | None, undecodable: str) -> str:
    """Describe how a file at fault differs from what speaks against it."""
    if wanted is not None:
        differs = finding.own_seal != wanted
        return f"differs from the index: {_sizes(finding, wanted)}" if differs else ""
    if finding.seal is not None:
        differs = finding.own_seal != finding.seal
        return f"shard and seal differ: {_sizes(finding, finding.seal)}" if differs else ""
    return undecodable


def _sizes(finding: Finding, seal: ShardSeal | None) -> str:
    if seal is None or finding.num_bytes == seal.num_bytes:
        return f"{finding.num_bytes:,} bytes, with another hash or other counts"
    return f"{finding.num_bytes:,} bytes, {seal.num_bytes:,} sealed"


def _find_misplaced(address: ShardAddress, finding: Finding) -> str:
    """Return why the file is not this shard, or nothing."""
    if finding.header is None:
        return finding.problem
    try:
        validate_header(finding.header, address)
    except ValueError as error:
        return str(error)
    return ""


def _find_undecodable(address: ShardAddress) -> str:
    """Return why a shard cannot be decoded, or nothing."""
    try:
        OpenShard(address).read_record()
    except CacheError as error:
        return error.what
    return ""
