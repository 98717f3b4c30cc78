"""``plan_upload``: what a folder would bring to the hub, found out without the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, Literal

from vlsi_cache.errors import CacheError, HubError, ModelError, StageError, first_line
from vlsi_cache.recipe.publicnames import public_name, public_settings, public_source
from vlsi_cache.sharing.cards import cache_card
from vlsi_cache.sharing.selecting import select_cache_files, select_student_files
from vlsi_cache.store import open_cache

__all__ = ["CARD", "Upload", "plan_upload", "validate_names"]

CARD: Final = "README.md"
_MANIFEST: Final = "manifest.json"
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "*.safetensors"
_CACHE_FILES: Final = ("shards/*", "processor/*", "processor.json", "parts/*")
_STUDENT_FILES: Final = ("*.safetensors", "*.safetensors.index.json", "exits/*")


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
    left_behind: tuple[str, ...] = ()
    """Files of the folder that do not go up, because they belong to neither student nor cache."""
    private_names: tuple[str, ...] = ()
    """Paths and addresses in the manifests of a cache, each after its field."""

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
        HubError: the hub takes no such name.
        StageError: the folder is neither.
        CacheError: the cache is incomplete or damaged.
        ModelError: the student has no weights.
    """
    _validate_repository(repository)
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


def _validate_repository(repository: str) -> None:
    """Refuse a name that the hub's own rules refuse, without asking it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise HubError(
            f"is not a name of a repository ({first_line(error)})",
            where=repository,
            expected="OWNER/NAME",
        ) from error


def validate_names(upload: Upload, path: Path) -> None:
    """Refuse to publish paths and addresses of this machine.

    Raises:
        HubError: the manifest of the cache has some.
    """
    if upload.private_names:
        raise HubError(
            "the manifest names paths, which whoever reads the repository would see",
            where=path,
            found=", ".join(upload.private_names),
            mend="Give --private for a private repository, or --publish-paths to publish them",
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
    files, others = select_cache_files(path, cache)
    return Upload(
        kind="dataset",
        files=files,
        card=card.read_text("utf-8") if card.is_file() else cache_card(cache, repository),
        replaced=_CACHE_FILES,
        left_behind=others,
        private_names=tuple(dict.fromkeys(_private_names(files))),
    )


def _private_names(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield what a cache's manifests name that a card would not. Digests forbid to change it."""
    for key, file in files.items():
        if key != _MANIFEST and not key.startswith("parts/"):
            continue
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        for name in ("teacher", "tokenizer"):
            own = manifest[name]["name"]
            if public_name(own) != own:
                yield f"{name}.name: {own}"
        for part in (manifest, *manifest.get("parts", ())):
            source = part["dataset"]["source"]
            if public_source(source) != source:
                yield f"dataset.source: {source}"
        for name, options in (
            ("teacher.loading", manifest["teacher"].get("loading")),
            ("processor_options", manifest.get("processor_options")),
        ):
            if public_settings(options) != options:
                yield f"{name}: {json.dumps(options, ensure_ascii=False)}"


def _student_upload(path: Path) -> Upload:
    files, others = select_student_files(path)
    _validate_no_links(path, others)
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
        files=files,
        card=card.read_text("utf-8"),
        replaced=_STUDENT_FILES,
        left_behind=others,
    )


def _validate_no_links(path: Path, others: tuple[str, ...]) -> None:
    """Refuse a student whose own files lie elsewhere: it would go up without them."""
    for name in others:
        if name == _CONFIG or ("/" not in name and fnmatch(name, _WEIGHTS)):
            raise ModelError(
                "is a link out of the student's folder, or a broken one",
                where=path / name,
                mend="Copy the folder with its files (cp -rL), and push the copy",
            )
