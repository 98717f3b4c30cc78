"""Whether a manifest is to be trusted: the rest of the cache names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlsi_cache.store.cache.folder import CacheFolder
from vlsi_cache.store.cache.seals import CacheIndex, sha256_hex
from vlsi_cache.store.cache.verification.damage import Damage, describe_damage
from vlsi_cache.store.cache.verification.examine import Finding
from vlsi_cache.store.cache.verification.origins import find_contradiction, read_copy
from vlsi_cache.store.places.keys import INDEX_FILE, MANIFEST_FILE, part_key, shard_key

__all__ = ["Trust", "judge_manifest"]


@dataclass(frozen=True, slots=True)
class Trust:
    """What the shards, the parts' manifests and the index say about the manifest."""

    manifest: Damage | None = None
    """Damage to the manifest. Nothing else can be judged by a damaged one."""
    parts: tuple[Damage, ...] = ()
    """Damage to the copies of the parts' manifests."""


def judge_manifest(
    folder: CacheFolder,
    index: CacheIndex | None,
    findings: Sequence[Finding],
    files: Mapping[str, int],
) -> Trust:
    """Find out whether the manifest is the one that the cache was made with.

    No seal covers the manifest, but every shard and the index name its digest. If none of them
    names the digest of the manifest at hand, they are right and it is wrong.

    Args:
        folder: the cache.
        index: its index, if it can be read.
        findings: what lies under the shards' names.
        files: every file of the cache.
    """
    if folder.manifest.parts:
        return _judge_merged(folder, index, findings, files)
    votes = Counter(finding.header.cache for finding in findings if finding.header)
    if index is not None:
        votes[index.manifest_sha256] += 1
    if not votes or folder.digest in votes:
        return Trust()
    at_fault: tuple[str, ...] = (MANIFEST_FILE,)
    if votes.most_common(1)[0][1] == 1:  # one voice against one
        lone = [shard_key(i) for i, finding in enumerate(findings) if finding.header]
        at_fault = (*at_fault, *(lone or [INDEX_FILE]))
    problem = "is not the manifest that the shards name"
    return Trust(describe_damage(at_fault, problem, "manifest"))


def _judge_merged(
    folder: CacheFolder,
    index: CacheIndex | None,
    findings: Sequence[Finding],
    files: Mapping[str, int],
) -> Trust:
    """Judge a merged manifest.

    Three speak for each part: the merged manifest, the shards and the copy of the part's own
    manifest name or have one digest. Only the index names the merged manifest itself.
    """
    elected, copies = _elect_digests(folder, findings, files)
    parts = []
    for part_index, (digest, copy) in enumerate(zip(elected, copies, strict=True)):
        key = (part_key(part_index),)
        if copy is None and any(finding.is_published for finding in findings):
            parts.append(describe_damage(key, "is missing", "part", folder))
        elif copy is not None and copy != digest:
            problem = "is not the manifest that the shards name"
            parts.append(describe_damage(key, problem, "part", folder))
    manifest = None
    problem = find_contradiction(folder)
    if elected != list(folder.part_digests):
        problem = "names other parts than the shards do"
    if problem:
        manifest = describe_damage((MANIFEST_FILE,), problem, "manifest")
    elif index is not None and index.manifest_sha256 != folder.digest:
        problem = "belong to different caches"
        manifest = describe_damage((MANIFEST_FILE, INDEX_FILE), problem, "manifest")
    return Trust(manifest, tuple(parts))


def _elect_digests(
    folder: CacheFolder, findings: Sequence[Finding], files: Mapping[str, int]
) -> tuple[list[str], list[str | None]]:
    """Return the digest that most name for each part, and that of each copy.

    A copy's is None if there is none, and empty if it cannot be read.
    """
    # the manifest's own voice comes first: it decides where as many speak against it
    votes = [Counter([digest]) for digest in folder.part_digests]
    for shard_index, finding in enumerate(findings[: folder.manifest.num_shards]):
        part_index = folder.manifest.shard_origin(shard_index).part_index
        if finding.header and part_index is not None:
            votes[part_index][finding.header.cache] += 1
    copies = []
    for part_index, counted in enumerate(votes):
        content = read_copy(folder, part_index)
        copy = None if content is None else sha256_hex(content)
        if copy is not None:
            counted[copy] += 1
        copies.append("" if copy is None and part_key(part_index) in files else copy)
    return [counted.most_common(1)[0][0] for counted in votes], copies
