"""``push_to_hub``: one commit with all files and the card, or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vlsi_cache.errors import HubError, counted, first_line
from vlsi_cache.phases import phase
from vlsi_cache.sharing.upload import CARD, Upload, plan_upload, validate_names

__all__ = ["push_to_hub"]

logger = logging.getLogger(__name__)


def push_to_hub(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    publish_paths: bool = False,
) -> str:
    """Upload a finished student, or a complete cache, with its card.

    The repository is made if there is none: a model's for a student, a dataset's for a cache.

    Args:
        path: folder of the student or of the cache.
        repository: owner and name on the hub.
        private: whether a repository that is made is private.
        revision: branch to commit to; the main one by default.
        message: message of the commit.
        publish_paths: whether a cache's manifest may show paths of this machine to anybody.

    Returns:
        Address of the commit.

    Raises:
        VlsiCacheError: the folder cannot be shared, or the hub refuses.
    """
    upload = plan_upload(Path(path), repository)
    if not private and not publish_paths:
        validate_names(upload, Path(path))
    if upload.left_behind:
        logger.warning("%s: these stay behind: %s", path, ", ".join(upload.left_behind))
    from huggingface_hub import HfApi

    api = HfApi(library_name="vlsi-cache")
    with _plain_errors(repository):
        made = api.create_repo(repository, repo_type=upload.kind, private=private, exist_ok=True)
        if upload.private_names and not publish_paths and not _is_private(api, made, upload):
            validate_names(upload, Path(path))  # it was there, and public
        return _commit(api, made.repo_id, upload, revision, message)


def _is_private(api: Any, made: Any, upload: Upload) -> bool:
    return bool(api.repo_info(made.repo_id, repo_type=upload.kind).private)


def _commit(api: Any, name: str, upload: Upload, revision: str | None, message: str | None) -> str:
    """Bring everything by one commit, and return its address."""
    size = f"{counted(len(upload.sizes), 'file')}, {sum(upload.sizes.values()):,} bytes"
    with phase(f"uploading {size}, to {name}", patient=True):
        there = api.list_repo_files(name, repo_type=upload.kind, revision=revision)
        commit = api.create_commit(
            name,
            _operations(upload, there),
            commit_message=message or f"Upload a {_word(upload)} with vlsi-cache",
            repo_type=upload.kind,
            revision=revision,
        )
    return str(commit.commit_url)


def _operations(upload: Upload, there: list[str]) -> list[Any]:
    """Return one commit's operations: stale files go, then all files and the card come."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    deleted = [CommitOperationDelete(stale) for stale in _stale(upload, there)]
    added = [CommitOperationAdd(key, file) for key, file in upload.files.items()]
    return [*deleted, CommitOperationAdd(CARD, upload.card.encode()), *added]


def _word(upload: Upload) -> str:
    return "student" if upload.kind == "model" else "cache"


def _stale(upload: Upload, there: list[str]) -> list[str]:
    """Return the files of a former upload that this one does not bring."""
    return [
        name
        for name in there
        if name not in upload.files and any(fnmatch(name, one) for one in upload.replaced)
    ]


@contextlib.contextmanager
def _plain_errors(repository: str) -> Iterator[None]:
    """Turn errors of the hub's client into one that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library, which versions choose
    try:
        yield
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        denied = status in (401, 403)
        raise HubError(
            f"the hub {'denies access' if denied else 'refuses'} ({first_line(error)})",
            where=repository,
            mend="Run hf auth login, or set HF_TOKEN to a token that may write there"
            if denied
            else "Check owner, name and branch",
        ) from error
    except (transport, OSError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise HubError(
            f"the hub cannot be reached ({first_line(cause)})",
            where=repository,
            mend="Check the network and HF_ENDPOINT, then run the same command again",
        ) from error
    except ValueError as error:  # the hub's answer, or a card that it does not take
        raise HubError(f"the hub refuses ({first_line(error)})", where=repository) from error
