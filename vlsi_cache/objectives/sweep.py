"""One pass over the vocabulary: log-probabilities at chosen tokens, with their gradient.

For logits z and q = softmax(z), ``∂ log q_i / ∂z = e_i − q``. So whatever is computed from the
log-probabilities at some ids has, with ``g_i`` its derivative by ``log q_i``, the gradient
``Σ_i g_i W[id_i] − (Σ_i g_i) · E_q[W]`` towards the features. ``E_q[W]`` and the log-sum-exp do not
depend on the ids: one sweep serves every candidate target, and which of them is matched may be
decided afterwards.

The sweep goes tile by tile with a running maximum, as an online softmax does: no logits outlive
their tile, none are computed twice.

Shape suffixes: N tokens, D hidden size, V vocabulary, C candidates, S entries of one candidate,
E = C · S entries of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives import tiles
from vlsi_cache.objectives.lookup import lookup_for

__all__ = ["Entries", "Sweep", "sweep_head"]


@dataclass(frozen=True, slots=True)
class Entries:
    """What a sweep knows of the ids it was asked about; all fields share one shape."""

    token_ids: Tensor
    """long."""
    log_probs: Tensor
    """log q, nats, float32."""
    slopes: Tensor
    """Slope of the head's logit transform there."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Entries:
        """The same change of shape for every field."""
        return Entries(change(self.token_ids), change(self.log_probs), change(self.slopes))


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one pass of N tokens over the vocabulary leaves behind."""

    features: Tensor
    """``[N, D]``, the swept hidden states, with their graph."""
    head: Head
    """The head they were swept through, real tokens only."""
    entries: Entries
    """``[N, C, S]``, at the candidates' ids."""
    expectation: Tensor
    """``[N, D]``, ``E_q[∂z/∂features]``, float32."""

    def log_probs(self) -> Tensor:
        """Log q at every candidate's ids, ``[N, C, S]`` nats, differentiable."""
        return self._differentiable(self.entries)

    def matched_log_probs(self, candidate: Tensor) -> Tensor:
        """Log q at the ids of each token's own candidate, ``[N, 1, S]`` nats, differentiable.

        Args:
            candidate: ``[N]`` long.
        """
        entry = candidate[:, None, None].expand(-1, 1, self.entries.token_ids.shape[2])
        return self._differentiable(self.entries.map(lambda value: value.gather(1, entry)))

    def _differentiable(self, entries: Entries) -> Tensor:
        flat = entries.map(lambda value: value.flatten(1))
        log_probs: Tensor = _ChosenLogProbs.apply(
            self.features,
            flat.log_probs,
            flat.token_ids,
            flat.slopes,
            self.expectation,
            self.head.weight,
        )
        return log_probs.view(entries.token_ids.shape)


def sweep_head(features: Tensor, head: Head, token_ids: Tensor, vocab_size: int) -> Sweep:
    """Read ``features`` through a frozen head once, for every candidate.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: it gets no gradient.
        token_ids: ``[N, C, S]`` long, below ``vocab_size``.
        vocab_size: V, rows of the head that are real tokens; padded rows never enter.
    """
    real = head.cut(vocab_size)
    size, _ = tiles.tile_shape(features.device)
    # its products are wide by intent, which autocast would undo
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        blocks = [
            _Block(features[part], real, token_ids[part].flatten(1))
            for part in tiles.chunks(len(features), size)
        ] or [_Block(features, real, token_ids.flatten(1))]
        return Sweep(
            features=features,
            head=real,
            entries=_joined([block.entries() for block in blocks]).map(
                lambda value: value.view(token_ids.shape)
            ),
            expectation=torch.cat([block.expectation() for block in blocks]),
        )


