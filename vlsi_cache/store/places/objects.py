"""``ObjectPlace``: a prefix of an object store, such as ``s3://bucket/caches/one``."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, final
from urllib.parse import unquote, urlsplit

from vlsi_cache.errors import CacheAccessError, CacheError
from vlsi_cache.store.places.place import Place

__all__ = ["ObjectPlace"]

_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CLIENT: Final = {
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(minutes=10),  # for one request: a large shard over a slow line
}
_RETRIES: Final = {
    "max_retries": 6,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
}
_PUT_TRIES: Final = 5
_PUT_PAUSE_SECONDS: Final = 0.2
_COPIED: Final = ("s3", "s3a", "gs")
"""Schemes whose stores copy an object themselves, and refuse to replace one."""
_MEND: Final = (
    "Check address, endpoint and network, then run the same command again: what is published is "
    "whole, and it goes on from there"
)
_MEND_CREDENTIALS: Final = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_REGION and AWS_ENDPOINT_URL where they "
    "matter), or what your store takes in their place, and check what they permit"
)
_MACHINES_OWN: Final = (
    "/latest/api/token",
    "/latest/meta-data",
    "metadata.google",
    "/metadata/identity/",
)


@final
@dataclass(frozen=True, slots=True)
class ObjectPlace(Place):
    """A prefix of a bucket. An object is put in one request, which never replaces another.

    Credentials, region and endpoint come from the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL`` …), as obstore reads it. Requests that fail are repeated for a while.
    """

    url: str
    """Scheme, bucket and prefix."""

    def locate(self, key: str = "") -> str:
        """Return the URL."""
        return f"{self.url.rstrip('/')}/{key}".rstrip("/")

    def validate_usable(self) -> None:
        """Refuse a bucket that cannot be listed. Nothing else can be in the way of a prefix."""
        with self._errors_named(""):
            next(iter(self._store().list(chunk_size=1)), None)

    def list_files(self, folder: str = "") -> dict[str, int]:
        """List the objects, page by page."""
        found = {}
        with self._errors_named(folder):
            for page in self._store().list(prefix=folder or None):
                for entry in page:
                    key = str(entry["path"])
                    if not any(part.startswith(".") for part in key.split("/")):
                        found[key] = int(entry["size"])
        return dict(sorted(found.items()))

    def size(self, key: str) -> int | None:
        """Return the bytes of an object."""
        with self._errors_named(key):
            try:
                return int(self._store().head(key)["size"])
            except FileNotFoundError:
                return None

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object by one request."""
        if start >= stop:
            return b""
        with self._errors_named(key):
            try:
                return bytes(self._store().get_range(key, start=start, end=stop))
            except FileNotFoundError:
                raise
            except Exception as error:
                size = self.size(key) if _beyond_the_end(error) else None
                if size is None or size > start:
                    raise
                return b""

    def publish(self, key: str, content: bytes) -> bool:
        """Put the object by one conditional request (``If-None-Match: *``)."""
        from obstore.exceptions import AlreadyExistsError

        with self._errors_named(key):
            for attempt in range(_PUT_TRIES):
                try:
                    self._store().put(key, content, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    # perhaps our own, if the answer to an earlier try was lost; sealing will show
                    return False
                except Exception as error:
                    # obstore does not repeat a put whose connection was reset, because it may have
                    # arrived. The condition makes a second one harmless.
                    if attempt == _PUT_TRIES - 1 or "HTTP error" not in str(error):
                        raise
                    time.sleep(_PUT_PAUSE_SECONDS * 2**attempt)
                else:
                    return True
        raise AssertionError  # the last try returns or raises

    def adopt(self, key: str, source: Place, source_key: str) -> bool:
        """Let the store copy the object, inside one bucket."""
        if not isinstance(source, ObjectPlace):
            return False
        (root, own), (other_root, other) = _split(self.url), _split(source.url)
        if root != other_root or urlsplit(root).scheme not in _COPIED:
            return False
        from obstore.exceptions import AlreadyExistsError, BaseError

        with self._errors_named(key):
            try:
                self._store(root).copy(f"{other}{source_key}", f"{own}{key}", overwrite=False)
            except AlreadyExistsError:
                return True
            except BaseError:
                # some servers cannot copy; any other error comes again with the bytes
                return False
        return True

    def clear_leftovers(self, folders: Sequence[str]) -> None:
        """Do nothing. An upload that is cut leaves no object."""

    def _store(self, url: str | None = None) -> Any:
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        if _process_of_threads() != os.getpid():
            raise CacheError(
                "object stores cannot be read in a process forked from one that has read them",
                where=self.url,
                mend="Set workers: 0 for this stage, or keep the cache in a folder",
            )
        return _open_store(url or self.url, endpoint)

    @contextlib.contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        """Turn errors of the store into errors of the cache."""
        try:
            yield
        except CacheError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise CacheError("file is missing", where=self.locate(key)) from error
            raise self._no_bucket() from error
        except Exception as error:  # the store's own tree of errors, and some of Python's
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            what, mend = _cause(error)
            raise CacheAccessError(
                f"{what} ({_first_words(error)})", where=self.locate(key), mend=mend
            ) from error

    def _no_bucket(self) -> CacheError:
        return CacheError(
            "bucket does not exist",
            where=self.url,
            mend="Make the bucket, or check its name and the endpoint",
        )


@functools.cache
def _process_of_threads() -> int:
    """Return the process that asked first.

    A forked process inherits the answer but not the client's threads, and would wait for ever.
    """
    return os.getpid()


@functools.cache
def _open_store(url: str, endpoint: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise CacheError(
            "object stores need the package obstore",
            where=url,
            mend="Install vlsi-cache[s3]",
        ) from None
    # an endpoint is named without TLS on purpose
    options: Any = {**_CLIENT, "allow_http": endpoint.startswith("http://")}
    retries: Any = _RETRIES
    # S3 has no conditional copy, but an upload of one part has a condition
    config: Any = {"aws_copy_if_not_exists": "multipart"} if url.startswith("s3") else None
    try:
        address = _literal(url)
        return from_url(address, config=config, client_options=options, retry_config=retries)
    except Exception as error:
        raise CacheError(
            f"address of an object store cannot be used ({_first_words(error)})",
            where=url,
            mend="Write it as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX",
        ) from error


def _literal(url: str) -> str:
    """Return a URL in which `#` and `?` belong to the prefix. They may stand in an object's key."""
    return url.replace("#", "%23").replace("?", "%3F")


def _split(url: str) -> tuple[str, str]:
    """Return the URL of the bucket, and the prefix with a slash at its end, as obstore does."""
    parts = urlsplit(_literal(url))
    prefix = unquote(parts.path).strip("/")
    return f"{parts.scheme}://{parts.netloc}", f"{prefix}/" if prefix else ""


def _cause(error: Exception) -> tuple[str, str]:
    """Return what is wrong in a few words, and what to do."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    # without credentials in the environment, a machine in the cloud is asked for its own
    if any(address in str(error) for address in _MACHINES_OWN):
        return "no credentials for the object store", _MEND_CREDENTIALS
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access to the object store is denied", _MEND_CREDENTIALS
    if "HTTP error" in str(error):
        return "object store cannot be reached", _MEND
    return "object store fails", _MEND


def _beyond_the_end(error: Exception) -> bool:
    return "416" in str(error)


def _first_words(error: Exception) -> str:
    """Return the first line of an error, without the store's markup."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.partition(': <?xml')[0][:300].strip()}"
