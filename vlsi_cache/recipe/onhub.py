"""Whether the Hugging Face hub has a model or data, asked once and before anything is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal

from vlsi_cache.errors import DataError, ModelError, first_line
from vlsi_cache.nearby import perhaps
from vlsi_cache.recipe.section import at_home

__all__ = ["validate_data_on_hub", "validate_downloadable", "validate_on_hub"]

Kind = Literal["model", "dataset"]
_FILES: Final = ("config.json", "adapter_config.json", "tokenizer_config.json")
"""Any of these in the hub's local cache shows that a model was downloaded."""
_HUB_SECONDS: Final = 10.0
_DATASETS: Final = "HF_DATASETS_CACHE"


def validate_downloadable(name: str, revision: str | None = None) -> None:
    """Refuse the name of a model that is neither in the hub's local cache nor on the hub.

    Raises:
        ModelError: as in ``validate_on_hub``.
    """
    # Imported here: most models are folders, and the import takes a part of a second.
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(name, file, revision=revision) for file in _FILES)
    if not any(isinstance(file, str) for file in files):
        validate_on_hub(name, revision)


def validate_on_hub(name: str, revision: str | None = None) -> None:
    """Refuse the name of a model that the hub does not have.

    Args:
        name: what is not a folder here.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there is no such model, or the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    try:
        # One request. transformers would ask for file after file, for minutes when offline.
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        # Any error, because the hub's client changed its HTTP library and its classes of errors.
        what, found, mend = _reason(name, "model", revision, error)
        raise ModelError(
            f"there is no such folder here, and {what}",
            where=name if revision is None else f"{name}, revision {revision}",
            found=found,
            mend=perhaps(at_home(name), mend, folder=True),
        ) from error


def validate_data_on_hub(name: str, revision: str | None = None) -> None:
    """Refuse the name of data that is neither in the local caches nor on the hub.

    Args:
        name: what is not a path here, with ``:config`` or without.
        revision: branch, tag or commit on the hub.

    Raises:
        DataError: there is no such data, or the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    repository = name.partition(":")[0]
    prepared = Path(os.environ.get(_DATASETS) or Path(HF_HOME) / "datasets")
    if _is_kept(repository, [prepared, Path(HF_HUB_CACHE)]):
        return
    try:
        # One request. datasets would ask eleven times, and print a line for each.
        HfApi().dataset_info(repository, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        what, found, mend = _reason(repository, "dataset", revision, error)
        raise DataError(
            f"there is no such file or folder here, and {what}",
            where=name if revision is None else f"{name}, revision {revision}",
            found=found,
            mend=perhaps(name, mend),
        ) from error


def _is_kept(repository: str, folders: list[Path]) -> bool:
    """Report whether one of the caches has a folder of this data. Each names it in its own way."""
    wanted = re.sub(r"\W|_", "", repository.lower())
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    plain = (re.sub(r"\W|_", "", name.lower().removeprefix("datasets--")) for name in names)
    return wanted in plain


def _reason(
    name: str, kind: Kind, revision: str | None, error: Exception
) -> tuple[str, str | None, str]:
    """Return what the hub's answer says, what it was, and how to mend it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    here = f"Give a path that is there ({Path.cwd()} has none of this name)"
    match error:
        case OfflineModeIsEnabled():
            what = "HF_HUB_OFFLINE forbids to ask the Hugging Face hub"
            return what, None, f"{here}, or unset HF_HUB_OFFLINE to download {name}"
        case GatedRepoError():
            what = f"the Hugging Face hub gives this {kind} to approved users alone"
            address = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
            return what, None, f"Ask for access on {address}, and run hf auth login"
        case RepositoryNotFoundError():
            what = f"the Hugging Face hub has no such {kind}, or it is private"
            return what, None, f"{here}, or check the name. A private one needs hf auth login"
        case RevisionNotFoundError():
            what = f"the {kind} on the Hugging Face hub has no such revision"
            return what, revision, "Give a branch, a tag or a commit of it"
    what = "the Hugging Face hub cannot be reached"
    return what, first_line(error), f"{here}, or check the network"