class _Block:
    """The running sums of some tokens over the vocabulary, complete once constructed."""

    def __init__(self, features_ND: Tensor, head: Head, ids_NE: Tensor) -> None:
        self.head, self.ids_NE = head, ids_NE
        self.operand = tiles.operand_dtype(head.weight)
        dtype = tiles.accumulator(head.weight.dtype)
        num_tokens, device = len(features_ND), features_ND.device
        self.lookup = lookup_for(device)(ids_NE)
        self.highest_N = torch.full((num_tokens,), -torch.inf, dtype=dtype, device=device)
        self.total_N = torch.zeros(num_tokens, dtype=dtype, device=device)
        self.sum_ND = torch.zeros(features_ND.shape, dtype=dtype, device=device)
        self.logits_NE = torch.zeros(ids_NE.shape, dtype=dtype, device=device)
        for rows in tiles.chunks(head.num_rows, tiles.tile_shape(device)[1]):
            self._add(features_ND, rows)

    def _add(self, features_ND: Tensor, rows: slice) -> None:
        weight_VD, transform = self.head.weight[rows], self.head.transform
        tile_NV = tiles.wide_product(features_ND, weight_VD.T, self.operand)
        if self.head.bias is not None:
            tile_NV += self.head.bias[rows]
        tile_NV = transform.apply(tile_NV)
        self.lookup.collect(rows, tile_NV, self.logits_NE)
        slope_NV = None if transform.is_identity else transform.derivative(tile_NV)
        decay_N1 = self._raise_highest(tile_NV)
        tile_NV.sub_(self.highest_N[:, None]).exp_()
        self.total_N.mul_(decay_N1[:, 0]).add_(tile_NV.sum(1))
        if slope_NV is not None:
            tile_NV *= slope_NV
        tile_NV = tile_NV.to(self.operand)
        self.sum_ND.mul_(decay_N1)
        if self.operand == weight_VD.dtype == self.sum_ND.dtype:
            self.sum_ND.addmm_(tile_NV, weight_VD)
        else:
            self.sum_ND += tiles.wide_product(tile_NV, weight_VD, self.operand)

    def _raise_highest(self, tile_NV: Tensor) -> Tensor:
        """Take a tile into the running maximum; gives the factor ``[N, 1]`` of all sums so far."""
        highest_N = torch.maximum(self.highest_N, tile_NV.amax(1))
        decay_N1 = (self.highest_N - highest_N).exp_()[:, None]
        self.highest_N = highest_N
        return decay_N1

    def entries(self) -> Entries:
        log_probs_NE = self.logits_NE - (self.highest_N + self.total_N.log())[:, None]
        slopes_NE = self.head.transform.derivative(self.logits_NE)
        return Entries(self.ids_NE, log_probs_NE, slopes_NE)

    def expectation(self) -> Tensor:
        return self.sum_ND / self.total_N[:, None]


def _joined(blocks: Sequence[Entries]) -> Entries:
    if len(blocks) == 1:
        return blocks[0]
    return Entries(
        torch.cat([block.token_ids for block in blocks]),
        torch.cat([block.log_probs for block in blocks]),
        torch.cat([block.slopes for block in blocks]),
    )


class _ChosenLogProbs(torch.autograd.Function):
    """log q at chosen ids, known already, with the gradient of the module's docstring."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, features, log_probs, token_ids, slopes, expectation, weight
    ):
        ctx.save_for_backward(token_ids, slopes, expectation, weight)
        ctx.features_dtype = features.dtype
        return log_probs.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NE):  # type: ignore[no-untyped-def]
        token_ids, slopes, expectation, weight = ctx.saved_tensors
        total_N1 = grad_NE.sum(1, keepdim=True)
        with torch.autocast(weight.device.type, enabled=False):
            gradient = _weighted_rows(weight, token_ids, grad_NE * slopes).addcmul_(
                total_N1, expectation, value=-1.0
            )
        return gradient.to(ctx.features_dtype), None, None, None, None, None


def _weighted_rows(weight: Tensor, token_ids: Tensor, factors: Tensor) -> Tensor:
    """``Σ_e factors[n, e] · weight[token_ids[n, e]]``, ``[N, D]`` in the factors' dtype."""
    num_tokens, num_entries = token_ids.shape
    result = factors.new_empty(num_tokens, weight.shape[1])
    size = tiles.gathered_rows(weight.device, num_entries * weight.shape[1])
    for part in tiles.chunks(num_tokens, size):
        rows_NED = weight[token_ids[part]].to(factors.dtype)
        result[part] = torch.bmm(factors[part, None], rows_NED)[:, 0]
    return result
