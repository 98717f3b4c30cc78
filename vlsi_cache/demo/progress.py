"""What a demo remembers between its runs: its size, its time and its scores."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from vlsi_cache.demo.plan import Demo
from vlsi_cache.errors import StageError
from vlsi_cache.files import write_whole

__all__ = ["Clock", "remember", "remembered", "validate_same_demo"]


def remembered(path: Path, default: Any) -> Any:
    """Read what an earlier run wrote, or return the default of a first run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def remember(path: Path, value: Any) -> None:
    """Write a value for later runs."""
    write_whole(path, json.dumps(value, indent=2))


def validate_same_demo(demo: Demo) -> None:
    """Validate that the folder is new, or holds a demo of the same size and seed.

    Raises:
        StageError: The folder holds a demo of another size or seed.
    """
    path = demo.out / "demo-size.txt"
    text = f"{demo.size!r} seed {demo.seed}"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise StageError(
            "this folder holds a demo of another size or seed",
            where=demo.out,
            mend="Choose another --out, or delete this folder",
        )
    path.write_text(text, encoding="utf-8")


class Clock:
    """Wall and CPU seconds, summed over the runs that a resumed demo takes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = _seconds()
        self._earlier: dict[str, float] = remembered(path, dict.fromkeys(self._started, 0.0))

    def stop(self) -> dict[str, float]:
        """Return the seconds of all runs, and remember them."""
        found = {
            name: self._earlier[name] + seconds - self._started[name]
            for name, seconds in _seconds().items()
        }
        remember(self._path, found)
        return found


def _seconds() -> dict[str, float]:
    """Return the time on a clock, and the CPU time of this process and its finished children."""
    return {"seconds": time.monotonic(), "cpu_seconds": sum(os.times()[:4])}
