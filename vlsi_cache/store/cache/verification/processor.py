"""Judging the processor's files: each one, its seal and the index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlsi_cache.errors import CacheError
from vlsi_cache.store.cache.folder import CacheFolder, read_processor_seal
from vlsi_cache.store.cache.hashing import hash_file
from vlsi_cache.store.cache.seals import CacheIndex, FileSeal, ProcessorSeal
from vlsi_cache.store.cache.verification.damage import Damage, advice_on, describe_damage
from vlsi_cache.store.cache.verification.examine import is_published
from vlsi_cache.store.places.keys import INDEX_FILE, PROCESSOR_FOLDER, PROCESSOR_SEAL_FILE

__all__ = ["judge_processor"]

_UNHASHED = "0" * 64
"""In place of the hash of a file whose size no seal states."""


def judge_processor(
    folder: CacheFolder, index: CacheIndex | None, files: Mapping[str, int]
) -> Iterator[Damage]:
    """Find what is wrong with the processor's files, their seal and its copy in the index.

    Of the three that speak of a file, two outvote one.

    Args:
        folder: the cache.
        index: its index, if there is one that belongs to the cache.
        files: every file of the cache.
    """
    seal, indexed = None, index.processor if index else None
    try:
        seal = read_processor_seal(folder.place)
    except CacheError as error:
        advice = advice_on(error, "processor")
        yield describe_damage((PROCESSOR_SEAL_FILE,), error.what, advice, folder)
    is_lost = seal is None and indexed is not None
    if is_lost and not is_published(folder.place, PROCESSOR_SEAL_FILE, files):
        yield describe_damage((PROCESSOR_SEAL_FILE,), "is missing", "processor", folder)
    if index is None or seal is None:
        yield from _judge_by_one(folder, indexed or seal, files, doubtful=index is None)
        return
    yield from _judge_by_two(folder, seal, indexed, files)


def _judge_by_one(
    folder: CacheFolder, known: ProcessorSeal | None, files: Mapping[str, int], *, doubtful: bool
) -> Iterator[Damage]:
    """Judge files of which only one speaks: the index, or a seal that may itself be at fault."""
    for name, wanted in known.files.items() if known else ():
        yield from _judge_file(folder, name, (wanted,), files, doubtful=doubtful)


def _judge_by_two(
    folder: CacheFolder,
    seal: ProcessorSeal,
    indexed: ProcessorSeal | None,
    files: Mapping[str, int],
) -> Iterator[Damage]:
    listed = indexed.files if indexed else {}
    unjudged = indexed is None and not seal.files
    index_differs, seal_differs = unjudged, False
    for name in sorted(seal.files.keys() | listed.keys()):
        voices = (seal.files.get(name), listed.get(name))
        if voices[0] == voices[1]:
            yield from _judge_file(folder, name, voices, files, doubtful=False)
            continue
        try:
            own = _seal_of(folder, name, voices, files)
        except CacheError as error:
            key = f"{PROCESSOR_FOLDER}/{name}"
            yield describe_damage((key,), error.what, advice_on(error, "processor"), folder)
            continue
        index_differs |= own != voices[1]
        seal_differs |= own != voices[0]
        if own not in voices:
            yield from _judge_file(folder, name, voices, files, doubtful=True)
    if index_differs:
        problem = "differs from the processor's seal"
        yield describe_damage((INDEX_FILE,), problem, "index", folder)
    if seal_differs:
        problem = "differs from the index"
        yield describe_damage((PROCESSOR_SEAL_FILE,), problem, "processor", folder)


def _judge_file(
    folder: CacheFolder,
    name: str,
    voices: tuple[FileSeal | None, ...],
    files: Mapping[str, int],
    *,
    doubtful: bool,
) -> Iterator[Damage]:
    key = f"{PROCESSOR_FOLDER}/{name}"
    try:
        own = _seal_of(folder, name, voices, files)
    except CacheError as error:
        yield describe_damage((key,), error.what, advice_on(error, "processor"), folder)
        return
    if own not in voices:
        problem = "is missing" if own is None else "differs from its seal"
        at_fault = (key, PROCESSOR_SEAL_FILE) if doubtful else (key,)
        yield describe_damage(at_fault, problem, "processor", folder)


def _seal_of(
    folder: CacheFolder, name: str, voices: tuple[FileSeal | None, ...], files: Mapping[str, int]
) -> FileSeal | None:
    """Return the seal that would be made of a file, or None if there is none."""
    key = f"{PROCESSOR_FOLDER}/{name}"
    if not is_published(folder.place, key, files):
        return None
    num_bytes = folder.place.size(key) or 0
    # a file of another size differs anyway, and hashing it may take for ever
    if num_bytes not in [voice.num_bytes for voice in voices if voice is not None]:
        return FileSeal(sha256=_UNHASHED, num_bytes=num_bytes)
    digest, num_bytes = hash_file(folder.place, key)
    return FileSeal(sha256=digest, num_bytes=num_bytes)
