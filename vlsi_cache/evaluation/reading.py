"""Losses, divergences and what the layers say, over held-out conversations.

Shapes: N response tokens of a batch, B samples, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from vlsi_cache.data import BatchEncoder, Conversation, TokenBatches
from vlsi_cache.evaluation.report import TapFigures
from vlsi_cache.models import Backbone, Head, run_backbone
from vlsi_cache.objectives import candidate_divergences, label_targets, tiles
from vlsi_cache.store import Cache
from vlsi_cache.student.cached import CachedBatches
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["BatchFigures", "Figures", "Reader"]

_NORMAL_95: Final = 1.959964
_DRAFTED: Final = 4
"""Tokens that are drafted before each verification, γ."""
_OVERLAPS: Final = ("agreement", "acceptance")


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Sums over the response tokens of each sample of a batch."""

    tokens: Tensor
    """``[B]``, response tokens."""
    sums: dict[str, Tensor]
    """Name of a figure → ``[B]``, its sum over the sample's tokens."""


class Reader:
    """Reads batches of conversations with the model, its verbalizers and the cache.

    Args:
        model: the model, frozen.
        bank: verbalizers of its taps, if the layers are asked for.
        encoder: the model's own encoder.
        cache: the teacher's record of the same data, if the divergence is asked for.
    """

    def __init__(
        self,
        model: Backbone,
        bank: VerbalizerBank | None,
        encoder: BatchEncoder,
        cache: Cache | None,
    ) -> None:
        self._model = model
        self._bank = bank
        self._tokens = TokenBatches(encoder)
        self._collate = self._tokens if cache is None else CachedBatches(encoder, cache, "sample")
        self._cache = cache
        self._failed = {} if cache is None else cache.failures()

    def validate(self, item: tuple[int, Conversation]) -> None:
        """Refuse a sample that cannot be encoded.

        Raises:
            DataError: the model cannot read it.
        """
        self._tokens([item])

    @torch.no_grad()
    def __call__(self, items: list[tuple[int, Conversation]]) -> BatchFigures:
        """Read a batch, in which all samples are recorded or none is.

        Raises:
            DataError: a sample cannot be encoded.
            CacheMismatchError: a sample differs from the recorded one.
        """
        model = self._model
        collate = self._collate if self.is_recorded(items[0][0]) else self._tokens
        batch = send_to_device(collate(items), model.device)
        positions, labels = batch["positions"], batch["labels"]
        taps = () if self._bank is None else self._bank.taps
        states, final = run_backbone(model.decoder, taps, batch["inputs"], positions)
        per_token = {"loss": _cross_entropy(final, model.head, labels)}
        if "targets" in batch:
            wanted = batch["targets"].candidate(-1)
            found = candidate_divergences(final, model.head, wanted)
            per_token["divergence"] = found.values[:, 0]
        for tap, read in (self._bank(states, positions) if self._bank else {}).items():
            features = model.decoder.features(read)
            per_token[f"{tap} loss"] = _cross_entropy(features, model.head, labels)
            per_token |= {
                f"{tap} {name}": value
                for name, value in _overlap(features, final, model.head).items()
            }
        return _by_sample(per_token, batch["token_samples"], len(items))

    def is_recorded(self, index: int) -> bool:
        """Report whether the cache holds a sample; it may be incomplete."""
        cache = self._cache
        return cache is not None and index in cache and index not in self._failed


def _cross_entropy(features: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Return the loss of every token, ``[N]`` nats."""
    return candidate_divergences(features, head, label_targets(labels)).values[:, 0]


def _overlap(features: Tensor, final: Tensor, head: Head) -> dict[str, Tensor]:
    """Return whether the likeliest tokens agree, and Σ min(p, q), ``[N]`` each."""
    agreement, acceptance = [], []
    size = tiles.chunk_tokens(head.num_rows, features.device, planes=4)
    for part in tiles.chunks(len(features), size):
        early = head.logits(features[part]).float().softmax(-1)
        late = head.logits(final[part]).float().softmax(-1)
        agreement.append((early.argmax(-1) == late.argmax(-1)).float())
        acceptance.append(torch.minimum(early, late).sum(-1))
    return {"agreement": torch.cat(agreement), "acceptance": torch.cat(acceptance)}


def _expected_tokens(acceptance: float) -> float:
    """Return the expected tokens of a verification, its own one included."""
    return sum(acceptance**accepted for accepted in range(_DRAFTED + 1))


def _by_sample(per_token: dict[str, Tensor], samples: Tensor, count: int) -> BatchFigures:
    def summed(value: Tensor) -> Tensor:
        total = torch.zeros(count, dtype=torch.float64)
        return total.index_add_(0, samples.cpu(), value.cpu().double())

    sums = {name: summed(value) for name, value in per_token.items()}
    return BatchFigures(summed(torch.ones(len(samples))), sums)


@dataclass
class Figures:
    """The figures of all batches so far."""

    _batches: list[BatchFigures] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Samples of all batches."""
        return sum(len(batch.tokens) for batch in self._batches)

    def add(self, batch: BatchFigures) -> None:
        """Add a batch."""
        self._batches.append(batch)

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``Evaluation`` that are known here."""
        tokens = sum(float(batch.tokens.sum()) for batch in self._batches)
        loss, loss_interval = self._mean("loss")
        divergence, divergence_interval = self._mean("divergence")
        names = {name for batch in self._batches for name in batch.sums}
        taps = sorted(int(name.split()[0]) for name in names if name.endswith(" loss"))
        return {
            "num_response_tokens": round(tokens),
            "loss_nats": loss,
            "loss_interval": loss_interval,
            "divergence_nats": divergence,
            "num_compared": sum(len(b.tokens) for b in self._batches if "divergence" in b.sums),
            "divergence_interval": divergence_interval,
            "taps": [
                TapFigures(
                    tap=tap,
                    loss_nats=self._mean(f"{tap} loss")[0],
                    **{name: self._mean(f"{tap} {name}")[0] for name in _OVERLAPS},
                    tokens_per_verification=_expected_tokens(self._mean(f"{tap} acceptance")[0]),
                )
                for tap in taps
            ],
        }

    def _mean(self, name: str) -> tuple[Any, Any]:
        """Return the mean per token, and its 95 % interval by the spread over samples.

        Tokens of one sample are alike, so samples are what varies: the variance is that of a ratio
        of two sums (Cochran, Sampling Techniques, 1977).
        """
        having = [batch for batch in self._batches if name in batch.sums]
        if not having:
            return None, None
        totals = torch.cat([batch.sums[name] for batch in having])
        tokens = torch.cat([batch.tokens for batch in having])
        mean = float(totals.sum() / tokens.sum())
        count = len(tokens)
        spread = float((totals - mean * tokens).square().sum())
        error = math.sqrt(spread * count / max(count - 1, 1)) / float(tokens.sum())
        return mean, (mean - _NORMAL_95 * error, mean + _NORMAL_95 * error)
