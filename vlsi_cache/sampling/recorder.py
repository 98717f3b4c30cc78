"""``TapRecorder``: every tap of many tokens through the head, into one sparse record.

Shape suffixes: N tokens, n tokens of one chunk, L taps, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from vlsi_cache.distribution import DrawnFrom, SparseDistribution
from vlsi_cache.kernels import has_kernels
from vlsi_cache.levels import log_probs_of
from vlsi_cache.models import Head
from vlsi_cache.objectives.tiles import chunks
from vlsi_cache.sampling.draws import Drawn, DrawnTail
from vlsi_cache.sampling.hosting import PendingCopy, begin_copy
from vlsi_cache.sampling.sparsify import Kept, draw, sparsify
from vlsi_cache.sampling.streamed import StreamedTail, draw_streamed
from vlsi_cache.sampling.together import draw_together, num_uniforms
from vlsi_cache.sampling.vocabulary_order import vocabulary_order

__all__ = ["PendingRecord", "TapRecorder", "chunk_elements", "streamed_tokens"]

_CPU_ELEMENTS: Final = 1 << 26
"""Logits of all taps alive at once: 256 MiB in float32, and 0.4 GB with the buffers of eight taps.
With an eighth of it, a head of 150,000 tokens is read so often that recording takes up to twice as
long."""
_DEVICE_ELEMENTS: Final = 1 << 27
"""512 MiB in float32: enough rows for the head's product to be bound by arithmetic."""
_STREAMED_ELEMENTS: Final = 1 << 28
"""Logits of one tap alive at once: 512 MiB in bfloat16, and twice that for two taps."""

