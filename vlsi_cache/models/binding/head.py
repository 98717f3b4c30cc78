"""The head: from final features to logits, with the model's own transform after the product.

Shape suffixes: D hidden size, V vocabulary, * any leading shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Head", "LogitTransform", "aligned_width"]

_ALIGNED: Final = 64
"""A GPU's matrix units want sizes that are multiples of 16 bytes, and are best at a cache line's.
With the 151,643 rows of Qwen's real tokens, a product took 11.1 ms on an H100, and 1.5 ms with
151,936."""


def aligned_width(num_rows: int) -> int:
    """Return the least such multiple that holds some rows of a head."""
    return -(-num_rows // _ALIGNED) * _ALIGNED


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """The step from the head's raw product to logits: a scale, then a soft-cap.

    Both act element by element and grow monotonically, so they keep the order of tokens.
    """

    scale: float = 1.0
    """Factor on the raw product (Cohere's `logit_scale`, the inverse of Granite's
    `logits_scaling`)."""
    softcap: float | None = None
    """Bound c of `c * tanh(x / c)` on the scaled product (Gemma 2), or None for no bound."""

    @property
    def is_identity(self) -> bool:
        """Whether the raw product already is the logits."""
        return self.scale == 1.0 and self.softcap is None

    def apply(self, raw: Tensor) -> Tensor:
        """Turn the raw product into logits, both [*] of any shape."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        if self.softcap is None:
            return scaled
        return torch.tanh(scaled / self.softcap) * self.softcap

    def derivative(self, logits: Tensor) -> Tensor:
        """Slope d logits / d raw, element by element, from the logits themselves [*].

        With z = c · tanh(x / c), the slope is 1 − tanh² = 1 − (z / c)². So the raw product need not
        be kept.
        """
        if self.softcap is None:
            return torch.full_like(logits, self.scale)
        return (1.0 - (logits / self.softcap).square()) * self.scale


@dataclass(frozen=True, slots=True)
class Head:
    """The model's own output embedding, shared with the model and never copied.

    The rows may outnumber the tokenizer's ids, as padding for hardware. ``real_rows`` leaves
    padding out, so that it never enters a softmax.
    """

    weight: Tensor
    """[V, D], the model's parameter itself, or a view of its first rows."""
    bias: Tensor | None = None
    """[V], or None."""
    transform: LogitTransform = LogitTransform()
    padding: int = 0
    """Rows of the model's parameter that follow those of `weight` in memory."""

    @property
    def num_rows(self) -> int:
        """V, the rows of the weight."""
        return self.weight.shape[0]

    def real_rows(self, vocab_size: int) -> Head:
        """The head of the first `vocab_size` rows, as views.

        A `vocab_size` beyond the rows gives all rows. Some tokenizers know placeholder tokens
        that the head cannot produce.
        """
        if vocab_size >= self.num_rows:
            return self  # a view of all rows would cost its gradient a copy
        bias = None if self.bias is None else self.bias[:vocab_size]
        padding = self.padding + self.num_rows - vocab_size
        return Head(self.weight[:vocab_size], bias, self.transform, padding)

    def to_autocast(self) -> Head:
        """The head in autocast's dtype if autocast is on, and as it is otherwise.

        Autocast keeps its casts of parameters, but casts a view of one again at every product.
        Code that multiplies with the head several times casts it once, by this. Padding is not
        cast: where it is wanted, `real_rows` comes after this.
        """
        if not torch.is_autocast_enabled(self.weight.device.type):
            return self
        dtype = torch.get_autocast_dtype(self.weight.device.type)
        if dtype == self.weight.dtype:
            return self
        bias = None if self.bias is None else self.bias.to(dtype)
        return Head(self.weight.to(dtype), bias, self.transform)

    def aligned_weight(self) -> Tensor:
        """The weight with rows of padding, [W, D], where W is `aligned_width` of V.

        The padding is finite. It is the model's own where there is enough, so that nothing is
        copied. Gradients do not pass.
        """
        weight = self.weight.detach()
        missing = aligned_width(self.num_rows) - self.num_rows
        if missing <= self.padding:
            shape = self.num_rows + missing, weight.shape[1]
            return weight.as_strided(shape, weight.stride())
        return F.pad(weight, (0, 0, 0, missing))

    def padded(self) -> Head:
        """The head with padding enough for `aligned_weight` to copy nothing, then or later."""
        whole = self.aligned_weight()
        padding = len(whole) - self.num_rows
        return Head(whole[: self.num_rows], self.bias, self.transform, padding)

    def raw(self, features: Tensor) -> Tensor:
        """The product before the transform, [*, V], from final features [*, D]."""
        features = features.to(self.weight.device, self.weight.dtype)
        if not self._needs_alignment(features):
            return F.linear(features, self.weight, self.bias)
        product = F.linear(features, self.aligned_weight())[..., : self.num_rows]
        return product if self.bias is None else product + self.bias

    def logits(self, features: Tensor) -> Tensor:
        """The model's logits [*, V] in the head's dtype, from final features [*, D]."""
        return self.transform.apply(self.raw(features))

    def _needs_alignment(self, features: Tensor) -> bool:
        """Whether a GPU would multiply slowly, and no gradient is wanted."""
        if self.weight.device.type != "cuda" or self.num_rows == aligned_width(self.num_rows):
            return False
        wants_gradient = features.requires_grad or self.weight.requires_grad
        return not (wants_gradient and torch.is_grad_enabled())
