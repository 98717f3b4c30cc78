"""One view of any model: its blocks, final norm and head, found by tracing the model.

Shape suffixes: B batch, T sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.models.head import Head
from vlsi_cache.models.loading import text_config
from vlsi_cache.models.norm_and_head import find_norm_and_head
from vlsi_cache.models.trace import trace_blocks, unbindable, undisturbed

__all__ = ["Decoder", "bind_decoder"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model, or the language side of an image-text-to-text model.

    Nothing is copied. The parts are the model's own modules, so that this view also sees adapters
    injected later and weights trained later.
    """

    model: PreTrainedModel
    """The whole model."""
    body: nn.Module
    """The module that runs the blocks."""
    blocks: nn.ModuleList
    """The decoder blocks in order."""
    final_norm: nn.Module
    """The norm after the last block, or `nn.Identity` if the family has none."""
    head: Head
    """Output embedding and logit transform."""

    @property
    def num_blocks(self) -> int:
        """Number of blocks, each of which can be a tap."""
        return len(self.blocks)

    @property
    def num_weights(self) -> int:
        """Number of weights in the blocks. Embeddings are not among them."""
        return sum(parameter.numel() for parameter in self.blocks.parameters())

    @property
    def hidden_size(self) -> int:
        """D, the width of the blocks' output."""
        return self.head.weight.shape[1]

    @property
    def has_final_norm(self) -> bool:
        """Whether the family has a norm after its last block."""
        return not isinstance(self.final_norm, nn.Identity)

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: tower, projector and body. It takes the same inputs."""
        backbone: nn.Module = self.model.base_model
        return backbone

    def features(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to a hidden state, [*, D] to [*, D]."""
        features: Tensor = self.final_norm(hidden)
        return features


def bind_decoder(model: PreTrainedModel) -> Decoder:
    """Find the blocks, the final norm and the head of a model, without a list of model names.

    Two forward passes over five text tokens find the parts. They also validate that
    `head(final_norm(last hidden))` equals the model's own logits. Mode, gradients and random
    state of the model stay as they were.

    Raises:
        ModelError: the model is an encoder-decoder. Or it has no output embeddings, no list of
            blocks, or no module that takes the last block's output. Or something between the
            final norm and the logits is neither a scale nor a soft-cap.
    """
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise unbindable(model, "is an encoder-decoder", "a decoder that reads prompt and response")
    output = _output_embeddings(model)
    body: nn.Module = _untyped(model).get_decoder()
    blocks = _find_blocks(model, body, getattr(config, "num_hidden_layers", None))
    with undisturbed(model):
        trace = trace_blocks(model, blocks, output)
        final_norm, head = find_norm_and_head(model, output, trace)
    return Decoder(model, body, blocks, final_norm, head)


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


def _find_blocks(model: PreTrainedModel, body: nn.Module, num_blocks: int | None) -> nn.ModuleList:
    """The outermost list of modules under `body` with as many as the configuration says."""
    lists = [(name, part) for name, part in body.named_modules() if isinstance(part, nn.ModuleList)]
    # Lists nested in a block (experts) can have the same length, but they lie deeper.
    lists.sort(key=lambda item: item[0].count("."))
    for _, part in lists:
        if len(part) == num_blocks:
            return part
    lengths = ", ".join(f"{name} ({len(part)})" for name, part in lists) or "no list of modules"
    raise unbindable(
        model,
        "decoder blocks were not found",
        f"a list of {num_blocks} modules (num_hidden_layers) in {type(body).__name__}",
        found=lengths,
    )
