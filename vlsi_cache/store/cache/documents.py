"""JSON documents of a cache: read with bounds, and validated into their models."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import FORMAT_VERSION

__all__ = ["parse_canonical", "parse_document", "prove_known_version", "render_document"]

M = TypeVar("M", bound=BaseModel)


def render_document(model: BaseModel) -> bytes:
    """A model as the bytes of its file: the same for the same values."""
    return model.model_dump_json(indent=1).encode() + b"\n"


def parse_document(content: bytes, model: type[M], *, what: str, where: str, mend: str) -> M:
    """A file's bytes as its model.

    Args:
        content: the bytes.
        model: what they must be.
        what: name of the document, for the error.
        where: address of the file.
        mend: how to mend it if it is damaged.

    Raises:
        CacheError: they are something else; every fault is told with its path.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or what}: {fault['msg']}"
            for fault in error.errors(include_url=False)[:20]
        )
        raise CacheError(f"{what} is damaged: {faults}", where=where, mend=mend) from None


def parse_canonical(content: bytes, model: type[M], *, what: str, where: str, mend: str) -> M:
    """A file's bytes as its model, if they are the very bytes that the model is written as.

    For files that nothing else vouches for: not even a blank may be added to them.

    Raises:
        CacheError: they are something else.
    """
    parsed = parse_document(content, model, what=what, where=where, mend=mend)
    if render_document(parsed) != content:
        raise CacheError(f"{what} is damaged: it was written otherwise", where=where, mend=mend)
    return parsed


def prove_known_version(content: bytes, *, what: str, where: str, mend: str) -> None:
    """Refuse another version before anything else is read: it may well have other fields.

    Raises:
        CacheError: the content is no JSON object, or of a version that is not known.
    """
    try:
        tree: Any = from_json(content)
    except ValueError as error:
        raise CacheError(f"{what} is not JSON ({error})", where=where, mend=mend) from None
    if not isinstance(tree, dict):
        raise CacheError(
            f"{what} is damaged",
            where=where,
            expected="an object",
            found=type(tree).__name__,
            mend=mend,
        )
    version = tree.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CacheError(
            "cache format is of an unknown version",
            where=where,
            expected=FORMAT_VERSION,
            found=repr(version)[:40],
            mend="Use the version of vlsi-cache that wrote it",
        )
