"""Taps: the outputs of chosen decoder blocks, captured while the model runs.

The blocks are hooked, because `hidden_states[-1]` of a model's output is after the final norm.
Shape suffixes: B batch, T sequence, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from vlsi_cache.errors import ModelError
from vlsi_cache.models.binding.trace import block_output, removing
from vlsi_cache.models.decoder import Decoder

__all__ = [
    "TapCapture",
    "TapState",
    "capture_taps",
    "default_taps",
    "resolve_taps",
]

_FIRST = 2
_EVERY = 4


def default_taps(num_blocks: int) -> tuple[int, ...]:
    """Every fourth block from block 2, or the last block if there are fewer than three.

    The paper (VLsI, CVPR 2025) taps 2, 6, …, 26 of 28 and 2, 6, …, 78 of 80.
    """
    return tuple(range(_FIRST, num_blocks, _EVERY)) or (num_blocks - 1,)


def resolve_taps(taps: Sequence[int] | None, num_blocks: int, *, where: str) -> tuple[int, ...]:
    """Sort the taps, remove repetitions, and validate that each is a block.

    Args:
        taps: block indices from 0, or None for `default_taps`.
        num_blocks: number of blocks of the decoder.
        where: recipe path or flag that the error names.

    Raises:
        ModelError: there are no taps, or some are not blocks. The error names all of them.
    """
    if taps is None:
        return default_taps(num_blocks)
    outside = sorted({tap for tap in taps if not 0 <= tap < num_blocks})
    if outside or not taps:
        raise ModelError(
            "taps are not blocks of the model" if outside else "no taps are given",
            where=where,
            expected=f"block indices from 0 to {num_blocks - 1}",
            found=", ".join(map(str, outside)) if outside else "an empty list",
            mend="Leave the taps out for every fourth block; the final output is always kept",
        )
    return tuple(sorted(set(taps)))


@dataclass(frozen=True, slots=True)
class TapState:
    """One block's output, with the inputs that the next block, or a copy of it, needs to run."""

    hidden: Tensor
    """[B, T, D], the block's output, with its graph."""
    args: tuple[Any, ...]
    """The block's own positional inputs after the hidden state."""
    kwargs: dict[str, Any]
    """The block's own keyword inputs: masks, positions, rotary embeddings. Key-value caches are
    removed."""

    def at(self, positions: Tensor) -> Tensor:
        """Return the hidden states [N, D] at flat positions [N] of [B, T], on their device."""
        read: Tensor = self.hidden.flatten(0, 1)[positions.to(self.hidden.device)]
        return read

    def rerun(self, block: nn.Module) -> Tensor:
        """Run another block of the same kind on this hidden state: its output [B, T, D]."""
        return block_output(block(self.hidden, *self.args, **self.kwargs))


class TapCapture:
    """The states of the taps in the latest forward pass. `capture_taps` makes it."""

    def __init__(self, taps: Sequence[int]) -> None:
        self.taps = tuple(taps)
        self.states: dict[int, TapState] = {}
        self._features: Tensor | None = None
        self._is_last_done = False

    @property
    def features(self) -> Tensor:
        """The model's final features [B, T, D]. `decoder.head.logits` turns them into logits.

        Raises:
            ModelError: no forward pass has run yet.
        """
        if self._features is None:
            raise ModelError(
                "final features are not known yet", mend="Run the model inside capture_taps first"
            )
        return self._features

    def _clear(self, *_: object) -> None:
        self.states.clear()
        self._features = None
        self._is_last_done = False

    def _keep_state(
        self, tap: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        # Gradient checkpointing calls a block again in the backward pass. The first call counts.
        if tap not in self.states:
            self.states[tap] = TapState(
                hidden=block_output(output),
                args=tuple(_uncached("", value) for value in args[1:]),
                kwargs={
                    name: _uncached(name, value)
                    for name, value in kwargs.items()
                    if name != "hidden_states"
                },
            )

    def _note_last(self, *_: object) -> None:
        self._is_last_done = True

    def _keep_normed(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        # NanoChat calls its final norm before the blocks, too.
        if self._features is None and self._is_last_done:
            self._features = block_output(output)

    def _norm_last(self, norm: nn.Module, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if self._features is None:
            self._features = block_output(norm(block_output(output)))


@contextmanager
def capture_taps(decoder: Decoder, taps: Sequence[int]) -> Iterator[TapCapture]:
    """Capture the given blocks in every forward pass inside the context.

    The capture always holds the latest pass. Hooks sit on the blocks themselves, so the caller may
    run the model, its backbone or a wrapper (peft, distributed). Gradients flow through the
    states. Without taps, only the final features are captured.

    Args:
        decoder: a bound model.
        taps: block indices; see `resolve_taps`.
    """
    capture = TapCapture(taps)
    hooks = [decoder.body.register_forward_pre_hook(capture._clear)]  # noqa: SLF001 (its maker)
    for tap in capture.taps:
        keep = partial(capture._keep_state, tap)  # noqa: SLF001
        hooks.append(decoder.blocks[tap].register_forward_hook(keep, with_kwargs=True))
    last = decoder.blocks[-1]
    if decoder.backbone_runs_final_norm:
        hooks.append(last.register_forward_hook(capture._note_last))  # noqa: SLF001
        hooks.append(decoder.final_norm.register_forward_hook(capture._keep_normed))  # noqa: SLF001
    else:
        normed = partial(capture._norm_last, decoder.final_norm)  # noqa: SLF001
        hooks.append(last.register_forward_hook(normed))
    with removing(hooks):
        yield capture


def _uncached(name: str, value: Any) -> Any:
    """A block's input without its key-value or state cache, which belongs to the first run."""
    if isinstance(value, Cache):
        return None
    return False if name == "use_cache" else value
