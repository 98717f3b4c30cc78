"""A stage's folder: one job at a time, what it was started with, and whether it finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from vlsi_cache.differences import Difference, find_differences
from vlsi_cache.errors import StageError
from vlsi_cache.files import read_file, write_whole
from vlsi_cache.stagefiles import STAGE_FILE, StageRecord
from vlsi_cache.training.folders.checkpoints import discard_checkpoints, remove_torn_checkpoints
from vlsi_cache.training.processes import on_main_process, wait_for_everyone

__all__ = ["StageFolder", "one_job_at_a_time"]

_LOCK: Final = ".lock"
_FILE: Final = STAGE_FILE
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

    @property
    def is_finished(self) -> bool:
        """Whether the stage is finished, and its result is whole."""
        record = self._read()
        return record is not None and record.finished and not self._lacks(record)

    @property
    def holds_training(self) -> bool:
        """Whether there is a result or a checkpoint of the stage, of any settings."""
        record = self._read()
        return record is not None and not self._is_untrained(record)

    def validate_settings(self) -> None:
        """Refuse a folder that holds the same stage, made with other settings.

        Raises:
            StageError: the settings differ; each difference is named.
        """
        record = self._read()
        if record is not None:
            self._compare(record.settings, record)

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
            self._compare(record.settings, record)
            if record.finished and self._is_whole(record):
                return False
            if self._is_untrained(record) and record.settings != self.settings:
                on_main_process(self._forget)
        on_main_process(self._begin)
        return True

    def finish(self, save: Callable[[], None]) -> None:
        """Save the stage's result, by one process for all, and record that it is whole.

        Args:
            save: writes the result.
        """

        def write() -> None:
            save()
            self._write(finished=True)

        on_main_process(write)

    def leave(self) -> None:
        """Free the space of a finished stage's checkpoints."""
        on_main_process(lambda: discard_checkpoints(self.path))

    def _begin(self) -> None:
        self._write(finished=False)
        remove_torn_checkpoints(self.path)

    def _is_whole(self, record: StageRecord) -> bool:
        """Report whether the result has its files, and log what it lacks."""
        wrong = self._lacks(record)
        if wrong:
            logger.warning(
                "%s: the stage was finished, but its result %s. It is made again",
                self.config.parent,
                ", ".join(wrong),
            )
        return not wrong

    def _lacks(self, record: StageRecord) -> list[str]:
        """Return what is wrong with the result's files: each is there, and is not cut off."""
        result = self.config.parent
        # records of old versions name no weights, or no sizes
        named = record.weights or self._weights() or [_WEIGHTS]
        wrong = [f"lacks {name}" for name in (self.config.name, *named) if _size(result / name) < 0]
        return wrong + [
            f"has {size:,} of the {num_bytes:,} bytes of {name}"
            for name, num_bytes in record.num_bytes.items()
            if 0 <= (size := _size(result / name)) < num_bytes and _is_torn(result / name)
        ]

    def _weights(self) -> list[str]:
        return sorted(path.name for path in self.config.parent.glob(_WEIGHTS))

    def validate_known_settings(self) -> None:
        """Refuse such a folder while ``settings`` holds only those that are known early.

        Raises:
            StageError: the settings differ; each difference is named.
        """
        record = self._read()
        if record is not None:
            recorded = record.settings
            known = {name: recorded[name] for name in self.settings if name in recorded}
            self._compare(known, record)

    def _is_untrained(self, record: StageRecord) -> bool:
        """Report whether the stage was stopped before anything of it was kept."""
        kept = self.config.exists() or any(self.path.glob("checkpoint-*"))
        return not record.finished and not kept

    def _forget(self) -> None:
        """Remove what an untrained stage of other settings has noted on its way."""
        for path in self.path.glob("*.jsonl"):
            path.unlink()

    def _compare(self, recorded: Mapping[str, Any], record: StageRecord) -> None:
        if self._is_untrained(record):
            return
        found = [
            difference
            for difference in find_differences(recorded, self.settings)
            if not _is_undecided(difference)
        ]
        if found:
            raise StageError(
                "this folder holds a stage made with other settings",
                problems=[difference.clause() for difference in found],
                where=self.path,
                mend="Go back to those settings, or choose another output folder. To train again, "
                "delete this folder and those of the stages that build on it",
            )

    def _read(self) -> StageRecord | None:
        path = self.path / _FILE
        try:
            return StageRecord.model_validate_json(read_file(path))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise StageError(
                f"{_FILE} cannot be read ({_reason(error)})",
                where=path,
                mend="Delete the folder to run the stage again",
            ) from error

    def _write(self, *, finished: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"finished": finished, "settings": self.settings}
        if finished:
            weights = self._weights()
            record["weights"] = weights
            record["num_bytes"] = {name: _size(self.config.parent / name) for name in weights}
        write_whole(self.path / _FILE, json.dumps(record, indent=2) + "\n")


def _is_undecided(difference: Difference) -> bool:
    """Report whether a bound was recorded before its number was: any number may be that one."""
    is_bound = difference.path.rsplit(".", 1)[-1] == "batch_tokens"
    return is_bound and difference.recorded == "given" and isinstance(difference.wanted, int)


def _size(path: Path) -> int:
    """Return the size of a file, or −1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def _is_torn(path: Path) -> bool:
    """Report whether a file of weights lacks what its header names; a rewritten one does not."""
    try:
        with safe_open(path, "pt"):
            return False
    except (OSError, SafetensorError):
        return True


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


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
