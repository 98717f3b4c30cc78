"""One pass over the vocabulary: log-probabilities at chosen tokens, with their gradient.

For logits z and q = softmax(z), ``∂ log q_i / ∂z = e_i − q``. Take any loss of the
log-probabilities at some ids, with ``g_i`` its derivative by ``log q_i``. Its gradient towards the
features is ``Σ_i g_i W[id_i] − (Σ_i g_i) · E_q[W]``. ``E_q[W]`` and the log-sum-exp do not depend
on the ids, so one sweep serves every candidate target. Which of them is matched may be decided
afterwards.

The sweep goes tile by tile with a running maximum, as an online softmax does. No logits outlive
their tile, and none are computed twice. On a GPU the tiles are whole rows of some tokens.

Shape suffixes: N tokens, D hidden size, V vocabulary entries of one tile, C candidates, S entries
of one candidate, E = C · S entries of all candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vlsi_cache.models import Head
from vlsi_cache.objectives import fused, tiles
from vlsi_cache.objectives.lookup import lookup_for

__all__ = ["Entries", "Sweep", "frozen_head", "sweep_head"]


@dataclass(frozen=True, slots=True)
class Entries:
    """Values at the chosen ids. All fields share one shape."""

    token_ids: Tensor
    """The chosen ids, long."""
    log_probs: Tensor
    """log q at the ids, nats, float32."""
    slopes: Tensor
    """Slope of the head's logit transform at the ids."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Entries:
        """Apply the same change of shape to every field."""
        return Entries(change(self.token_ids), change(self.log_probs), change(self.slopes))


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of one pass of N tokens over the vocabulary."""

    features: Tensor
    """``[N, D]``, the swept hidden states, with their graph."""
    head: Head
    """The head of the sweep, in the dtype that the sweep read it in."""
    entries: Entries
    """``[N, C, S]``, at the candidates' ids."""
    expectation: Tensor
    """``[N, D]``, ``E_q[∂z/∂features]``, float32."""

    def log_probs(self) -> Tensor:
        """Log q at every candidate's ids, ``[N, C, S]`` nats, differentiable."""
        return self._differentiable(self.entries)

    def matched_log_probs(self, candidate: Tensor) -> Tensor:
        """Log q at the ids of one candidate per token, ``[N, 1, S]`` nats, differentiable.

        Args:
            candidate: ``[N]`` long, each token's candidate.
        """
        entry = candidate[:, None, None].expand(-1, 1, self.entries.token_ids.shape[2])
        return self._differentiable(self.entries.map(lambda value: value.gather(1, entry)))

    def _differentiable(self, entries: Entries) -> Tensor:
        flat = entries.map(lambda value: value.flatten(1))
        log_probs: Tensor = _ChosenLogProbs.apply(
            self.features, flat, self.expectation, self.head.weight
        )
        return log_probs.view(entries.token_ids.shape)


def frozen_head(head: Head, vocab_size: int) -> Head:
    """Return the head that several sweeps read: in autocast's dtype, and without padded rows.

    Casts and what kernels need as padding are copies, so they are made once. It gets no gradient.
    """
    real = head.to_autocast().real_rows(vocab_size)
    return real.padded() if fused.serves(real) else real


def sweep_head(features: Tensor, head: Head, token_ids: Tensor) -> Sweep:
    """Read ``features`` through a frozen head once, for every candidate.

    Args:
        features: ``[N, D]`` hidden states after the final norm.
        head: head without padded rows. It gets no gradient.
        token_ids: ``[N, C, S]`` long, rows of the head.
    """
    head = head.to_autocast()
    sums_of: type[_Sums] = _RunningSums
    size, _ = tiles.tile_shape(features.device)
    if fused.serves(head):
        head = head.padded()
        sums_of, size = _WholeRows, tiles.chunk_tokens(head.num_rows, features.device)
    # The products add up in float32 on purpose. Autocast would round them.
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        sums = [
            sums_of(features[part], head, token_ids[part].flatten(1))
            for part in tiles.chunks(len(features), size)
        ] or [sums_of(features, head, token_ids.flatten(1))]  # no tokens, but the shapes
        return Sweep(
            features=features,
            head=head,
            entries=_joined([part.entries() for part in sums]).map(
                lambda value: value.view(token_ids.shape)
            ),
            expectation=torch.cat([part.expectation() for part in sums]),
        )


