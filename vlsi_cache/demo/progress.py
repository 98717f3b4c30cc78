"""What a demo remembers between its runs: its size, its time and its scores."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vlsi_cache.demo.plan import Demo
from vlsi_cache.errors import StageError

__all__ = ["Clock", "remember", "remembered", "validate_same_size"]


def remembered(path: Path, default: Any) -> Any:
    """Read what an earlier run wrote, or return the default of a first run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def remember(path: Path, value: Any) -> None:
    """Write a value for later runs."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def validate_same_size(demo: Demo) -> None:
    """Validate that the folder is new, or holds a demo of the same size.

    Raises:
        StageError: The folder holds a demo of another size.
    """
    path = demo.out / "demo-size.txt"
    text = repr(demo.size)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise StageError(
            "this folder holds a demo of another size",
            where=demo.out,
            mend="Choose another --out, or delete this folder",
        )
    path.write_text(text, encoding="utf-8")


class Clock:
    """Wall seconds, summed over the runs that a resumed demo takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()
        self.earlier = float(remembered(path, 0.0))

    def stop(self) -> float:
        """Return the seconds of all runs, and remember them."""
        seconds = self.earlier + time.monotonic() - self.started
        remember(self.path, seconds)
        return seconds
