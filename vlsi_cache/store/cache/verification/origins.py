"""Whether a merged cache's manifest says what the manifests of its parts say."""

from __future__ import annotations

from typing import Final

from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import CacheManifest, CachePart, find_kind_differences
from vlsi_cache.store.cache.documents import parse_document
from vlsi_cache.store.cache.folder import MANIFEST_BYTES, CacheFolder
from vlsi_cache.store.cache.seals import sha256_hex
from vlsi_cache.store.places.keys import MANIFEST_FILE, part_key

__all__ = ["find_contradiction", "read_copy", "validate_origins"]

_MEND: Final = f"Restore {MANIFEST_FILE} from a copy, or merge again into a new folder"


def validate_origins(folder: CacheFolder) -> None:
    """Refuse a merged manifest that contradicts its parts.

    An index names the manifest by its hash. Before there is one, only the parts speak of it.

    Raises:
        CacheError: it contradicts a part.
    """
    problem = find_contradiction(folder)
    if problem:
        raise CacheError(problem, where=folder.place.locate(MANIFEST_FILE), mend=_MEND)


def find_contradiction(folder: CacheFolder) -> str:
    """Return what a merged manifest says otherwise than a part's own manifest, or nothing."""
    for part_index, part in enumerate(folder.manifest.parts):
        content = read_copy(folder, part_index)
        if content is None or sha256_hex(content) != part.manifest_sha256:
            continue  # not published yet, or damaged: then it says nothing
        key = part_key(part_index)
        try:
            own = parse_document(content, CacheManifest, what="manifest", where=key, mend=_MEND)
        except CacheError as error:
            return f"names {key}, whose {error.what}"
        differing = [found.path for found in find_kind_differences(folder.manifest, own)]
        if _part_of(own, part.manifest_sha256) != part:
            differing.append(f"parts.{part_index}")
        if differing:
            return f"differs from {key} in {', '.join(differing)}"
    return ""


def read_copy(folder: CacheFolder, part_index: int) -> bytes | None:
    """Return the copy of a part's manifest. It is None if it is not there or not readable."""
    key = part_key(part_index)
    try:
        if folder.place.size(key) is None:
            return None
        return folder.place.read(key, limit=MANIFEST_BYTES)
    except CacheError:
        return None


def _part_of(own: CacheManifest, digest: str) -> CachePart:
    return CachePart(
        manifest_sha256=digest,
        dataset=own.dataset,
        samples_per_shard=own.samples_per_shard,
        batch_size=own.batch_size,
    )
