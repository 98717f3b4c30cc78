"""``Decoder``: one view of any model's blocks, final norm and head.

Shape suffixes: B batch, T sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.models.binding.head import Head
from vlsi_cache.models.places.devices import device_of

__all__ = ["Decoder"]


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
    maps: tuple[str, ...] | None = None
    """Names of the blocks' linear maps, where another process holds the weights that show them."""

    @property
    def is_empty(self) -> bool:
        """Whether another process holds the weights. Here they have shapes and no values."""
        return self.maps is not None

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
    def input_device(self) -> torch.device:
        """Device that the model's inputs go to: the embedding's."""
        untyped: Any = self.model
        return device_of(untyped.get_input_embeddings())

    @property
    def has_final_norm(self) -> bool:
        """Whether the family has a norm after its last block."""
        return not isinstance(self.final_norm, nn.Identity)

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: tower, projector and body. It takes the same inputs.

        A few families have no such module (Llama 4). Then it is the whole model.
        """
        backbone: nn.Module = self.model.base_model
        return backbone

    @property
    def backbone_runs_final_norm(self) -> bool:
        """Whether a pass of the backbone calls the final norm. Some families call it later."""
        return any(part is self.final_norm for part in self.backbone.modules())

    def features(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to a hidden state, [*, D] to [*, D] on the head's device."""
        features: Tensor = self.final_norm(hidden.to(device_of(self.final_norm, hidden.device)))
        return features.to(self.head.weight.device)
