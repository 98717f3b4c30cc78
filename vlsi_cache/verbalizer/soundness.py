"""``SoundSamples``: samples whose hidden states are finite; the others teach nothing.

Shapes: B samples, T positions, N response tokens, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from vlsi_cache.errors import StageError
from vlsi_cache.models import TapState
from vlsi_cache.training import Run, too_many_in_a_row

__all__ = ["SoundSamples"]

logger = logging.getLogger(__name__)

_REASON = "hidden states are not finite"


class SoundSamples:
    """Blanks the samples of a batch whose states are not finite, and keeps account of them.

    The device is not waited for. What was found comes to light in ``validate``.

    Args:
        run: what all stages share.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._found: list[Tensor] = []
        self._in_a_row = 0
        self.left_out: set[int] = set()
        """Indices of the samples that this process has left out so far."""

    @torch.no_grad()
    def blank(
        self,
        states: Mapping[int, TapState],
        final: Tensor,
        positions: Tensor,
        token_samples: Tensor,
        sample_indices: Tensor,
    ) -> Tensor:
        """Set the states of unsound samples to 0, in place, and return which tokens are sound.

        Args:
            states: each tap's captured state.
            final: ``[N, D]`` features after the final norm.
            positions: ``[N]`` long, flat indices into ``B × T``.
            token_samples: ``[N]`` long, each token's row of the batch.
            sample_indices: ``[B]`` long, each row's index in the dataset.

        Returns:
            ``[N]`` bool.
        """
        finite = _finite(final).to(positions.device)
        for state in states.values():
            finite &= _finite(state.at(positions)).to(positions.device)
        broken = torch.zeros_like(sample_indices).index_add_(0, token_samples, (~finite).long()) > 0
        self._found.append(torch.where(broken, sample_indices, -1))
        for state in states.values():
            state.hidden.masked_fill_(broken[:, None, None].to(state.hidden.device), 0.0)
        final.masked_fill_(broken[token_samples, None].to(final.device), 0.0)
        return ~broken[token_samples]

    def validate(self) -> None:
        """Take account of the batches since the last call.

        Raises:
            StageError: a sample is not sound and not to be skipped, or too many are in a row.
        """
        recipe = self._run.recipe
        found, self._found = self._found, []
        for index in torch.cat(found).tolist() if found else ():
            self._in_a_row = self._in_a_row + 1 if index >= 0 else 0
            if index < 0:
                continue
            where = f"sample {self._run.data[index].sample_id!r}"
            if not recipe.skips_failures:
                raise StageError(
                    f"{_REASON} at a tap, or at the output",
                    where=where,
                    mend=f"Try {self._run.role}.dtype: float32, or check the model's weights; or "
                    "skip such samples with cache.on_error: skip",
                )
            if index not in self.left_out:
                logger.warning("verbalization leaves out %s: %s", where, _REASON)
            self.left_out.add(index)
            most = recipe.cache.max_failures_in_a_row
            if self._in_a_row > most:
                raise too_many_in_a_row(self._in_a_row, most, where, _REASON)


def _finite(read: Tensor) -> Tensor:
    return torch.isfinite(read).all(-1)
