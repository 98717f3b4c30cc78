"""The head: from final features to logits, with whatever the model does after the product.

Shape suffixes: D hidden size, V vocabulary, * any leading shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Head", "LogitTransform"]


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What turns the head's raw product into logits: a scale, then a soft-cap.

    Both act element by element and grow monotonically, so they keep the order of tokens.
    """

    scale: float = 1.0
    """Factor on the raw product (Cohere's `logit_scale`, the inverse of Granite's
    `logits_scaling`)."""
    softcap: float | None = None
    """Bound c of `c * tanh(x / c)` on the scaled product (Gemma 2); None for no bound."""

    @property
    def is_identity(self) -> bool:
        """Whether the raw product already is the logits."""
        return self.scale == 1.0 and self.softcap is None

    def apply(self, raw: Tensor) -> Tensor:
        """Logits of the raw product, both [*] of any shape."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        if self.softcap is None:
            return scaled
        return torch.tanh(scaled / self.softcap) * self.softcap

    def derivative(self, logits: Tensor) -> Tensor:
        """Slope d logits / d raw, element by element, computed from the logits themselves [*].

        Saves keeping the raw product: 1 - tanh² is known from the transformed value.
        """
        if self.softcap is None:
            return torch.full_like(logits, self.scale)
        return (1.0 - (logits / self.softcap).square()) * self.scale


@dataclass(frozen=True, slots=True)
class Head:
    """The model's own output embedding, shared with the model and never copied.

    The rows may outnumber the tokenizer's ids (padding for hardware); callers pass the
    tokenizer's size, so that padded rows never enter a softmax.
    """

    weight: Tensor
    """[V_padded, D]; the model's parameter itself."""
    bias: Tensor | None = None
    """[V_padded], or None."""
    transform: LogitTransform = LogitTransform()

    @property
    def num_rows(self) -> int:
        """V_padded, the rows of the weight."""
        return self.weight.shape[0]

    def rows(self, vocab_size: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the first `vocab_size` rows, as views.

        A `vocab_size` beyond the rows gives all rows: some tokenizers know placeholder tokens
        that the head cannot produce.
        """
        if vocab_size is None or vocab_size >= self.num_rows:
            return self.weight, self.bias  # a view of all rows would cost its gradient a copy
        return self.weight[:vocab_size], None if self.bias is None else self.bias[:vocab_size]

    def cut(self, vocab_size: int) -> Head:
        """The head of real tokens only, in autocast's dtype where that is on.

        A view of a parameter is cast anew at every product under autocast; whoever goes over the
        vocabulary in chunks cuts once and saves that.
        """
        weight, bias = self.rows(vocab_size)
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return Head(weight, bias, self.transform)

    def raw(self, features: Tensor, vocab_size: int | None = None) -> Tensor:
        """The product before the transform, [*, V], for final features [*, D]."""
        weight, bias = self.rows(vocab_size)
        return F.linear(features.to(weight.dtype), weight, bias)

    def logits(self, features: Tensor, vocab_size: int | None = None) -> Tensor:
        """The model's logits [*, V] in the head's dtype, for final features [*, D]."""
        return self.transform.apply(self.raw(features, vocab_size))