class _Sums(Protocol):
    """Sums of some tokens over the vocabulary. They are complete once constructed."""

    def __init__(self, features_ND: Tensor, head: Head, ids_NE: Tensor) -> None: ...

    def entries(self) -> Entries:
        """Return the log-probabilities and slopes at the chosen ids."""

    def expectation(self) -> Tensor:
        """Return ``E_q[∂z/∂h]``, ``[N, D]``."""


class _WholeRows:
    """Sums by whole rows of logits, where one kernel turns them into probabilities.

    A device's matrix units take the rows in two long products, and memory is read three times
    where the tiles below read it ten times. W are V columns and padding.
    """

    def __init__(self, features_ND: Tensor, head: Head, ids_NE: Tensor) -> None:
        self.ids_NE = ids_NE
        weight_WD = head.aligned_weight()
        logits_NW = tiles.wide_product(features_ND, weight_WD.T, weight_WD.dtype)
        self.logits_NE = logits_NW.gather(1, ids_NE)
        probs_NW, self.log_mass_N = fused.softmax_rows(logits_NW, head.num_rows, weight_WD.dtype)
        del logits_NW  # before the next product
        self.mean_ND = tiles.wide_product(probs_NW, weight_WD, weight_WD.dtype)

    def entries(self) -> Entries:
        """The log-probabilities at the chosen ids. All slopes are 1."""
        log_probs_NE = self.logits_NE - self.log_mass_N[:, None]
        return Entries(self.ids_NE, log_probs_NE, torch.ones_like(log_probs_NE))

    def expectation(self) -> Tensor:
        """``E_q[W]``, ``[N, D]``."""
        return self.mean_ND


