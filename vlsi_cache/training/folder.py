"""A stage's folder: one job at a time, what it was started with, and whether it finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vlsi_cache.differences import find_differences
from vlsi_cache.errors import StageError
from vlsi_cache.files import write_whole
from vlsi_cache.training.processes import on_main_process, wait_for_everyone

__all__ = ["StageFolder", "one_job_at_a_time"]

_LOCK: Final = ".lock"
_FILE: Final = "stage.json"
_WEIGHTS: Final = "*.safetensors"

logger = logging.getLogger(__name__)


class StageFolder:
    """The folder of one stage, which resumes only what it began.

    ``stage.json`` decides whether the stage is done, and nothing else does. It is written last,
    names the result's files of weights, and says "unfinished" before any of them is written again.

    Args:
        path: the folder.
        settings: everything that the stage's result depends on, as JSON values.
        config: the result's file that describes the weights beside it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], config: Path) -> None:
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self.config = config

    def validate_settings(self) -> None:
        """Refuse a folder that holds the same stage, made with other settings.

        Raises:
            StageError: the settings differ; each difference is named.
        """
        record = self._read()
        if record is not None:
            self._compare(record)

    def enter(self) -> bool:
        """Enter the folder.

        Returns:
            Whether anything remains to be done.

        Raises:
            StageError: the folder holds the same stage, made with other settings.
        """
        record = self._read()
        wait_for_everyone()
        if record is not None:
            self._compare(record)
            if record.get("finished", False) and self._is_whole(record.get("weights")):
                return False
            if self._is_untrained(record) and record.get("settings") != self.settings:
                on_main_process(self._forget)
        on_main_process(lambda: self._write(finished=False))
        return True

    def finish(self) -> None:
        """Record that the stage's result is whole."""
        on_main_process(lambda: self._write(finished=True))

    def _is_whole(self, weights: list[str] | None) -> bool:
        """Report whether the result has its files; records of old versions name no weights."""
        named = weights or self._weights() or [_WEIGHTS]
        result = self.config.parent
        missing = [name for name in (self.config.name, *named) if not (result / name).is_file()]
        if missing:
            logger.warning(
                "%s: the stage was finished, but its result lacks %s. It is made again",
                result,
                ", ".join(missing),
            )
        return not missing

    def _weights(self) -> list[str]:
        return sorted(path.name for path in self.config.parent.glob(_WEIGHTS))

    def validate_known_settings(self) -> None:
        """Refuse such a folder while ``settings`` holds only those that are known early.

        Raises:
            StageError: the settings differ; each difference is named.
        """
        record = self._read()
        if record is not None:
            recorded = record.get("settings", {})
            known = {name: recorded[name] for name in self.settings if name in recorded}
            self._compare({**record, "settings": known})

    def _is_untrained(self, record: Mapping[str, Any]) -> bool:
        """Report whether the stage was stopped before anything of it was kept."""
        kept = self.config.exists() or any(self.path.glob("checkpoint-*"))
        return not record.get("finished", False) and not kept

    def _forget(self) -> None:
        """Remove what an untrained stage of other settings has noted on its way."""
        for path in self.path.glob("*.jsonl"):
            path.unlink()

    def _compare(self, record: Mapping[str, Any]) -> None:
        if self._is_untrained(record):
            return
        recorded = record.get("settings", {})
        found = find_differences(recorded, self.settings)
        if found:
            clauses = "; ".join(difference.clause() for difference in found)
            raise StageError(
                f"this folder holds a stage made with other settings: {clauses}",
                where=self.path,
                mend="Go back to those settings, or choose another output folder. To train again, "
                "delete this folder and those of the stages that build on it",
            )

    def _read(self) -> dict[str, Any] | None:
        path = self.path / _FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StageError(
                f"{_FILE} cannot be read ({error})",
                where=path,
                mend="Delete the folder to run the stage again",
            ) from error
        if not isinstance(record, dict):
            raise StageError(
                f"{_FILE} is damaged",
                where=path,
                expected="a JSON object",
                found=record,
                mend="Delete the folder to run the stage again",
            )
        return record

    def _write(self, *, finished: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"finished": finished, "settings": self.settings}
        if finished:
            record["weights"] = self._weights()
        write_whole(self.path / _FILE, json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def one_job_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other job is inside, and keep the others out until the end.

    A job array starts all of its jobs at once, and they share a folder. Processes that were
    launched together are one job. The system drops a killed job's lock. Nobody waits where files
    cannot be locked: in a read-only folder, or on a file system without locks.
    """
    with contextlib.ExitStack() as held:
        on_main_process(lambda: held.callback(_release, _lock(folder)))
        yield


def _lock(folder: Path) -> int | None:
    descriptor = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for the job that is at work here", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        _release(descriptor)
        return None
    return descriptor


def _release(descriptor: int | None) -> None:
    if descriptor is not None:
        # closing alone would not do: forked workers that live on hold the same lock
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
