"""What reading all rows of a dataset found, kept in a file for the next command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vlsi_cache.data.reading.forms.names import Repetitions
from vlsi_cache.data.reading.stamps import Stamps, stamps_of

__all__ = ["HOME_VARIABLE", "DataFindings", "DataMemory", "memory_folder"]

logger = logging.getLogger(__name__)

HOME_VARIABLE: Final = "VLSI_CACHE_HOME"
"""Environment variable of the folder in which commands remember things."""
_Tensors = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class DataFindings:
    """What reading all rows of a dataset found."""

    fingerprint: str
    """Hex SHA-256 over the keys of all conversations."""
    repetitions: Repetitions
    """Rows whose id another row has."""
    unread: Sequence[str]
    """Names of fields that hold something, and that nothing reads."""
    filled: Sequence[str]
    """Names of fields whose objects hold null."""


def memory_folder() -> Path:
    """Return the folder in which commands remember things. It can be removed at any time."""
    own = os.environ.get(HOME_VARIABLE)
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "vlsi-cache"


class DataMemory:
    """The file that keeps the findings of one dataset.

    They hold as long as every file that was read has the stamp that it had then, and the code that
    reads is the same.

    Args:
        settings: all that decides what is read, as a JSON value.
    """

    def __init__(self, settings: object) -> None:
        known = json.dumps([settings, _code_digest(), os.path.expanduser("~")])  # noqa: PTH111
        name = hashlib.sha256(known.encode()).hexdigest()[:32]
        self.path = memory_folder() / "data" / f"{name}.safetensors"

    def read(self) -> DataFindings | None:
        """Return the findings, if they are there and every file is as it was.

        A damaged file is ignored, and the log says so.
        """
        try:
            kept = load(self.path.read_bytes())
            findings, names, stamps = _unpacked(kept)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: what is remembered of the data is damaged (%s)", self.path, error)
            return None
        return findings if np.array_equal(stamps_of(names), stamps) else None

    def write(self, findings: DataFindings, names: Sequence[str], stamps: Stamps) -> None:
        """Keep findings. Without a writable folder, nothing is kept.

        Args:
            findings: what was found.
            names: every file that was read.
            stamps: the stamps that they had before they were read.
        """
        # Several commands may write at once, and each its own file.
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save(_packed(findings, names, stamps)))
            partial.replace(self.path)
        except OSError as error:
            logger.info("%s: what was read of the data is not remembered (%s)", self.path, error)
            with contextlib.suppress(OSError):
                partial.unlink()


def _packed(findings: DataFindings, names: Sequence[str], stamps: Stamps) -> _Tensors:
    repetitions = findings.repetitions
    told = {
        "fingerprint": findings.fingerprint,
        "unread": list(findings.unread),
        "filled": list(findings.filled),
    }
    tensors = {
        "findings": _bytes(json.dumps(told).encode()),
        "rows": repetitions.rows,
        "numbers": repetitions.numbers,
        "names": _bytes(b"\0".join(map(os.fsencode, names))),
        "stamps": stamps,
    }
    return {**tensors, "digest": _bytes(_digest(tensors))}


def _unpacked(tensors: _Tensors) -> tuple[DataFindings, list[str], Stamps]:
    digest = tensors.pop("digest")
    if digest.tobytes() != _digest(tensors):
        raise ValueError("its digest is of other content")
    told = json.loads(tensors["findings"].tobytes())
    findings = DataFindings(
        fingerprint=told["fingerprint"],
        repetitions=Repetitions(tensors["rows"], tensors["numbers"]),
        unread=told["unread"],
        filled=told["filled"],
    )
    names = [os.fsdecode(name) for name in tensors["names"].tobytes().split(b"\0")]
    return findings, names, tensors["stamps"]


def _bytes(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8)


def _digest(tensors: _Tensors) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype};".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.digest()


@cache
def _code_digest() -> str:
    """Hex SHA-256 of the code that reads data. After an update, rows may mean something else."""
    folder = Path(__file__).parents[1]
    return _digest_of(sorted(folder.rglob("*.py")))


def _digest_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