class _RunningSums:
    """Running sums of some tokens over the vocabulary. They are complete once constructed.

    With M the highest logit so far, ``total = Σ exp(z − M)`` and ``sum = Σ exp(z − M) · ∂z/∂h``.
    Whenever a tile raises M to M', both sums so far are multiplied by ``exp(M − M')``.
    """

    def __init__(self, features_ND: Tensor, head: Head, ids_NE: Tensor) -> None:
        self.head = head
        self.ids_NE = ids_NE
        self.operand = tiles.operand_dtype(head.weight)
        dtype = tiles.accumulator(head.weight.dtype)
        num_tokens = len(features_ND)
        device = features_ND.device
        self.lookup = lookup_for(device)(ids_NE)
        self.highest_N = torch.full((num_tokens,), -torch.inf, dtype=dtype, device=device)
        self.total_N = torch.zeros(num_tokens, dtype=dtype, device=device)
        self.sum_ND = torch.zeros(features_ND.shape, dtype=dtype, device=device)
        self.logits_NE = torch.zeros(ids_NE.shape, dtype=dtype, device=device)
        for rows in tiles.chunks(head.num_rows, tiles.tile_shape(device)[1]):
            self._add(features_ND, rows)

    def _add(self, features_ND: Tensor, rows: slice) -> None:
        """Add the tile of some rows of the head. The tile's memory is reused at every step."""
        weight_VD = self.head.weight[rows]
        transform = self.head.transform
        tile_NV = tiles.wide_product(features_ND, weight_VD.T, self.operand)
        if self.head.bias is not None:
            tile_NV += self.head.bias[rows]
        tile_NV = transform.apply(tile_NV)
        # Logits at the chosen ids and slopes are taken now: the tile is overwritten below.
        self.lookup.collect(rows, tile_NV, self.logits_NE)
        slope_NV = None if transform.is_identity else transform.derivative(tile_NV)
        decay_N1 = self._raise_highest(tile_NV)
        tile_NV.sub_(self.highest_N[:, None]).exp_()
        self.total_N.mul_(decay_N1[:, 0]).add_(tile_NV.sum(1))
        if slope_NV is not None:
            tile_NV *= slope_NV  # ∂z/∂h = slope · W
        tile_NV = tile_NV.to(self.operand)
        self.sum_ND.mul_(decay_N1)
        if self.operand == weight_VD.dtype == self.sum_ND.dtype:
            self.sum_ND.addmm_(tile_NV, weight_VD)  # saves a tensor as large as the sum
        else:
            self.sum_ND += tiles.wide_product(tile_NV, weight_VD, self.operand)

    def _raise_highest(self, tile_NV: Tensor) -> Tensor:
        """Take a tile into the running maximum. Return the factor ``[N, 1]`` of all sums so far.

        Before the first tile the maximum is −∞. The factor is then 0, and so are the sums.
        """
        highest_N = torch.maximum(self.highest_N, tile_NV.amax(1))
        decay_N1 = (self.highest_N - highest_N).exp_()[:, None]
        self.highest_N = highest_N
        return decay_N1

    def entries(self) -> Entries:
        """The log-probabilities ``z − (M + log total)`` at the chosen ids, and the slopes."""
        log_probs_NE = self.logits_NE - (self.highest_N + self.total_N.log())[:, None]
        slopes_NE = self.head.transform.derivative(self.logits_NE)
        return Entries(self.ids_NE, log_probs_NE, slopes_NE)

    def expectation(self) -> Tensor:
        """``E_q[∂z/∂h] = sum / total``, ``[N, D]``. The factor ``exp(M)`` cancels."""
        return self.sum_ND / self.total_N[:, None]


def _joined(parts: Sequence[Entries]) -> Entries:
    if len(parts) == 1:
        return parts[0]  # the usual case, without a copy
    return Entries(
        torch.cat([part.token_ids for part in parts]),
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.slopes for part in parts]),
    )


class _ChosenLogProbs(torch.autograd.Function):
    """log q at chosen ids, known already, with the gradient of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, features, entries, expectation, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(entries.token_ids, entries.slopes, expectation, weight)
        ctx.features_dtype = features.dtype
        return entries.log_probs.clone()  # autograd marks what it returns, and entries stay bare

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NE):  # type: ignore[no-untyped-def]
        token_ids, slopes, expectation, weight = ctx.saved_tensors
        total_N1 = grad_NE.sum(1, keepdim=True)
        with torch.autocast(weight.device.type, enabled=False):
            if fused.takes(weight):
                gradient = fused.weighted_rows(
                    weight, token_ids, grad_NE * slopes, expectation, -total_N1[:, 0]
                )
            else:
                gradient = _weighted_rows(weight, token_ids, grad_NE * slopes).addcmul_(
                    total_N1, expectation, value=-1.0
                )
        return gradient.to(ctx.features_dtype), None, None, None


def _weighted_rows(weight: Tensor, token_ids: Tensor, factors: Tensor) -> Tensor:
    """``Σ_e factors[n, e] · weight[token_ids[n, e]]``, ``[N, D]`` in the factors' dtype."""
    num_tokens, num_entries = token_ids.shape
    result = factors.new_empty(num_tokens, weight.shape[1])
    # The gathered rows are E times as large as the result, so they are copied a few at a time.
    size = tiles.gathered_rows(weight.device, num_entries * weight.shape[1])
    for part in tiles.chunks(num_tokens, size):
        rows_NED = weight[token_ids[part]].to(factors.dtype)
        result[part] = torch.bmm(factors[part, None], rows_NED)[:, 0]
    return result
