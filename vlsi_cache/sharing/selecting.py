"""Which files of a folder are shared, and which stay behind."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.store import Cache
from vlsi_cache.store.cache.folder import list_cache, read_processor_seal
from vlsi_cache.store.places.keys import (
    CARD_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    PROCESSOR_FOLDER,
    PROCESSOR_SEAL_FILE,
    part_key,
    seal_key,
    shard_key,
)
from vlsi_cache.store.places.opening import open_place

__all__ = ["Selected", "select_cache_files", "select_student_files"]

Selected = tuple[dict[str, Path], tuple[str, ...]]
"""Name in the repository → file, and the names of the files that stay behind."""

_OF_TRAINING: Final = (
    *("*.pt", "*.pth", "*.distcp", "checkpoint-*", "global_step*", "optimizer*", "scheduler*"),
    *("rng_state*", "trainer_state.json", "training_args.bin", "events.out.tfevents*"),
)
"""Files and folders that training leaves, and that no reader of a student needs."""


def select_cache_files(path: Path, cache: Cache) -> Selected:
    """Choose the files that belong to a complete cache.

    Raises:
        CacheError: a file is missing, or is none that can be shared.
    """
    manifest, place = cache.manifest, open_place(path)
    known = {MANIFEST_FILE, INDEX_FILE}
    for shard_index in range(manifest.num_shards):
        known |= {shard_key(shard_index), seal_key(shard_index)}
    known |= {part_key(part_index) for part_index in range(len(manifest.parts))}
    seal = read_processor_seal(place)
    if seal is not None:
        known |= {PROCESSOR_SEAL_FILE, *(f"{PROCESSOR_FOLDER}/{name}" for name in seal.files)}
    # as the place lists it: a folder of the cache may be a link to another disk
    there = list_cache(place)
    for name in sorted(known):
        if name not in there or not (path / name).is_file():
            raise CacheError(
                "file is missing, and the cache cannot be shared without it",
                where=path / name,
                mend="Run vlsi-cache verify: it says what to do",
            )
    others = tuple(sorted(there.keys() - known - {CARD_FILE}))
    return {name: path / name for name in sorted(known)}, others


def select_student_files(path: Path) -> Selected:
    """Choose the files of a student, without those of its training and of other folders."""
    root = path.resolve()
    return _select(
        path,
        lambda name, file: (
            file.resolve().is_relative_to(root)
            and not any(fnmatch(part, one) for part in name.parts for one in _OF_TRAINING)
        ),
    )


def _select(path: Path, is_shared: Callable[[PurePosixPath, Path], bool]) -> Selected:
    """Sort the files of a folder, but for its card and what is hidden."""
    shared, others = {}, []
    for file in sorted(path.rglob("*")):
        name = PurePosixPath(file.relative_to(path).as_posix())
        is_hidden = any(part.startswith(".") for part in name.parts)
        if is_hidden or str(name) == CARD_FILE or (file.is_dir() and not file.is_symlink()):
            continue
        if file.is_file() and is_shared(name, file):
            shared[str(name)] = file
        else:
            others.append(str(name))
    return shared, tuple(others)
