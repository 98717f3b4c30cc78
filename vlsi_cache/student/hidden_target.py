"""The hidden state that the student learns, where the cache records one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor

from vlsi_cache.errors import CacheMismatchError, ModelError
from vlsi_cache.hidden import HiddenSigns
from vlsi_cache.manifest import HiddenIdentity
from vlsi_cache.models import Decoder
from vlsi_cache.recipe import HiddenLearningSection, InteractionSection
from vlsi_cache.store import Cache

__all__ = ["HiddenTarget", "hidden_target", "validate_hidden"]

logger = logging.getLogger(__name__)

_LEAST_DISTANCE: Final = 0.01
"""Mean of 1 − cos below which its loss falls with it: few tokens' estimates may come to nothing."""


@dataclass(frozen=True, slots=True)
class HiddenTarget:
    """A block of the student whose state learns the recorded one.

    N response tokens, D hidden size, b signs.
    """

    block: int
    """The student's block, from 0."""
    signs: HiddenSigns
    """How the teacher's states are kept."""
    weight: float
    """Its loss over the output's."""

    def cosines(self, states: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
        """Estimate the cosines of states to the teacher's, ``[N]``.

        The estimate of one token may lie beyond 1.

        Args:
            states: ``[N, D]``, the student's.
            recorded: ``hidden_signs`` ``[N, b / 8]`` uint8, and ``rotations`` ``[N]`` long.
        """
        directions = self.signs.decode(recorded["hidden_signs"], recorded["rotations"])
        return (F.normalize(states.float(), dim=-1) * directions).sum(-1)

    def weighed(self, cosines: Tensor, output: Tensor, *, counts: int = 1) -> Tensor:
        """Return the sum of 1 − cos, 0-d, scaled to its multiple of the output's loss.

        The scale is one for the tokens of all processes, as a single process has.

        Args:
            cosines: ``[N]``, see ``cosines``.
            output: 0-d, the sum of the output's loss over the same tokens.
            counts: 0 for a spare pass, whose tokens count in no process.
        """
        distance = (1 - cosines).sum()
        number = distance.new_full((), len(cosines))
        parts = torch.stack([output, distance, number]).detach() * counts
        whole, found, count = reduce(parts).unbind()
        least = (_LEAST_DISTANCE * count).clamp(min=_LEAST_DISTANCE)
        # the record's estimate of a small divergence may fall below 0
        scale = self.weight * whole.clamp(min=0) / torch.maximum(found, least)
        weighed: Tensor = distance * scale
        return weighed


def hidden_target(
    cache: Cache, decoder: Decoder, settings: InteractionSection
) -> HiddenTarget | None:
    """Return what learns the recorded state, or None where nothing is asked for.

    Raises:
        CacheMismatchError: the student has another hidden size.
        ModelError: the block that is to learn is not one of the student's.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return None
    validate_hidden(cache, settings, decoder.num_blocks, decoder.hidden_size)
    block = _block(settings.hidden, recorded, decoder.num_blocks)
    logger.info(
        "block %d of the student's %d learns the hidden state of the teacher's block %d of %d",
        *(block, decoder.num_blocks, recorded.block, recorded.num_blocks),
    )
    signs = HiddenSigns(recorded.width, recorded.bits, cache.manifest.sampling.seed)
    return HiddenTarget(block, signs, settings.hidden.weight)


def validate_hidden(
    cache: Cache, settings: InteractionSection, num_blocks: int | None, hidden_size: int | None
) -> None:
    """Refuse a student whose state cannot be compared with the recorded one.

    Args:
        cache: the teacher's record.
        settings: whether a hidden state is learned, and by which block.
        num_blocks: the student's blocks, or None while they are not known.
        hidden_size: the student's hidden size, or None while it is not known.

    Raises:
        CacheMismatchError: the student has another hidden size.
        ModelError: the block that is to learn is not one of the student's.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return
    if hidden_size not in (recorded.width, None):
        raise CacheMismatchError(
            "interaction.hidden compares states of one size, and the student has another hidden "
            "size than the teacher",
            where=cache.path,
            expected=f"the teacher's {recorded.width}",
            found=hidden_size,
            mend="Leave it out (--set interaction.hidden=null). Output and taps are learned all "
            "the same",
        )
    if num_blocks is not None:
        _validate_block(settings.hidden, recorded, num_blocks)


def _validate_block(
    settings: HiddenLearningSection, recorded: HiddenIdentity, num_blocks: int
) -> None:
    if 0 <= _block(settings, recorded, num_blocks) < num_blocks:
        return
    named: object = settings.block
    if named is None:
        named = (
            f"the teacher's block {recorded.block} of {recorded.num_blocks}, which is "
            f"{recorded.num_blocks - recorded.block} from the end"
        )
    raise ModelError(
        "the student has no such block to learn the hidden state",
        where="interaction.hidden.block",
        expected=f"a block from 0 to {num_blocks - 1}",
        found=named,
        mend="Name one of the student's blocks",
    )


def _block(settings: HiddenLearningSection, recorded: HiddenIdentity, num_blocks: int) -> int:
    """Return the student's block: the one given, or as far from the last as the teacher's."""
    if settings.block is not None:
        return settings.block
    return num_blocks - recorded.num_blocks + recorded.block
