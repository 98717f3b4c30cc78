"""Names for strangers: no path of this machine, no address of a private store, no credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vlsi_cache.recipe.existing import DATA_SUFFIXES
from vlsi_cache.recipe.modelnames import is_there

__all__ = ["hub_name", "public_name", "public_settings", "public_source"]

_OPEN: Final = ("hf://", "https://huggingface.co/")
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_FORM: Final = re.compile(rf"(?P<repository>({_PART}/)?{_PART})(?P<subset>:[A-Za-z0-9._-]+)?")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_WEIGHT: Final = re.compile(r" × [0-9.e+-]+$")
_SECRET: Final = re.compile(
    r"(.*_)?(secret|password|passwd|credentials?|(api|access|secret)_key)|((hf|auth|access)_)?token",
    re.IGNORECASE,
)


def public_name(name: str) -> str:
    """Return a name on the hub as it is, and the last part of a path or of an address.

    An address loses what may be secret: its user, its password and its query.

    Args:
        name: a name on the hub, a path or an address.
    """
    if "://" in name:
        return _public_address(name)
    if _is_on_hub(name):
        return name
    parts = [part for part in re.split(r"[/\\]", name) if part]
    return parts[-1] if parts else name


def public_source(source: str) -> str:
    """Return the text that names all data, each of its names made public.

    Args:
        source: names, with their weights, as a manifest has them.
    """
    items = source.split(", ")
    if not all(_stands_alone(_WEIGHT.sub("", item)) for item in items):
        items = [source]  # the comma belongs to a path, whose folders must not show
    return ", ".join(map(_public_item, items))


def hub_name(name: str | None) -> str | None:
    """Return a name if it is one on the hub, without a configuration's name."""
    if name is None or not _is_on_hub(name):
        return None
    return name.partition(":")[0]


def public_settings(value: Any) -> Any:
    """Return JSON values with public names in place of all paths, and without secrets."""
    if isinstance(value, Mapping):
        return {
            name: public_settings(part)
            for name, part in value.items()
            if not (isinstance(part, str) and _SECRET.fullmatch(str(name)))
        }
    if isinstance(value, list | tuple):
        return [public_settings(part) for part in value]
    return public_name(value) if isinstance(value, str) else value


def _public_address(address: str) -> str:
    scheme, _, rest = address.partition("://")
    rest = re.split(r"[?#]", rest)[0]
    authority, slash, path = rest.partition("/")
    shown = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    if shown.startswith(_OPEN):
        return shown
    # a password may have slashes of its own, so what is before the @ goes from any part
    last = rest.rstrip("/").rpartition("/")[2]
    return last.rpartition("@")[2] or scheme


def _public_item(item: str) -> str:
    """Return one source: its names, which spaces part, and its weight."""
    weight = _WEIGHT.search(item)
    names = _WEIGHT.sub("", item)
    several = names.split(" ")
    if not all(_stands_alone(name) for name in several):
        several = [names]
    return " ".join(map(public_name, several)) + (weight[0] if weight else "")


def _stands_alone(name: str) -> bool:
    """Report whether a name is whole beyond doubt, and not a piece of a path with commas."""
    return "://" in name or name.lower().endswith(DATA_SUFFIXES) or _is_on_hub(name)


def _is_on_hub(name: str) -> bool:
    """Report whether a name has the form of one on the hub, and nothing here has that name."""
    found = _HUB_FORM.fullmatch(name)
    if not found or _DRIVE.match(name):
        return False
    repository = found["repository"]
    if repository.lower().endswith(DATA_SUFFIXES) or "--" in repository or ".." in repository:
        return False
    path = Path(repository)
    return not is_there(path) and ("/" not in repository or not is_there(path.parent))
