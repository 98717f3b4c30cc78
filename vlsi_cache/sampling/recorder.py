"""``TapRecorder``: every tap of many tokens through the head, into one sparse record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.models import Head
from vlsi_cache.objectives.tiles import chunks
from vlsi_cache.sampling.draws import Drawn
from vlsi_cache.sampling.order import vocabulary_order
from vlsi_cache.sampling.sparsify import Kept, draw, sparsify

__all__ = ["TapRecorder"]

_CPU_ELEMENTS: Final = 1 << 23
"""Logits of all taps alive at once: 32 MiB in float32, which a shared cache may hold."""
_DEVICE_ELEMENTS: Final = 1 << 27
"""512 MiB in float32: enough rows for the head's product to be bound by arithmetic."""


class TapRecorder:
    """Makes sparse records of what a model's taps and its output say.

    With k = 0 it draws from the whole distribution, from the output backwards, every tap coupled
    to the one after it, in ``vocabulary_order``; for that it keeps a copy of the head in this
    order. With k ≥ 1 every tap is recorded by itself, in the order of the vocabulary.

    Args:
        head: of the model.
        vocab_size: V, rows of the head that are real tokens.
        k: most likely tokens kept.
        m: tokens drawn.
        order: [V] permutation that draws alone walk in; ``vocabulary_order`` of the head if not
            given.
    """

    def __init__(
        self, head: Head, vocab_size: int, *, k: int, m: int, order: Tensor | None = None
    ) -> None:
        self.k, self.m = k, m
        self._head = head.cut(vocab_size)
        self._order: Tensor | None = None
        if k == 0:
            order = vocabulary_order(self._head.weight) if order is None else order
            bias = None if self._head.bias is None else self._head.bias[order]
            self._head = Head(self._head.weight[order], bias, self._head.transform)
            self._order = order
            self._rank = torch.empty_like(order).scatter_(
                0, order, torch.arange(len(order), device=order.device)
            )

    @torch.no_grad()
    def record(
        self, features: Sequence[Tensor], labels: Tensor, uniforms: Tensor
    ) -> SparseDistribution:
        """Records ``[N, L]``.

        Args:
            features: L tensors ``[N, D]`` after the final norm, the output's last.
            labels: ``[N]`` long, the tokens that the data holds.
            uniforms: ``[N, L]`` in [0, 1), in float64 where the device knows it.
        """
        rows_alive = _CPU_ELEMENTS if labels.device.type == "cpu" else _DEVICE_ELEMENTS
        size = max(1, rows_alive // (self._head.num_rows * len(features)))
        rows = 0 if self._order is None else min(size, len(labels))
        room = features[0].new_empty((3, rows, self._head.num_rows), dtype=torch.float32)
        parts = [
            self._taps(
                self._head.logits(torch.stack([tap[part] for tap in features])).float(),
                labels[part],
                uniforms[part],
                room,
            )
            for part in chunks(max(len(labels), 1), size)
        ]
        # one transfer for all tokens
        return SparseDistribution(
            token_ids=_joined([part.token_ids.int() for part in parts]),
            top_log_probs=_joined([part.top_log_probs for part in parts]),
            entropy=_joined([part.entropy for part in parts]),
            label_log_prob=_joined([part.label_log_prob for part in parts]),
        )

    def _taps(self, logits: Tensor, labels: Tensor, uniforms: Tensor, room: Tensor) -> Kept:
        """Logits ``[L, n, V]`` as a record ``[n, L]``, with ``room [3, n, V]`` for draws."""
        if self._order is None:
            return _stacked(
                [
                    sparsify(tap, labels, dice, k=self.k, m=self.m)
                    for tap, dice in zip(logits, uniforms.unbind(1), strict=True)
                ]
            )
        places, taps = self._rank[labels], []
        later: Drawn | None = None
        *own, scratch = room[:, : len(labels)]
        for tap in reversed(range(len(logits))):
            mine = own[tap % 2], scratch  # the tap after this one has the other
            dice = uniforms[:, tap]
            kept, later = draw(logits[tap], places, dice, m=self.m, later=later, room=mine)
            taps.append(kept)
        drawn = _stacked(taps[::-1])
        ids = self._order[drawn.token_ids].sort(-1).values
        return Kept(ids, drawn.top_log_probs, drawn.entropy, drawn.label_log_prob)


def _stacked(taps: Sequence[Kept]) -> Kept:
    return Kept(
        torch.stack([tap.token_ids for tap in taps], 1),
        torch.stack([tap.top_log_probs for tap in taps], 1),
        torch.stack([tap.entropy for tap in taps], 1),
        torch.stack([tap.label_log_prob for tap in taps], 1),
    )


def _joined(parts: Sequence[Tensor]) -> NDArray[Any]:
    return torch.cat(list(parts)).cpu().numpy()
