"""The proof that the passes of dump and training read what the model itself computes.

Shape suffixes: T sequence, N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.models.binding.passes import run_backbone
from vlsi_cache.models.binding.taps import TapState
from vlsi_cache.models.binding.trace import (
    NUM_SHARED,
    Trace,
    padded_row,
    removing,
    text_pass,
    unbindable,
)
from vlsi_cache.models.decoder import Decoder

__all__ = ["validate_gradients", "validate_passes"]

_TOLERANCE = 1e-3
"""Most relative difference of two passes over the same tokens, in float32."""
_ROUNDINGS = 12
"""The same in a coarser dtype, in its roundings: other kernels run where there is a mask."""


def validate_passes(
    decoder: Decoder, trace: Trace, *, graph: bool
) -> tuple[dict[int, TapState], Tensor]:
    """Run the pass of dump and training on a padded batch, and compare it with the model's own.

    Args:
        decoder: the view to prove.
        trace: the model's own pass over two rows without padding.
        graph: whether the results keep their graph.

    Returns:
        The states of all blocks, and the features ``[N, D]`` of the rows' real tokens.

    Raises:
        ModelError: later tokens or padding change a logit, a tap is not the stream between its
            blocks, or head(features) is not the model's own.
    """
    model = decoder.model
    first, second = trace.logits
    _validate_causality(decoder, first[:NUM_SHARED], second[:NUM_SHARED])
    inputs = padded_row(model, trace.inputs)
    positions = inputs["attention_mask"].flatten().nonzero().flatten()
    states, features, entered = _run(decoder, inputs, positions, graph=graph)
    _validate_taps(decoder, states, entered)
    last = states[decoder.num_blocks - 1].hidden.flatten(0, 1)
    again = decoder.features(last[positions.to(last.device)])
    logits = decoder.head.logits(features.detach())
    whole, cut = logits[: len(first)], logits[len(first) :]
    if not _agree(again, features) or not _agree(whole, first):
        raise unbindable(
            model,
            "the pass without its head gives other logits than the model",
            "head(final features) equal to the model's logits",
            found=_difference(whole, first),
        )
    _validate_padding(decoder, cut, first[:NUM_SHARED])
    return states, features


def _validate_causality(decoder: Decoder, first: Tensor, second: Tensor) -> None:
    """Refuse logits of the same tokens that differ by what follows them."""
    if not _agree(first, second):
        raise unbindable(
            decoder.model,
            "a later token changes the logits of an earlier position",
            "a causal model, in which a position reads itself and earlier ones",
            found=_difference(first, second),
            mend="Use a decoder-only model with causal attention",
        )


def _validate_padding(decoder: Decoder, padded: Tensor, whole: Tensor) -> None:
    """Refuse logits of the same tokens that differ by the padding behind them."""
    if not _agree(padded, whole):
        raise unbindable(
            decoder.model,
            "padding on the right changes the logits of the tokens before it",
            "logits that do not depend on padding",
            found=_difference(padded, whole),
            mend="Use a model that takes padded batches",
        )


def validate_gradients(decoder: Decoder, states: Mapping[int, TapState], features: Tensor) -> None:
    """Refuse a model in which the output's gradient does not reach every block.

    Args:
        decoder: the view to prove.
        states: the states of all blocks, with their graph.
        features: ``[N, D]`` final features of the same pass.

    Raises:
        ModelError: a block gets no gradient, or the backward pass fails.
    """
    # A norm keeps the sum of squares, so the probe weighs each feature differently.
    weights = torch.linspace(-1, 1, features.shape[-1], device=features.device)
    hidden = [states[tap].hidden for tap in range(decoder.num_blocks)]
    with torch.enable_grad(), text_pass(decoder.model):
        probe = (features.float() * weights).sum()
        gradients = torch.autograd.grad(probe, hidden, allow_unused=True)
    dead = [tap for tap, grad in enumerate(gradients) if grad is None or not grad.any()]
    if dead:
        raise unbindable(
            decoder.model,
            "the output's gradient does not reach every block",
            f"gradients in blocks 0 to {decoder.num_blocks - 1}",
            found=f"none in {', '.join(map(str, dead))}",
        )


def _run(
    decoder: Decoder, inputs: dict[str, Tensor], positions: Tensor, *, graph: bool
) -> tuple[dict[int, TapState], Tensor, dict[int, Tensor]]:
    """States of all blocks, features, and what entered each block."""
    entered: dict[int, Tensor] = {}

    def note(index: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [
        block.register_forward_pre_hook(note(index), with_kwargs=True)
        for index, block in enumerate(decoder.blocks)
    ]
    if graph:  # also where all weights are frozen
        embedding: Any = decoder.model.get_input_embeddings()
        hooks.append(embedding.register_forward_hook(lambda _, __, out: _in_graph(out)))
    every = range(decoder.num_blocks)
    with removing(hooks), torch.set_grad_enabled(graph), text_pass(decoder.model):
        states, features = run_backbone(decoder, every, inputs, positions)
    return states, features, entered


def _in_graph(embedded: Tensor) -> Tensor:
    if embedded.requires_grad:
        return embedded
    return embedded.requires_grad_(True).clone()  # families may write into what they embedded


def _validate_taps(
    decoder: Decoder, states: Mapping[int, TapState], entered: Mapping[int, Tensor]
) -> None:
    for tap in range(decoder.num_blocks):
        shape = tuple(states[tap].hidden.shape[2:])
        if shape != (decoder.hidden_size,):
            raise unbindable(
                decoder.model,
                f"block {tap} does not give one vector a token",
                f"hidden states [B, T, {decoder.hidden_size}]",
                found=f"[B, T, {', '.join(map(str, shape))}]",
            )
        if tap + 1 < decoder.num_blocks and not torch.equal(
            states[tap].hidden.to(entered[tap + 1].device), entered[tap + 1]
        ):
            raise unbindable(
                decoder.model,
                f"block {tap + 1} does not read what block {tap} gives",
                "blocks that read one another's output",
            )


def _agree(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and _distance(left, right) <= _allowed(left, right)


def _allowed(left: Tensor, right: Tensor) -> float:
    coarsest = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps)
    return max(_ROUNDINGS * coarsest, _TOLERANCE)


def _distance(left: Tensor, right: Tensor) -> float:
    """Relative difference of two logits or features, up to what a softmax does not see."""
    left, right = left.detach().float(), right.detach().float().to(left.device)
    left, right = (value - value.mean(-1, keepdim=True) for value in (left, right))
    return float((left - right).norm() / right.norm().clamp(min=1e-12))


def _difference(left: Tensor, right: Tensor) -> str:
    return f"a difference of {_distance(left, right):.1%} of the logits"
