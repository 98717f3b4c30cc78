"""The pass that dump and training use: a model without its head, with its taps captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from vlsi_cache.errors import first_line
from vlsi_cache.models.binding.taps import TapState, capture_taps
from vlsi_cache.models.binding.trace import removing, unbindable
from vlsi_cache.models.decoder import Decoder

__all__ = ["run_backbone"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHAPES: Final = (
    "Image features and image tokens do not match",
    "must match the size of tensor",
    "shapes cannot be multiplied",
    "is invalid for input of size",
    "expected input",
)
"""What models and torch say of pixels in other shapes than the model's own."""


def run_backbone(
    decoder: Decoder, taps: Sequence[int], inputs: Mapping[str, Tensor], positions: Tensor
) -> tuple[dict[int, TapState], Tensor]:
    """Run a model without its head.

    Args:
        decoder: view of the model.
        taps: block indices.
        inputs: inputs of the model's forward.
        positions: ``[N]`` long, flat indices into ``B × T``.

    Returns:
        The state of each tap on its own device, and the features ``[N, D]`` after the final norm
        on the head's.

    Raises:
        ModelError: the model does not take the pixels of its processor.
    """
    with (
        capture_taps(decoder, taps) as capture,
        _without_logits(decoder),
        _plain_pixel_errors(decoder, inputs),
    ):
        decoder.backbone(**_prepared(decoder, inputs), use_cache=False)
    features = capture.features.flatten(0, 1)
    read = features[positions.to(features.device)].to(decoder.head.weight.device)
    return dict(capture.states), read


def _prepared(decoder: Decoder, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs on the embedding's device, and pixels in the model's dtype.

    The processor gives pixels in its own dtype, and some towers take no other than the model's.
    """
    dtype, device = decoder.model.dtype, decoder.input_device
    return {
        name: value.to(device, dtype)
        if value.is_floating_point() and dtype in _DTYPES
        else value.to(device)
        for name, value in inputs.items()
    }


@contextmanager
def _plain_pixel_errors(decoder: Decoder, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise a ``ModelError`` where a model's tower does not take the pixels that it is given."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        has_pixels = any(value.is_floating_point() for value in inputs.values())
        if not has_pixels or not any(words in str(error) for words in _SHAPES):
            raise
        raise unbindable(
            decoder.model,
            "the model does not take the images as its processor prepares them",
            "patches and sizes of the model's own vision tower",
            found=first_line(error),
            mend="Take the processor that was published with the model, and no options that "
            "change patches or tokens of an image (teacher.processor, student.processor)",
        ) from error


@contextmanager
def _without_logits(decoder: Decoder) -> Iterator[None]:
    """Where the backbone is the whole model (Llama 4), give its head one position of each row.

    Logits of every position would be B × T × V numbers that nobody reads.
    """
    output: Any = decoder.model.get_output_embeddings()
    inside = any(part is output for part in decoder.backbone.modules())
    with removing([output.register_forward_pre_hook(_keep_first)] if inside else []):
        yield


def _keep_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0][:, :1], *args[1:]
