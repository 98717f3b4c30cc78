"""What each layer says at each response token of one sample, in words."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import Cache, SampleRecord

__all__ = ["SampleView", "TapGuess", "TokenView", "sample_view"]


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TapGuess(_Report):
    """What one tap holds most likely at one response token."""

    tap: int
    """0-based decoder block index; -1 is the model's own output."""
    token_id: int
    """Most likely token."""
    text: str
    """That token, decoded."""
    probability: float
    """Its probability; its share of the draws where nothing but draws is recorded."""
    entropy_nats: float
    """Entropy of the tap's whole distribution."""
    label_log_prob_nats: float
    """Log-probability of the token that the data holds."""


class TokenView(_Report):
    """One response token, and what the taps say in its place."""

    token_id: int
    """The token that the data holds."""
    text: str
    """That token, decoded."""
    guesses: tuple[TapGuess, ...]
    """One per tap, the final output last."""


class SampleView(_Report):
    """One sample of a cache."""

    sample_id: str
    """Its name in the dataset."""
    key: str
    """SHA-256 hex of its conversation."""
    taps: tuple[int, ...]
    """0-based decoder block indices; the last is -1, the model's own output."""
    tokens: tuple[TokenView, ...]
    """Its response tokens, in order."""
    failure: str | None = None
    """Why the teacher could not read it, which left it without tokens."""


def sample_view(cache: Cache, sample_id: str, decode: Callable[[int], str]) -> SampleView:
    """One sample's record in words.

    Args:
        cache: the cache.
        sample_id: name of the sample.
        decode: text of a token id.

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