_RecordChunk = Callable[[Sequence[Tensor], Tensor, Tensor], Kept]
"""Features ``[n, D]`` of L taps, labels and uniforms to the record ``[n, L]``."""


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of the vocabulary, in both directions."""

    tokens: Tensor
    """[V] long, the token of each column."""
    columns: Tensor
    """[V] long, the column of each token."""


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Memory of the draws, allocated once for all chunks and taps.

    On a CPU, fresh memory costs time at its first touch, here as much as the arithmetic.
    """

    even_taps: Tensor
    """``[n, V]``, probabilities of taps 0, 2, …"""
    odd_taps: Tensor
    """``[n, V]``, probabilities of taps 1, 3, …"""
    scratch: Tensor
    """``[n, V]``, intermediate values of one tap."""

    @staticmethod
    def allocate(shape: tuple[int, int], device: torch.device) -> _Buffers:
        """Buffers for chunks of at most n tokens, with values that nobody reads."""
        return _Buffers(*torch.empty((3, *shape), dtype=torch.float32, device=device))

    def for_tap(self, tap: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The buffers of one tap's probabilities and intermediate values.

        A tap is coupled to the tap after it, and needs its probabilities too. So taps take turns,
        and no tap overwrites the one after it.
        """
        probability = self.odd_taps if tap % 2 else self.even_taps
        return probability[:num_tokens], self.scratch[:num_tokens]


@dataclass(frozen=True, slots=True)
class PendingRecord:
    """A record that may be on its way from the device."""

    copy: PendingCopy
    """Ids, top log-probabilities, entropies and label log-probabilities."""
    drawn_from: DrawnFrom = "rest"
    """What was drawn from. With ``whole`` there are levels in the place of log-probabilities."""

    def result(self) -> SparseDistribution:
        """Wait for the record, and return it."""
        ids, top, entropy, label = self.copy.arrays()
        return SparseDistribution(
            token_ids=ids,
            top_log_probs=log_probs_of(top) if self.drawn_from == "whole" else top,
            entropy=entropy,
            label_log_prob=label,
            drawn_from=self.drawn_from,
        )


class TapRecorder:
    """Makes sparse records of the distributions at a model's taps and its output.

    With k = 0 it draws from whole distributions. It begins at the output, and couples every tap to
    the tap after it. The draws walk in ``vocabulary_order``, and the recorder keeps a copy of the
    head in this order. With k ≥ 1 every tap is recorded by itself, in the order of the vocabulary,
    unless the draws are from the whole distribution there, too.

    Args:
        head: the model's head, without padded rows.
        k: most likely tokens kept.
        m: tokens drawn.
        drawn_from: what is drawn from if k ≥ 1.
        order: [V] permutation for draws from the whole. ``vocabulary_order`` of the head by
            default.
    """

    def __init__(
        self,
        head: Head,
        *,
        k: int,
        m: int,
        drawn_from: DrawnFrom = "rest",
        order: Tensor | None = None,
    ) -> None:
        self.k = k
        self.m = m
        self._drawn_from = drawn_from if k else "rest"
        self._head = head
        self._order: _Order | None = None
        if k == 0 or drawn_from == "whole":
            tokens = vocabulary_order(head.weight) if order is None else order
            # The inverse permutation: columns[tokens[i]] = i.
            numbers = torch.arange(len(tokens), device=tokens.device)
            columns = torch.empty_like(tokens).scatter_(0, tokens, numbers)
            self._order = _Order(tokens, columns)
            bias = None if head.bias is None else head.bias[tokens]
            self._head = Head(head.weight[tokens], bias, head.transform)
            if has_kernels(head.weight.device):
                self._head = self._head.padded()

    @property
    def num_uniforms(self) -> int:
        """Random numbers that each token and tap takes."""
        return num_uniforms(self.k) if self._drawn_from == "whole" else 1

    def record(
        self, features: Sequence[Tensor], labels: Tensor, uniforms: Tensor
    ) -> SparseDistribution:
        """Record the distributions ``[N, L]``. See ``begin``."""
        return self.begin(features, labels, uniforms).result()

    @torch.no_grad()
    def begin(self, features: Sequence[Tensor], labels: Tensor, uniforms: Tensor) -> PendingRecord:
        """Begin to record the distributions ``[N, L]``, without waiting for an accelerator.

        Args:
            features: L tensors ``[N, D]`` after the final norm, the output's last.
            labels: ``[N]`` long, the tokens that the data holds.
            uniforms: ``[N, L, num_uniforms]`` in [0, 1), in float64 where the device has it. The
                last axis may be left out if it is 1.
        """
        uniforms = uniforms.view(*uniforms.shape[:2], self.num_uniforms)
        size, record_chunk = self._in_chunks(len(features), labels)
        parts = [
            record_chunk([tap[part] for tap in features], labels[part], uniforms[part])
            for part in chunks(max(len(labels), 1), size)  # no tokens make one empty chunk
        ]
        # One transfer for all tokens: each has its cost.
        copy = begin_copy(
            [
                torch.cat([part.token_ids.int() for part in parts]),
                torch.cat([part.top_log_probs for part in parts]),
                torch.cat([part.entropy for part in parts]),
                torch.cat([part.label_log_prob for part in parts]),
            ]
        )
        return PendingRecord(copy, self._drawn_from)

    def _in_chunks(self, num_taps: int, labels: Tensor) -> tuple[int, _RecordChunk]:
        """Return the tokens of a chunk, and what records a chunk.

        Without kernels, one product with the head serves all taps of a chunk, so that the head is
        read once per chunk.
        """
        if self._order is not None and self.k and has_kernels(labels.device):
            streamed = partial(self._streamed_taps, order=self._order)
            return streamed_tokens(self._head.num_rows), streamed
        size = max(1, chunk_elements(labels.device) // (self._head.num_rows * num_taps))
        record_logits: Callable[[Tensor, Tensor, Tensor], Kept] = self._separate_taps
        if self._order is not None:
            shape = (min(size, len(labels)), self._head.num_rows)
            buffers = _Buffers.allocate(shape, labels.device)
            record_logits = partial(self._coupled_taps, order=self._order, buffers=buffers)

        def record_chunk(features: Sequence[Tensor], labels: Tensor, uniforms: Tensor) -> Kept:
            logits = self._head.logits(torch.stack(list(features))).float()
            return record_logits(logits, labels, uniforms)

        return size, record_chunk

    def _streamed_taps(
        self, features: Sequence[Tensor], labels: Tensor, uniforms: Tensor, order: _Order
    ) -> Kept:
        """The record of ``_coupled_taps`` by kernels: features ``[n, D]`` of L taps to ``[n, L]``.

        The logits of two taps are in memory at once, in the head's dtype.
        """
        columns = order.columns[labels]
        taps: list[Kept] = []
        later: StreamedTail | None = None
        for tap in reversed(range(len(features))):
            logits = self._head.logits(features[tap])
            kept, later = draw_streamed(logits, columns, uniforms[:, tap], m=self.m, later=later)
            taps.append(kept)
        return self._in_tokens(taps[::-1], order)

    def _in_tokens(self, taps: Sequence[Kept], order: _Order) -> Kept:
        """Turn the columns of every tap's record into tokens, ``[n, L]``."""
        drawn = _stacked(taps)
        ids = _ascending(order.tokens[drawn.token_ids], self.k)
        return Kept(ids, drawn.top_log_probs, drawn.entropy, drawn.label_log_prob)

    def _separate_taps(self, logits: Tensor, labels: Tensor, uniforms: Tensor) -> Kept:
        """Top tokens and draws of every tap by itself: logits ``[L, n, V]`` to ``[n, L]``."""
        return _stacked(
            [
                sparsify(tap, labels, dice, k=self.k, m=self.m)
                for tap, dice in zip(logits, uniforms[..., 0].unbind(1), strict=True)
            ]
        )

    def _coupled_taps(
        self, logits: Tensor, labels: Tensor, uniforms: Tensor, order: _Order, buffers: _Buffers
    ) -> Kept:
        """Draws of every tap, coupled to the tap after it: logits ``[L, n, V]`` to ``[n, L]``."""
        columns = order.columns[labels]
        taps: list[Kept] = []
        later: Drawn | None = None
        later_tail: DrawnTail | None = None
        # From the output backwards, because each tap shares draws with the tap after it. The cache
        # stores an id once for all the taps that drew it.
        for tap in reversed(range(len(logits))):
            memory = buffers.for_tap(tap, len(labels))
            dice = uniforms[:, tap]
            if self.k:
                kept, later_tail = draw_together(
                    logits[tap], columns, dice, m=self.m, later=later_tail, memory=memory
                )
            else:
                kept, later = draw(
                    logits[tap], columns, dice[:, 0], m=self.m, later=later, memory=memory
                )
            taps.append(kept)
        return self._in_tokens(taps[::-1], order)


def streamed_tokens(vocab_size: int) -> int:
    """Tokens that are recorded at once where kernels read the logits: a power of two."""
    return 1 << max(0, (_STREAMED_ELEMENTS // vocab_size).bit_length() - 1)


def chunk_elements(device: torch.device) -> int:
    """Logits of all taps that the recorder keeps alive at once on a device."""
    return _CPU_ELEMENTS if device.type == "cpu" else _DEVICE_ELEMENTS


def _ascending(ids: Tensor, k: int) -> Tensor:
    """Sort the draws ``[*, k + m]``, whose order means nothing: equal draws make equal records.

    With k ≥ 1 those that fell on the likeliest token come last.
    """
    top, draws = ids[..., :k], ids[..., k:]
    if not k:
        return draws.sort(-1).values
    likeliest, beyond = top[..., :1], torch.iinfo(ids.dtype).max
    ordered = draws.masked_fill(draws == likeliest, beyond).sort(-1).values
    return torch.cat([top, torch.where(ordered == beyond, likeliest, ordered)], -1)


def _stacked(taps: Sequence[Kept]) -> Kept:
    return Kept(
        torch.stack([tap.token_ids for tap in taps], 1),
        torch.stack([tap.top_log_probs for tap in taps], 1),
        torch.stack([tap.entropy for tap in taps], 1),
        torch.stack([tap.label_log_prob for tap in taps], 1),
    )
