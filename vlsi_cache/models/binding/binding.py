"""Binding: a model's blocks, final norm and head, found by tracing it and then proved."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.models.binding.norm_and_head import find_norm_and_head
from vlsi_cache.models.binding.proof import validate_gradients, validate_passes
from vlsi_cache.models.binding.trace import trace_blocks, unbindable, undisturbed
from vlsi_cache.models.decoder import Decoder
from vlsi_cache.models.loading.configs import text_config

__all__ = ["bind_decoder"]


def bind_decoder(model: PreTrainedModel, *, learns: bool = True) -> Decoder:
    """Find the blocks, the final norm and the head of a model, without a list of model names.

    Two forward passes over twelve text tokens find the parts. A third is the pass that dump and
    training use, on a padded batch, and its logits must be the model's own. Mode, gradients and
    random state of the model stay as they were.

    Args:
        model: a loaded model.
        learns: whether its blocks may train. Then one backward pass proves that they can.

    Raises:
        ModelError: the model is an encoder-decoder, or reads later tokens. It has no output
            embeddings, no list of blocks, or no module that takes the last block's output.
            Something between the final norm and the logits is neither a scale nor a soft-cap.
            Padding changes its logits, or no gradient reaches a block.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise unbindable(model, "is an encoder-decoder", "a decoder that reads prompt and response")
    output = _output_embeddings(model)
    body, blocks = _find_blocks(model)
    with undisturbed(model):
        trace = trace_blocks(model, blocks, output)
        final_norm, head = find_norm_and_head(model, output, trace)
        decoder = Decoder(model, body, blocks, final_norm, head)
        states = validate_passes(decoder, trace, graph=learns)
        if learns:
            validate_gradients(decoder, *states)
    return decoder


def _untyped(model: PreTrainedModel) -> Any:
    """The model, for calls that transformers leaves without types."""
    return model


def _output_embeddings(model: PreTrainedModel) -> Any:
    output = _untyped(model).get_output_embeddings()
    weight = getattr(output, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        found = "none" if output is None else type(output).__name__
        raise unbindable(
            model, "output embeddings were not found", "a linear map [V, D]", found=found
        )
    return output


def _find_blocks(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder, and the outermost list in it with as many modules as the configuration says."""
    body: nn.Module = _untyped(model).get_decoder()
    if not any(isinstance(part, nn.ModuleList) for part in body.modules()):
        body = model.base_model  # some families call their head "decoder"
    lists = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.ModuleList)]
    # Lists nested in a block (experts) can have the same length, but they lie deeper.
    lists.sort(key=lambda item: item[0].count("."))
    num_blocks = _num_blocks(model)
    for _, part in lists:
        if len(part) == num_blocks:
            return body, part
    lengths = ", ".join(f"{name} ({len(part)})" for name, part in lists[:4]) or "no list of modules"
    raise unbindable(
        model,
        "decoder blocks were not found",
        f"a list of {num_blocks} modules (num_hidden_layers) in {type(body).__name__}",
        found=lengths,
    )


def _num_blocks(model: PreTrainedModel) -> int | None:
    config = text_config(model)
    # Halves of encoder-decoders count their encoder as num_hidden_layers.
    found: int | None = getattr(config, "decoder_layers", None)
    return found or getattr(config, "num_hidden_layers", None)
