"""``HubPlace``: a repository on the Hugging Face hub, read as ``hf://datasets/OWNER/NAME``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from vlsi_cache.errors import CacheAccessError, CacheError, first_line
from vlsi_cache.store.places.place import Place

__all__ = ["SCHEME", "HubPlace", "open_hub"]

SCHEME: Final = "hf"
_FORM: Final = "Write it as hf://datasets/OWNER/NAME, with @REVISION and /FOLDER where they matter"
_MEND_WRITE: Final = (
    "Write the cache to a folder or an object store, then run vlsi-cache push FOLDER OWNER/NAME"
)
_MEND_ACCESS: Final = (
    "Check owner, name and revision. For a private or gated repository, run hf auth login or set "
    "HF_TOKEN"
)
_MEND_NETWORK: Final = "Check the network and HF_ENDPOINT, then run the same command again"


@final
@dataclass(frozen=True, slots=True)
class HubPlace(Place):
    """A folder of a repository at one commit. It is read in parts, and never written.

    Token and endpoint are those of ``huggingface_hub`` (``HF_TOKEN``, ``HF_ENDPOINT`` …).
    """

    root: str
    """Path of the folder in ``HfFileSystem``, with its commit."""

    def locate(self, key: str = "") -> str:
        """Return the URL."""
        return f"{SCHEME}://{self.root}/{key}".rstrip("/")

    def validate_usable(self) -> None:
        """Refuse to begin a cache: a repository changes by commits, and not file by file."""
        raise self._read_only()

    def list_files(self, folder: str = "") -> dict[str, int]:
        """List the files, page by page."""
        start = f"{self.root}/{folder}".rstrip("/")
        with self._errors_named(folder):
            entries = _files().find(start, detail=True)
        found = {
            name.removeprefix(f"{self.root}/"): int(entry["size"])
            for name, entry in entries.items()
        }
        hidden = {key for key in found if any(part.startswith(".") for part in key.split("/"))}
        return {key: found[key] for key in sorted(found.keys() - hidden)}

    def size(self, key: str) -> int | None:
        """Return the bytes of a file."""
        with self._errors_named(key):
            try:
                entry = _files().info(f"{self.root}/{key}")
            except FileNotFoundError:
                return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a file by one request."""
        if start >= stop:
            return b""
        with (
            self._errors_named(key),
            _files().open(f"{self.root}/{key}", "rb", cache_type="none") as file,
        ):
            if start >= file.size:
                return b""
            file.seek(start)
            return bytes(file.read(min(stop, file.size) - start))

    def publish(self, key: str, content: bytes) -> bool:
        """Refuse to write."""
        raise self._read_only()

    def clear_leftovers(self, folders: Sequence[str]) -> None:
        """Do nothing. Nothing is written here."""

    def _read_only(self) -> CacheError:
        return CacheError(
            "a cache on the hub can be read and not written", where=self.locate(), mend=_MEND_WRITE
        )

    @contextlib.contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        with _plain_errors(self.locate(key)):
            yield


def open_hub(url: str) -> HubPlace:
    """Return the place at a URL of the hub, at the commit that its revision names now.

    Raises:
        CacheError: the address is no repository's, or there is none that can be read.
    """
    return HubPlace(_at_commit(url.rstrip("/")))


def _at_commit(url: str) -> str:
    """Return the path of a folder with its commit, so that later commits change nothing."""
    with _plain_errors(url):
        try:
            files = _files()
            found: Any = files.resolve_path(url)
        except (ValueError, NotImplementedError) as error:
            raise CacheError(
                f"address on the hub cannot be used ({first_line(error)})", where=url, mend=_FORM
            ) from error
        if not hasattr(found, "repo_id"):
            raise CacheError("a bucket has no commits to read a cache at", where=url, mend=_FORM)
        info = files._api.repo_info(  # noqa: SLF001 (the file system's own endpoint and token)
            found.repo_id, repo_type=found.repo_type, revision=found.revision
        )
    kind = "" if found.repo_type == "model" else f"{found.repo_type}s/"
    return f"{kind}{found.repo_id}@{info.sha}/{found.path_in_repo}".rstrip("/")


def _files() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()  # the same one for all that ask in this process


@contextlib.contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """Turn errors of the hub's client into errors of the cache."""
    from huggingface_hub.errors import HfHubHTTPError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library, which versions choose
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        is_repository = isinstance(cause, HfHubHTTPError) or isinstance(error, HfHubHTTPError)
        what = "no such repository can be read" if is_repository else "file is missing"
        raise CacheError(what, where=where, mend=_MEND_ACCESS) from error
    except HfHubHTTPError as error:
        denied = error.response is not None and error.response.status_code in (401, 403)
        raise CacheAccessError(
            f"the hub {'denies access' if denied else 'fails'} ({first_line(error)})",
            where=where,
            mend=_MEND_ACCESS if denied else _MEND_NETWORK,
        ) from error
    except (transport, OSError) as error:
        raise CacheAccessError(
            f"the hub cannot be reached ({first_line(error)})", where=where, mend=_MEND_NETWORK
        ) from error
