"""``plan_upload``: what a folder would bring to the hub, found out without the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vlsi_cache.errors import CacheError, ModelError, StageError
from vlsi_cache.sharing.cards import cache_card
from vlsi_cache.store import open_cache

__all__ = ["CARD", "Upload", "plan_upload"]

CARD: Final = "README.md"
_MANIFEST: Final = "manifest.json"
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "*.safetensors"
_CACHE_FILES: Final = ("shards/*", "processor/*", "parts/*")


@dataclass(frozen=True, slots=True)
class Upload:
    """What a push brings to a repository."""

    kind: Literal["model", "dataset"]
    """Type of the repository."""
    files: Mapping[str, Path]
    """Name in the repository → file, without the card."""
    card: str
    """The card, ``README.md`` of the repository."""
    replaced: tuple[str, ...]
    """Patterns of files that belong to what was there before, and are deleted if they are not
    here."""

    @property
    def sizes(self) -> dict[str, int]:
        """Name in the repository → bytes, the card included."""
        found = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted({**found, CARD: len(self.card.encode())}.items()))


def plan_upload(path: Path, repository: str) -> Upload:
    """Find what a folder would bring to the hub.

    Args:
        path: a finished student's folder, or a complete cache's.
        repository: owner and name on the hub, for the card.

    Raises:
        StageError: the folder is neither.
        CacheError: the cache is incomplete or damaged.
        ModelError: the student has no weights.
    """
    if (path / _MANIFEST).is_file():
        return _cache_upload(path, repository)
    if (path / _CONFIG).is_file():
        return _student_upload(path)
    inside = [name for name in ("student", "cache") if (path / name).is_dir()]
    raise StageError(
        "is neither a student's folder nor a cache" if path.is_dir() else "there is no such folder",
        where=path,
        expected=f"a folder with {_CONFIG} or {_MANIFEST}",
        mend=f"Give {' or '.join(str(path / name) for name in inside)}" if inside else None,
    )


def _cache_upload(path: Path, repository: str) -> Upload:
    cache = open_cache(path)
    if not (cache.is_complete and cache.is_indexed):
        raise CacheError(
            "cache is incomplete, and cannot be shared yet",
            where=path,
            mend="Run dump-teacher again with the same settings. It goes on where it stopped",
        )
    card = path / CARD
    return Upload(
        kind="dataset",
        files=_files(path),
        card=card.read_text("utf-8") if card.is_file() else cache_card(cache, repository),
        replaced=_CACHE_FILES,
    )


def _student_upload(path: Path) -> Upload:
    if not any(path.glob(_WEIGHTS)):
        raise ModelError(
            "has no weights",
            where=path,
            expected=_WEIGHTS,
            mend="Give the folder of a finished student",
        )
    card = path / CARD
    if not card.is_file():
        raise ModelError(
            "has no card",
            where=path,
            expected=CARD,
            mend="Write one that says where the model comes from. Students of train-student have "
            "theirs",
        )
    return Upload(
        kind="model",
        files=_files(path),
        card=card.read_text("utf-8"),
        replaced=("*.safetensors", "*.safetensors.index.json"),
    )


def _files(path: Path) -> dict[str, Path]:
    """Return the files of a folder, but for its card and what is hidden."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = file
    found.pop(CARD, None)
    return found
