"""The most likely token of each layer at each response token of one sample."""

from __future__ import annotations

from collections.abc import Callable

from vlsi_cache.jsonmodels import ReportModel
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import Cache, SampleRecord

__all__ = ["SampleView", "TapGuess", "TokenView", "sample_view"]


class TapGuess(ReportModel):
    """The most likely token of one tap at one response token."""

    tap: int
    """0-based decoder block index. -1 is the model's own output."""
    token_id: int
    """The most likely token."""
    text: str
    """Text of that token."""
    probability: float
    """Its probability. Where only draws are recorded, its share of the draws."""
    entropy_nats: float
    """Entropy of the tap's whole distribution."""
    label_log_prob_nats: float
    """Log-probability of the token that the data holds."""


class TokenView(ReportModel):
    """One response token, with the most likely token of each tap at its position."""

    token_id: int
    """The token that the data holds."""
    text: str
    """Text of that token."""
    guesses: tuple[TapGuess, ...]
    """One guess per tap, the model's own output last."""


class SampleView(ReportModel):
    """One sample of a cache."""

    sample_id: str
    """Name of the sample in the dataset."""
    key: str
    """Hex SHA-256 of the conversation."""
    taps: tuple[int, ...]
    """0-based decoder block indices. The last is -1, the model's own output."""
    tokens: tuple[TokenView, ...]
    """The response tokens, in order."""
    failure: str | None = None
    """Why the teacher could not read the sample, which then has no tokens."""


def sample_view(cache: Cache, sample_id: str, decode: Callable[[int], str]) -> SampleView:
    """Turn one sample's record into words.

    Args:
        cache: the cache.
        sample_id: name of the sample.
        decode: function from a token id to its text.

    Raises:
        CacheError: no published shard holds the sample, or its shard is damaged.
    """
    record = cache[sample_id]
    return SampleView(
        sample_id=record.sample_id,
        key=record.key,
        taps=cache.manifest.taps,
        tokens=tuple(
            _token(record, position, cache.manifest, decode)
            for position in range(len(record.response_ids))
        ),
        failure=record.failure,
    )


def _token(
    record: SampleRecord, position: int, manifest: CacheManifest, decode: Callable[[int], str]
) -> TokenView:
    here = record.distribution[position]
    token_id = int(record.response_ids[position])
    ids, probabilities = here.most_likely()
    return TokenView(
        token_id=token_id,
        text=decode(token_id),
        guesses=tuple(
            TapGuess(
                tap=tap,
                token_id=int(ids[row]),
                text=decode(int(ids[row])),
                probability=float(probabilities[row]),
                entropy_nats=float(here.entropy[row]),
                label_log_prob_nats=float(here.label_log_prob[row]),
            )
            for row, tap in enumerate(manifest.taps)
        ),
    )
