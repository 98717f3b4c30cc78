"""``UnsoundSamples``: account of the samples whose loss or gradient is not finite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vlsi_cache.errors import StageError, counted

__all__ = ["TOGETHER", "UNSOUND_GRADIENT", "UnsoundSamples"]

logger = logging.getLogger(__name__)

UNSOUND_GRADIENT: Final = "its gradient is not finite"
TOGETHER: Final = "the step's loss or gradient is not finite, and that of each alone is"
_MOST_STEPS: Final = 8
"""Steps in a row whose samples are mostly left out, before the run stops."""
_MOST_NAMES: Final = 20
"""Samples that are logged by name. The others are only counted."""
_FEW_NAMES: Final = 4
"""Samples that one message names."""


@dataclass(slots=True)
class UnsoundSamples:
    """Keeps account of the samples that a stage's steps have left out, alike in every process.

    A checkpoint keeps the account too, so an interruption makes it no better.
    """

    stage: str
    """The stage's name, which is its section of the recipe too."""
    name: Callable[[int], str]
    """A sample's index → its id."""
    is_half: bool
    """Whether the model's weights are float16."""
    skips: bool
    """Whether such samples are left out. If not, the first ends the run."""
    speaks: bool = True
    """Whether this process logs."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Index → why, of all that was left out since the stage began."""
    num_steps: int = 0
    """Steps that left samples out."""
    _in_a_row: int = 0
    _num_seen: int = 0
    _num_left_out: int = 0

    def count_sound_step(self, num_samples: int) -> None:
        """Count a step in which all samples were learned from."""
        self._num_seen += num_samples
        self._in_a_row = 0

    def leave_out(self, step: int, reasons: Mapping[int, str], num_samples: int) -> None:
        """Take account of the samples that a step leaves out.

        Args:
            step: number of the step, from 1.
            reasons: index → why. If empty, each sample is learned from by itself.
            num_samples: samples of the step, over all processes.

        Raises:
            StageError: they are not to be left out, or most samples of many steps are.
        """
        if not reasons:
            self.count_sound_step(num_samples)
            if self.speaks:
                logger.warning(
                    "%s: step %d takes each sample by itself: %s", self.stage, step, TOGETHER
                )
            return
        if not self.skips:
            raise self.problem(step, reasons, num_samples)
        self.num_steps += 1
        self._num_seen += num_samples
        self._num_left_out += len(reasons)
        self._in_a_row = self._in_a_row + 1 if 2 * len(reasons) > num_samples else 0
        for index, reason in reasons.items():
            if self.speaks and index not in self.left_out and len(self.left_out) < _MOST_NAMES:
                name = self.name(index)
                logger.warning(
                    "%s: step %d leaves out sample %r: %s", self.stage, step, name, reason
                )
            self.left_out.setdefault(index, reason)
        if self._in_a_row >= _MOST_STEPS:
            raise self._mostly(f"most samples of the last {_MOST_STEPS} steps were left out")

    def written(self) -> bytes:
        """Return the account until now, for a checkpoint."""
        counts = [self.num_steps, self._in_a_row, self._num_seen, self._num_left_out]
        return json.dumps([counts, list(self.left_out.items())]).encode()

    def resume(self, written: bytes) -> None:
        """Go on with the account of a checkpoint."""
        counts, left_out = json.loads(written)
        self.num_steps, self._in_a_row, self._num_seen, self._num_left_out = counts
        self.left_out = dict(left_out)

    def validate_end(self) -> None:
        """Refuse a result that most samples had no part in.

        Raises:
            StageError: more than half of all samples were left out.
        """
        if 2 * self._num_left_out > self._num_seen:
            share = f"{self._num_left_out:,} of {counted(self._num_seen, 'sample')}"
            raise self._mostly(f"{share} were left out, so there is no result")

    def summary(self) -> str | None:
        """Say what was left out, or return None."""
        if not self.left_out:
            return None
        reason = next(iter(self.left_out.values()))
        return (
            f"{self.stage}: {counted(self.num_steps, 'step')} left out "
            f"{counted(len(self.left_out), 'sample')} whose loss or gradient is not finite: "
            f"{self._names(self.left_out)}, the first because {reason}"
        )

    def problem(self, step: int, reasons: Mapping[int, str], num_samples: int) -> StageError:
        """Return the error of a step that has samples to leave out."""
        reason = next(iter(reasons.values()))
        if len(reasons) == num_samples and num_samples > 1:
            return StageError(
                f"none of the {num_samples} samples of step {step} can be learned from",
                where=self.stage,
                found=f"in sample {self.name(next(iter(reasons)))!r}: {reason}",
                mend=self._cause(),
            )
        return StageError(
            f"{self._names(reasons)} cannot be learned from in step {step}: {reason}",
            where=self.stage,
            mend="Leave such samples out with --on-error skip (data.on_error: skip). If there are "
            f"many: {self._cause()}",
        )

    def _mostly(self, what: str) -> StageError:
        index, reason = next(iter(self.left_out.items()))
        return StageError(
            f"the training has diverged: {what}",
            where=self.stage,
            found=f"in sample {self.name(index)!r}: {reason}",
            mend=self._cause(),
        )

    def _cause(self) -> str:
        """Say what is likely to be wrong where it is not one sample alone."""
        if self.is_half:
            return "float16 holds nothing above 65504: set student.dtype: float32, or bfloat16"
        verbalizers = ", train the verbalizers again at a lower rate,"
        return (
            f"Lower {self.stage}.learning_rate{verbalizers * (self.stage == 'interaction')} or "
            "raise warmup_steps, and delete the stage's folder"
        )

    def _names(self, reasons: Mapping[int, str]) -> str:
        names = [f"{self.name(index)!r}" for index in list(reasons)[:_FEW_NAMES]]
        more = len(reasons) - len(names)
        rest = f" and {more:,} more" if more > 0 else ""
        return f"sample{'s' * (len(reasons) > 1)} {', '.join(names)}{rest}"
