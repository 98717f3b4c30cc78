"""A stage's folder: what it was started with, and whether it finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsi_cache.errors import StageError
from vlsi_cache.manifest import differences
from vlsi_cache.training.processes import on_main_process, wait_for_everyone

__all__ = ["StageFolder"]

_FILE = "stage.json"


class StageFolder:
    """One stage's folder, which resumes only what it began.

    Args:
        path: the folder.
        settings: everything the stage's result depends on, as JSON values.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))

    def begin(self, result: Path) -> bool:
        """Enter the folder.

        Args:
            result: last file of the stage's result to be written.

        Returns:
            Whether there is anything left to do.

        Raises:
            StageError: the folder holds the same stage, made with other settings.
        """
        record = self._read()
        wait_for_everyone()
        if record is None:
            on_main_process(lambda: self._write(finished=False))
            return True
        found = differences(record.get("settings", {}), self.settings)
        if found:
            raise StageError(
                "this folder holds a stage made with other settings: " + "; ".join(found),
                where=self.path,
                mend="Go back to those settings, or choose another output folder; or delete this "
                "one, and those of the stages that build on it, to train anew",
            )
        return not (record.get("finished", False) and result.is_file())

    def finish(self) -> None:
        """Record that the stage's result is whole."""
        on_main_process(lambda: self._write(finished=True))

    def _read(self) -> dict[str, Any] | None:
        path = self.path / _FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StageError(
                f"stage record cannot be read ({error})",
                where=path,
                mend="Delete the folder to run the stage anew",
            ) from error
        if not isinstance(record, dict):
            raise StageError(
                "stage record is damaged", where=path, expected="an object", found=record
            )
        return record

    def _write(self, *, finished: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        record = {"finished": finished, "settings": self.settings}
        partial = self.path / f"{_FILE}.partial"
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / _FILE)
