"""``HeldOutTally``: means over held-out samples, the same ones at every measurement."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vlsi_cache.errors import StageError, counted
from vlsi_cache.training.loop.saving import MEND_DIVERGED
from vlsi_cache.training.processes import found_by_main_process, is_main_process
from vlsi_cache.training.samples.heldout import HeldOut

__all__ = ["HeldOutTally", "MeasuredSample"]

logger = logging.getLogger(__name__)

_FEW_NAMES: Final = 5


class MeasuredSample(NamedTuple):
    """One held-out sample's sums over its response tokens."""

    sample: int
    """Its index."""
    tokens: int
    loss: float
    divergence: float | None
    """None without a record."""

    @property
    def is_sound(self) -> bool:
        """Whether all of its figures are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.divergence or 0.0)


class HeldOutTally:
    """Takes the means of a stage's measurements.

    With ``data.on_error: skip`` the first measurement decides which samples are left out. A sample
    that turns bad later is the run's problem: means over fewer samples would not compare.

    Args:
        held_out: the samples.
        folder: the stage's folder, for errors.
    """

    def __init__(self, held_out: HeldOut, folder: Path) -> None:
        self.left_out: frozenset[int] | None = None
        self._held_out = held_out
        self._folder = folder

    def figures(self, samples: Sequence[MeasuredSample], step: int) -> dict[str, float]:
        """Return the means per response token. All processes must call it with all samples.

        Raises:
            StageError: a sample's figures are not finite, and it is not to be left out.
        """
        is_first, left_out = self.left_out is None, self.left_out or frozenset()
        kept = [one for one in samples if one.sample not in left_out]
        unsound = [one.sample for one in kept if not one.is_sound]
        if not unsound:
            self.left_out = left_out
            return _means(kept)
        found = _means([one for one in kept if one.is_sound])
        names = self._names(unsound)
        enough = f"held_out_{self._held_out.settings.metric}_nats" in found
        if not (is_first and enough and self._held_out.skips):
            raise self._problem(names, f"{len(unsound)} of {len(kept)}", step, is_first and enough)
        self.left_out = frozenset(unsound)
        if is_main_process():
            logger.warning(
                "no measurement has %s whose loss is not finite: %s",
                counted(len(unsound), "held-out sample"),
                names,
            )
        return found

    def _problem(self, names: str, share: str, step: int, may_skip: bool) -> StageError:
        skip = "Leave such samples out with --on-error skip (data.on_error: skip). Or: "
        return StageError(
            f"the held-out loss is not finite at step {step}, in {names}",
            where=self._folder,
            found=f"{share} held-out samples",
            mend=skip * may_skip + MEND_DIVERGED,
        )

    def _names(self, indices: Sequence[int]) -> str:
        name = self._held_out.name
        few = found_by_main_process(lambda: [f"{name(index)!r}" for index in indices[:_FEW_NAMES]])
        more = len(indices) - len(few)
        return f"{', '.join(few)}{f' and {more:,} more' if more else ''}"


def _means(samples: Sequence[MeasuredSample]) -> dict[str, float]:
    """Return the means per response token, and how many samples they are of."""
    found: dict[str, float] = {}
    compared = [sample for sample in samples if sample.divergence is not None]
    tokens = sum(sample.tokens for sample in samples)
    if tokens:
        found["held_out_loss_nats"] = math.fsum(sample.loss for sample in samples) / tokens
        found["held_out_samples"] = len(samples)
    tokens = sum(sample.tokens for sample in compared)
    if tokens:
        nats = math.fsum(sample.divergence or 0.0 for sample in compared)
        found["held_out_divergence_nats"] = nats / tokens
        found["held_out_compared"] = len(compared)
    return found
