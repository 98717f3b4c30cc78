"""JSON documents of a cache, parsed into their models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from vlsi_cache.contents import recognise
from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import FORMAT_VERSION

__all__ = ["parse_canonical", "parse_document", "render_document", "validate_known_version"]

M = TypeVar("M", bound=BaseModel)


def render_document(model: BaseModel) -> bytes:
    """Return the bytes of a model's file. The same values give the same bytes."""
    return model.model_dump_json(indent=1).encode() + b"\n"


def parse_document(content: bytes, model: type[M], *, what: str, where: str, mend: str) -> M:
    """Parse a file's bytes as its model.

    Args:
        content: Bytes of the file.
        model: Model of the document.
        what: Name of the document, for the error.
        where: Address of the file.
        mend: How to mend the file if it is damaged.

    Raises:
        CacheError: the bytes do not fit. The error names every problem with its path.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        _validate_not_lost(content, what=what, where=where, mend=mend)
        problems = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or what}: {fault['msg']}"
            for fault in error.errors(include_url=False)[:20]
        )
        raise CacheError(f"{what} is damaged: {problems}", where=where, mend=mend) from None


def parse_canonical(content: bytes, model: type[M], *, what: str, where: str, mend: str) -> M:
    """Parse a file's bytes as its model, and refuse any other bytes of the same values.

    For files that no hash covers. Even an added blank is refused.

    Raises:
        CacheError: the bytes do not fit, or are written in another way.
    """
    parsed = parse_document(content, model, what=what, where=where, mend=mend)
    if render_document(parsed) != content:
        raise CacheError(f"{what} is damaged: it is written in another way", where=where, mend=mend)
    return parsed


def validate_known_version(
    content: bytes,
    *,
    what: str,
    where: str,
    mend: str,
    parse: Callable[[bytes], Any] = from_json,
) -> None:
    """Refuse an unknown version before anything else is read. It may have other fields.

    Args:
        content: Bytes of the file.
        what: Name of the document, for the error.
        where: Address of the file.
        mend: How to mend the file if it is damaged.
        parse: Parser of JSON. The slower ``parse_json`` refuses what has two meanings.

    Raises:
        CacheError: the content is not a JSON object, or its version is unknown.
    """
    try:
        tree = parse(content)
    except ValueError as error:
        _validate_not_lost(content, what=what, where=where, mend=mend)
        raise CacheError(f"{what} is not JSON ({error})", where=where, mend=mend) from None
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise CacheError(
            f"{what} is damaged", where=where, expected="an object", found=kind, mend=mend
        )
    version = tree.get("format_version")
    if version is None:  # such as an answer of a server
        _validate_not_lost(content, what=what, where=where, mend=mend)
    _validate_version(version, where)


def _validate_version(version: object, where: str) -> None:
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise CacheError(
            "cache format is of an unknown version",
            where=where,
            expected=", ".join(map(str, range(1, FORMAT_VERSION))) + f" or {FORMAT_VERSION}",
            found=repr(version)[:40],
            mend="Use the version of vlsi-cache that wrote it",
        )


def _validate_not_lost(content: bytes, *, what: str, where: str, mend: str) -> None:
    """Refuse what was saved in a document's place, such as a pointer of git-lfs."""
    found = recognise(content, len(content))
    if found.kind in ("empty", "not the file"):
        raise CacheError(
            f"{what} is {found.words}", where=where, mend=f"{found.mend}. {mend}"
        ) from None
