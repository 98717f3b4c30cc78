"""Bytes that follow from counts, each with its formula.

Letters: P parameters, D hidden size, V vocabulary, L taps with the output, N response tokens of a
batch, B samples of a batch, T positions, s bytes of a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlsi_cache.models import Backbone
from vlsi_cache.objectives import tiles
from vlsi_cache.recipe import CacheSection
from vlsi_cache.sampling import chunk_elements, streamed_tokens

__all__ = [
    "ACCELERATOR",
    "USABLE",
    "broadcast_bytes",
    "bucket_bytes",
    "bytes_per_token_and_tap",
    "gradient_bytes",
    "optimizer_bytes",
    "record_bytes",
    "tensor_bytes",
    "tile_bytes",
    "vision_bytes",
]

ACCELERATOR: Final = torch.device("cuda")
"""The device that a plan counts on where the recipe does not say ``cpu``."""
USABLE: Final = 0.92
"""Share of a device's memory that a stage may fill. The rest goes to the driver's context, the
libraries' workspaces and gaps between allocations."""

_BROADCAST_BYTES: Final = 250 * 2**20

_FIXED_BYTES: Final = 2.9
_DRAW_BYTES: Final = 0.58
_TOP_BYTES: Final = 2.6
_LONE_DRAW_BYTES: Final = 1.65
_TOGETHER_TOP_BYTES: Final = 1.1
_TOGETHER_DRAW_BYTES: Final = 0.47


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return P · s, summed over tensors. A tensor that is named twice counts once, and
    of a sliced one, the slice.
    """
    own = {id(one): one.to_local() if isinstance(one, DTensor) else one for one in tensors}
    sizes = {key: one.numel() * one.element_size() for key, one in own.items()}
    return sum(sizes.values())


def gradient_bytes(trained: Iterable[nn.Parameter]) -> int:
    """Return P · s: a gradient has the shape and the dtype of its parameter, float32 here."""
    return tensor_bytes(trained)


def optimizer_bytes(trained: Iterable[nn.Parameter]) -> int:
    """Return 2 · P · s: AdamW keeps the running means of the gradient and of its square.

    Weights that train are float32, so they are their own masters, and there is no further copy.
    """
    return 2 * tensor_bytes(trained)


def bucket_bytes(trained: Iterable[nn.Parameter], num_processes: int) -> int:
    """Return P · s with several processes, where DDP copies gradients to send them. Otherwise 0."""
    return tensor_bytes(trained) if num_processes > 1 else 0


def broadcast_bytes(tensors: Iterable[Tensor], num_processes: int) -> int:
    """Return min(P · s, 250 MiB) with several processes: DDP's first copy of what it sends.

    A tensor that is larger is sent alone. With one process there is none.
    """
    sizes = [one.numel() * one.element_size() for one in tensors]
    if num_processes == 1 or not sizes:
        return 0
    return min(sum(sizes), max(_BROADCAST_BYTES, *sizes))


def tile_bytes(
    num_responses: int, num_taps: int, vocab_size: int, device: torch.device, logit_bytes: int = 2
) -> int:
    """Return what the objective's and the recorder's buffers take on a device.

    On a CPU the objective holds two planes of n · v float32 for one tile, with n ≤ N tokens and
    v ≤ V vocabulary entries. A GPU's kernels hold n whole rows, in float32 and in bfloat16. The
    recorder holds L · n · V float32 logits of n ≤ N tokens at once, and three planes of n · V for
    the draws. A GPU's kernels hold two planes of more tokens, in the head's dtype. The larger
    counts.

    Args:
        num_responses: N.
        num_taps: L, or 0 where nothing is recorded.
        vocab_size: V.
        device: the device.
        logit_bytes: bytes of a number of the head.
    """
    if num_taps:
        tokens = min(num_responses, max(1, chunk_elements(device) // (vocab_size * num_taps)))
        planes = 4 * tokens * vocab_size * (num_taps + 3)
        if device.type == "cpu":
            return planes
        streamed = min(num_responses, streamed_tokens(vocab_size)) * vocab_size
        return max(planes, 2 * logit_bytes * streamed)
    if device.type != "cpu":
        rows = min(num_responses, tiles.chunk_tokens(vocab_size, device))
        return (4 + 2) * rows * vocab_size
    rows, columns = tiles.tile_shape(device)
    return 2 * 4 * min(num_responses, rows) * min(vocab_size, columns)


def vision_bytes(backbone: Backbone, num_patches: int, *, keeps_all: bool) -> int:
    """Return what the parts outside the decoder hold while they read pictures.

    Each linear map keeps its input and its output for the backward pass: Σ (in + out) · s for each
    patch, with the sum over all maps outside the blocks and the head. Without a backward pass, only
    one of the tower's blocks is alive.

    Args:
        backbone: the model.
        num_patches: patches of a batch's pictures.
        keeps_all: whether the backward pass needs all of it.
    """
    decoder = backbone.decoder
    inside = {id(part) for part in decoder.body.modules()}
    widths = [
        part.in_features + part.out_features
        for part in decoder.model.modules()
        if isinstance(part, nn.Linear)
        and id(part) not in inside
        and part.weight is not decoder.head.weight
    ]
    if not widths:
        return 0
    total = sum(widths) if keeps_all else 4 * max(widths)
    return num_patches * total * decoder.head.weight.element_size()


def bytes_per_token_and_tap(settings: CacheSection) -> float:
    """Return the measured size of a record, for each response token and tap.

    Draws alone: 2.9 + 0.58 · m, from caches of SmolLM2-135M with 8 to 16 draws. With k ≥ 1, draws
    are not shared between taps: 2.9 + 2.6 · k + 1.65 · m. With draws from the whole, ids are
    shared and the k take the place of some draws: 2.9 + 1.1 · k + 0.47 · m. docs/benchmarks.md
    has the measurements.
    """
    if settings.drawn_from == "whole":
        likely = _TOGETHER_TOP_BYTES * settings.k
        return _FIXED_BYTES + likely + _TOGETHER_DRAW_BYTES * settings.m
    if settings.k == 0:
        return _FIXED_BYTES + _DRAW_BYTES * settings.m
    return _FIXED_BYTES + _TOP_BYTES * settings.k + _LONE_DRAW_BYTES * settings.m


def record_bytes(settings: CacheSection, num_tokens: int, num_taps: int, num_signs: int) -> int:
    """Return the bytes of the records of N tokens at L taps.

    They are N · L · (bytes per token and tap), and an eighth for each sign of a hidden state.
    """
    each = num_taps * bytes_per_token_and_tap(settings) + num_signs / 8
    return round(num_tokens * each)
