"""What a cache folder holds: its manifest, its published shards, its bytes."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import FORMAT_VERSION, CacheManifest
from vlsi_cache.store.layout import MANIFEST_FILE, SHARDS_FOLDER, shard_path

__all__ = ["find_missing_shards", "measure_bytes", "read_manifest"]

_MEND = "Restore the file from a copy, or dump the teacher again into a new folder"


def read_manifest(path: Path) -> CacheManifest:
    """Read and validate the manifest of the cache at ``path``.

    Raises:
        CacheError: there is no cache, its manifest is missing or damaged, or its format is of a
            version that this library does not know.
    """
    file = path / MANIFEST_FILE
    if not path.is_dir():
        raise CacheError(
            "no cache here", where=path, mend="Check the path, or run dump-teacher to make it"
        )
    if not file.is_file():
        raise CacheError(
            f"folder is not a cache, or not a whole one: {MANIFEST_FILE} is missing",
            where=path,
            mend="Check the path, or dump the teacher into a new folder",
        )
    content = file.read_bytes()
    _prove_known_version(file, content)
    try:
        return CacheManifest.model_validate_json(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise CacheError(f"manifest is damaged: {faults}", where=file, mend=_MEND) from None


def find_missing_shards(path: Path, manifest: CacheManifest) -> list[int]:
    """Indices of the shards that are not published yet, ascending."""
    folder = path / SHARDS_FOLDER
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return [
        index for index in range(manifest.num_shards) if shard_path(path, index).name not in present
    ]


def measure_bytes(path: Path) -> int:
    """Bytes of the manifest and of every published shard.

    The processor's copy is not counted: it does not grow with the data.
    """
    files = [path / MANIFEST_FILE]
    for shard in (path / SHARDS_FOLDER).glob("*.zarr"):
        # a writer's temporary folder ends otherwise, and starts with a dot
        if re.fullmatch(r"\d+\.zarr", shard.name):
            files += [file for file in shard.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _prove_known_version(file: Path, content: bytes) -> None:
    # before anything else is read: another version may well have other fields
    try:
        tree = from_json(content)
    except ValueError as error:
        raise CacheError(f"manifest is not JSON ({error})", where=file, mend=_MEND) from None
    if not isinstance(tree, dict):
        raise CacheError(
            "manifest is damaged",
            where=file,
            expected="an object",
            found=type(tree).__name__,
            mend=_MEND,
        )
    version = tree.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CacheError(
            "cache format is of an unknown version",
            where=file,
            expected=FORMAT_VERSION,
            found=repr(version),
            mend="Use the version of vlsi-cache that wrote it",
        )
