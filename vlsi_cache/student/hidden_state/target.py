"""The hidden state that the student learns, where the cache records one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from vlsi_cache.errors import CacheMismatchError, ModelError
from vlsi_cache.hidden import HiddenSigns
from vlsi_cache.manifest import HiddenIdentity
from vlsi_cache.models import Decoder, device_of, hollow_out
from vlsi_cache.recipe import HiddenLearningSection, InteractionSection
from vlsi_cache.store import Cache

__all__ = [
    "HiddenTarget",
    "hidden_target",
    "learns_map",
    "validate_hidden",
    "validate_hidden_sizes",
]

logger = logging.getLogger(__name__)

_LEAST_DISTANCE: Final = 0.01
"""Mean of 1 − cos below which its loss falls with it: few tokens' estimates may come to nothing."""
_STRANGE: Final = 0.05
"""Mean cosine below which two states have little in common. Signs of a few hundred tokens err by
less."""


class HiddenTarget(nn.Module):
    """A block of the student whose state learns the recorded one.

    N response tokens, D the student's hidden size, E the teacher's, b signs.

    Args:
        block: the student's block, from 0.
        signs: how the teacher's states are kept.
        weight: its loss over the output's.
        mapped_from: D, where a map to the teacher's size trains too. None where D is E and states
            are compared as they are.
    """

    def __init__(
        self, block: int, signs: HiddenSigns, weight: float, *, mapped_from: int | None = None
    ) -> None:
        super().__init__()
        self.block, self.signs, self.weight = block, signs, weight
        self.map: nn.Linear | None = None
        """The map of directions, ``[E, D]``. It is no part of the finished student."""
        if mapped_from is not None:
            self.map = nn.Linear(mapped_from, signs.width, bias=False, dtype=torch.float32)
            nn.init.eye_(self.map.weight)

    def directions(self, states: Tensor) -> Tensor:
        """Return the directions of states as the teacher's, ``[N, E]`` of length 1.

        Args:
            states: ``[N, D]``, the student's.
        """
        directions = F.normalize(states.float(), dim=-1)
        if self.map is None:
            return directions
        with torch.autocast(states.device.type, enabled=False):
            return F.normalize(self.map(directions), dim=-1)

    def cosines(self, states: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
        """Estimate the cosines of states to the teacher's, ``[N]``.

        The estimate of one token may lie beyond 1.

        Args:
            states: ``[N, D]``, the student's.
            recorded: ``hidden_signs`` ``[N, b / 8]`` uint8, and ``rotations`` ``[N]`` long.
        """
        wanted = self.signs.decode(recorded["hidden_signs"], recorded["rotations"])
        return (self.directions(states) * wanted).sum(-1)

    def weighed(self, cosines: Tensor, output: Tensor, *, counts: int = 1) -> Tensor:
        """Return the sum of 1 − cos, 0-d, scaled to its multiple of the output's loss.

        It is 0 where the estimated cosines have a mean above 1.

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
        scale = scale * (found > 0)  # beyond, only the signs' noise is left to learn
        weighed: Tensor = distance * scale
        return weighed

    def find_advice(self, cosine: float) -> str | None:
        """Return what to say of a mean cosine with which training begins, if it is near 0."""
        if cosine >= _STRANGE:
            return None
        mend = "Name another block with interaction.hidden.block"
        if self.map is None:
            mend = "Set interaction.hidden.map: learned"
        return (
            f"the state of the student's block {self.block} has little in common with the "
            f"teacher's: their mean cosine is {cosine:.3f}. {mend}"
        )


def hidden_target(
    cache: Cache, decoder: Decoder, settings: InteractionSection
) -> HiddenTarget | None:
    """Return what learns the recorded state, or None where nothing is asked for.

    Raises:
        CacheMismatchError: the student has another hidden size, and there is to be no map.
        ModelError: the block that is to learn is not one of the student's.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return None
    size = decoder.hidden_size
    validate_hidden(cache, settings, decoder.num_blocks, size)
    block = _block(settings.hidden, recorded, decoder.num_blocks)
    mapped = learns_map(settings.hidden, size, recorded.width)
    logger.info(
        "block %d of the student's %d learns the hidden state of the teacher's block %d of %d%s",
        *(block, decoder.num_blocks, recorded.block, recorded.num_blocks),
        f", by a map of {size} to {recorded.width} numbers" if mapped else "",
    )
    signs = HiddenSigns(recorded.width, recorded.bits, cache.manifest.sampling.seed)
    target = HiddenTarget(
        block, signs, settings.hidden.weight, mapped_from=size if mapped else None
    )
    if decoder.is_empty:  # it comes from the process that holds the weights
        hollow_out(target)
    return target.to(device_of(decoder.blocks[block]))


def learns_map(settings: HiddenLearningSection, size: int, teacher_size: int) -> bool:
    """Report whether a map trains between the states of student and teacher."""
    if settings.map is None:
        return size != teacher_size
    return settings.map == "learned"


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
        CacheMismatchError: the student has another hidden size, and there is to be no map.
        ModelError: the block that is to learn is not one of the student's.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return
    validate_hidden_sizes(settings.hidden, recorded.width, hidden_size, where=cache.path)
    if num_blocks is not None:
        _validate_block(settings.hidden, recorded, num_blocks)


def validate_hidden_sizes(
    settings: HiddenLearningSection, teacher_size: int | None, size: int | None, *, where: object
) -> None:
    """Refuse to compare states of different sizes without a map.

    Args:
        settings: how a hidden state is learned.
        teacher_size: the teacher's hidden size, or None while it is not known.
        size: the student's, likewise.
        where: the cache, or what the error names in its place.

    Raises:
        CacheMismatchError: the sizes differ, and there is to be no map.
    """
    if settings.map != "identity" or None in (teacher_size, size) or teacher_size == size:
        return
    raise CacheMismatchError(
        "interaction.hidden.map: identity compares states of one size, and the student has another "
        "hidden size than the teacher",
        where=where,
        expected=f"the teacher's {teacher_size}",
        found=size,
        mend="Set interaction.hidden.map: learned, or leave it out. A map to the teacher's size "
        "then trains beside the student",
    )


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
