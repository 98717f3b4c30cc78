"""What verifying a cache finds, with advice on how to mend it."""

from __future__ import annotations

from typing import Final, Literal

from vlsi_cache.errors import CacheAccessError, CacheError
from vlsi_cache.jsonmodels import PathText, ReportModel
from vlsi_cache.store.cache.folder import CacheFolder
from vlsi_cache.store.places.keys import (
    INDEX_FILE,
    MANIFEST_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    seal_key,
    shard_key,
)

__all__ = ["Advice", "Damage", "Verification", "advice_on", "describe_damage"]

Advice = Literal["access", "index", "manifest", "part", "processor", "seal", "shard", "stray"]

_ADVICE: Final[dict[Advice, str]] = {
    "manifest": f"Restore {MANIFEST_FILE} from a copy, or dump the teacher again into a new folder",
    "part": "Delete the file if it is there, and run {command}; it is made again",
    "processor": f"Restore the file from a copy; or delete {PROCESSOR_FOLDER}/, "
    f"{PROCESSOR_SEAL_FILE} and {INDEX_FILE}, and run {{command}}",
    "shard": f"Delete {{shard}}, {{seal}} and {INDEX_FILE}, as far as they are there, and run "
    "{command}; it writes only what is missing",
    "seal": "Delete {seal} if it is there, and run {command}; it is made again",
    "index": f"Delete {INDEX_FILE} and run {{command}}; it is made again",
    "access": "Check permissions, links and the disk's health, and verify again. A file that stays "
    "unreadable is lost: move it away, restore it from a copy or run {command}",
    "stray": "Move the file away",
}
"""How to mend each kind of damage."""


class Damage(ReportModel):
    """One problem of a cache."""

    files: tuple[PathText, ...]
    """The files at fault, inside the cache; several if nothing shows which of them is."""
    fault: str
    """What is wrong."""
    mend: str
    """What to do."""


class Verification(ReportModel):
    """What verifying a cache found."""

    path: PathText
    """Address of the cache."""
    sound: bool
    """Whether nothing is damaged; an incomplete cache may be sound."""
    complete: bool
    """Whether every shard and the index are published."""
    num_shards: int
    """Shards of the complete cache; 0 if there is no manifest to judge it by."""
    num_shards_sealed: int
    """Shards that are published with their seals."""
    num_files: int
    """Files that were read."""
    num_bytes: int
    """Bytes that were read."""
    damages: tuple[Damage, ...]
    """All damage: the manifest's first, then in the order of files."""


def advice_on(error: CacheError, kind: Advice) -> Advice:
    """Return the advice on a file that was refused: nothing is known of an unreadable one."""
    return "access" if isinstance(error, CacheAccessError) else kind


def describe_damage(
    files: tuple[str, ...],
    problem: str,
    advice: Advice,
    folder: CacheFolder | None = None,
    shard_index: int = 0,
) -> Damage:
    """Describe a damage with the advice for its kind.

    Args:
        files: the files at fault.
        problem: what is wrong with them.
        advice: kind of the damage.
        folder: the cache; needed for all advice but on a manifest or a stray file, or on access.
        shard_index: the shard, where the damage is one shard's.
    """
    mend = _ADVICE[advice].format(
        command=folder.command if folder else "dump-teacher again into a new folder",
        shard=shard_key(shard_index),
        seal=seal_key(shard_index),
    )
    return Damage(files=files, fault=problem, mend=mend)
