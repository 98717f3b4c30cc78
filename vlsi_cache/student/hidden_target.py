"""The hidden state that the student learns, where the cache records one."""

from __future__ import annotations

from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.hidden import HiddenSigns, HiddenTap
from vlsi_cache.models import Decoder, resolve_taps
from vlsi_cache.recipe import InteractionSection
from vlsi_cache.store import Cache

__all__ = ["hidden_target", "validate_hidden"]


def hidden_target(cache: Cache, decoder: Decoder, settings: InteractionSection) -> HiddenTap | None:
    """Return the student's block that learns the recorded state, or None where none is asked for.

    Raises:
        CacheMismatchError: the student has another hidden size.
        ModelError: ``interaction.hidden.block`` is not a block.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return None
    validate_hidden(cache, settings, decoder.num_blocks, decoder.hidden_size)
    block = settings.hidden.block
    if block is None:  # as far from the last one as the teacher's
        block = max(decoder.num_blocks - recorded.num_blocks + recorded.block, 0)
    signs = HiddenSigns(recorded.width, recorded.bits, cache.manifest.sampling.seed)
    return HiddenTap(block, signs)


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
        ModelError: ``interaction.hidden.block`` is not a block.
    """
    recorded = cache.manifest.hidden
    if settings.hidden is None or recorded is None:
        return
    block = settings.hidden.block
    if block is not None and num_blocks is not None:
        resolve_taps([block], num_blocks, where="interaction.hidden.block")
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
