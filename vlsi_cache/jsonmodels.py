"""Base models of what is stored as JSON, and of what is reported as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["PathText", "ReportModel", "StoredModel", "parse_json"]


def _name_every_byte(path: Any) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


PathText = Annotated[str, BeforeValidator(_name_every_byte)]
"""A path in a report. A system's file names may be of any bytes, which JSON cannot hold."""


def parse_json(content: bytes) -> Any:
    """Parse JSON that has one meaning only.

    Raises:
        ValueError: the bytes are not JSON in UTF-8, or nested too deeply. Or a key stands twice in
            an object, or a number is not one that JSON knows.
    """
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in an object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


class StoredModel(BaseModel):
    """What a file holds. Unknown fields and other types are refused, not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class ReportModel(BaseModel):
    """What a command reports with ``--json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
