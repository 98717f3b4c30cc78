"""``Section``, the base of the recipe's sections, and the types of its fields."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "CacheAddress",
    "Contradiction",
    "NonNegative",
    "Positive",
    "Section",
    "UserName",
    "UserPath",
    "at_home",
]


def at_home(name: str) -> str:
    """Return a name with the user's home in place of ``~``."""
    # Path's own expanduser raises for a user that is not there.
    return os.path.expanduser(name)  # noqa: PTH111


def _path_unless_url(value: object) -> object:
    is_path = isinstance(value, str) and "://" not in value
    return Path(at_home(str(value))) if is_path else value


def _validate_no_boolean(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise PydanticCustomError("a_boolean", "should be a whole number")
    return value


Positive = Annotated[int, Field(gt=0), BeforeValidator(_validate_no_boolean)]
NonNegative = Annotated[int, Field(ge=0), BeforeValidator(_validate_no_boolean)]
UserPath = Annotated[Path, AfterValidator(lambda path: Path(at_home(str(path))))]
"""A path. ``~`` is the user's home."""
CacheAddress = Annotated[Path | str, BeforeValidator(_path_unless_url)]
"""A path, or the URL of an object store, which a ``Path`` would change."""
UserName = Annotated[str, AfterValidator(at_home)]
"""A folder or a hub name. ``~`` is the user's home."""
Contradiction = tuple[str, str]
"""The path of a field, and the problem that it has with other fields."""


class Section(BaseModel):
    """Base of all sections: frozen, without unknown keys, with a docstring under each field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
