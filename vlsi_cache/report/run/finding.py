"""What a folder is: a cache, a run, or neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from vlsi_cache.errors import CacheError, StageError, printable
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.nearby import nothing_at, perhaps
from vlsi_cache.stagefiles import STAGE_FILE
from vlsi_cache.store import is_begun

__all__ = ["PlaceKind", "find_stages", "kind_of"]

PlaceKind = Literal["cache", "run"]

_ORDER: Final = ("teacher-verbalizers", "student-verbalizers", "interaction", "finetuning")
_MANIFEST: Final = "manifest.json"
_MODEL: Final = "a model"
_NAMED: Final = 6
"""Files that an error names."""


def kind_of(path: str | Path) -> PlaceKind:
    """Return what a folder or URL holds. A URL is a cache's.

    Raises:
        StageError: it is neither a cache nor a run.
        CacheError: there is nothing.
    """
    if "://" in str(path) or is_begun(path):
        return "cache"
    folder = Path(path)
    if find_stages(folder) or is_begun(folder / "cache"):
        return "run"
    mend = "Give the folder of a cache, or the output folder of a run"
    if not folder.exists():
        raise CacheError(
            "no cache and no run here",
            where=path,
            found=nothing_at(folder),
            mend=perhaps(folder, mend, folder=True),
        )
    above = next((parent for parent in folder.resolve().parents if _is_near(folder, parent)), None)
    raise StageError(
        "neither a cache nor a run",
        where=path,
        expected=f"{_MANIFEST} of a cache, or a stage's folder with {STAGE_FILE}",
        found=_contents(folder),
        mend=_mend(folder, above, mend),
    )


def _mend(path: Path, above: Path | None, otherwise: str) -> str:
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return f"A recipe is given by --recipe {path}"
    return otherwise if above is None else f"{above} is one: give that path"


def find_stages(folder: Path) -> dict[str, Path]:
    """Find name → folder of the stages in a run's folder, or of the one that it is itself."""
    if (folder / STAGE_FILE).is_file():
        return {folder.resolve().name: folder}
    found = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{STAGE_FILE}"))}
    known = [name for name in _ORDER if name in found]
    return {name: found[name] for name in dict.fromkeys([*known, *found])}


def _is_near(folder: Path, parent: Path) -> bool:
    """Report whether a run lies at most two folders above, as a run's student does."""
    near = folder.resolve().parents[:2]
    return parent in near and bool(find_stages(parent))


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "a file"
    if find_folder_contents(folder).words == _MODEL:
        return _MODEL
    names = list(_names(folder))
    if not names:
        return "an empty folder"
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(printable(name, 60) for name in names[:_NAMED])}{more}"


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        yield f"{path.name}/" if path.is_dir() else path.name
