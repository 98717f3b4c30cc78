"""The most likely token of each layer at each response token of one sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import RootModel

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.jsonmodels import ReportModel
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import Cache, SampleRecord
from vlsi_cache.store.cache.figures.statistics import choose_samples

__all__ = [
    "Entry",
    "Picture",
    "SampleView",
    "SampleViews",
    "TapGuess",
    "TokenView",
    "TurnView",
    "random_samples",
    "sample_view",
]

_HANDFUL: Final = 4
_CANDIDATES: Final = 64
"""Samples among which those with tokens are found."""


class Entry(ReportModel):
    """One of the tokens that a tap's record holds at one response token."""

    token_id: int
    """The token."""
    text: str
    """Text of that token."""
    weight: float
    """Its probability. Where only draws are recorded, its share of the draws. The token of a draw
    beside most likely ones has its share of their remaining probability."""
    drawn: int = 0
    """How often it was drawn, if it stands beside most likely tokens and is not one of them. Its
    weight does not say how likely the token itself is."""


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
    entries: tuple[Entry, ...] = ()
    """The tokens that the record holds, each once: the most likely first, then drawn ones."""


class TokenView(ReportModel):
    """One response token, with the most likely token of each tap at its position."""

    token_id: int
    """The token that the data holds."""
    text: str
    """Text of that token."""
    guesses: tuple[TapGuess, ...]
    """One guess per tap, the model's own output last."""


class Picture(ReportModel):
    """A small copy of an image."""

    width: int
    """Width of the image itself, in pixels."""
    height: int
    """Height of the image itself, in pixels."""
    jpeg_base64: str
    """The small copy, as JPEG in base64."""


class TurnView(ReportModel):
    """One turn of a conversation."""

    role: str
    """Whose turn it is."""
    parts: tuple[str | Picture, ...]
    """Texts and images, in the order in which they are read."""


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
    only_draws: bool = False
    """Whether only draws are recorded, so that each probability is a share of them."""
    conversation: tuple[TurnView, ...] | None = None
    """The turns of the conversation; null if the data was not read."""


class SampleViews(RootModel[tuple[SampleView, ...]]):
    """Several samples of a cache."""


def random_samples(cache: Cache) -> list[int]:
    """Choose up to four samples with tokens at random, always the same ones. Return indices.

    Raises:
        CacheError: a shard is damaged.
    """
    chosen = choose_samples(cache.manifest, cache.missing_shards(), _CANDIDATES)
    np.random.default_rng(1).shuffle(chosen)
    spoken = (index for index in chosen if len(cache[index].response_ids))
    return sorted(itertools.islice(spoken, _HANDFUL))


def sample_view(
    cache: Cache,
    sample_id: str | int,
    decode: Callable[[int], str],
    conversation: tuple[TurnView, ...] | None = None,
) -> SampleView:
    """Turn one sample's record into words.

    Args:
        cache: the cache.
        sample_id: name, key or index of the sample.
        decode: function from a token id to its text.
        conversation: its turns, if the data is there.

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
        only_draws=cache.manifest.sampling.k == 0,
        conversation=conversation,
    )


def _token(
    record: SampleRecord, position: int, manifest: CacheManifest, decode: Callable[[int], str]
) -> TokenView:
    here = record.distribution[position]
    token_id = int(record.response_ids[position])
    ids, probabilities = here.most_likely()
    weights = _probabilities(here) if here.drawn_from == "whole" else here.weights()
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
                entries=_entries(here.token_ids[row], weights[row], here.k, decode),
            )
            for row, tap in enumerate(manifest.taps)
        ),
    )


def _probabilities(here: SparseDistribution) -> NDArray[np.float32]:
    """Return what the entries ``[L, k + m]`` show where draws are of the whole distribution.

    Weights scale the k likeliest to what the draws weigh, which may be more than their probability.
    """
    beyond = here.is_beyond_top()
    remaining = (1 - here.captured_mass())[:, None] / np.maximum(beyond.sum(-1, keepdims=True), 1)
    drawn = np.where(beyond, remaining, 0.0)
    return np.concatenate([np.exp(here.top_log_probs), drawn], -1).astype(np.float32)


def _entries(
    ids: NDArray[np.int32], weights: NDArray[np.float32], k: int, decode: Callable[[int], str]
) -> tuple[Entry, ...]:
    """Return the tokens of one record ``[k + m]``, whose first k are the most likely ones."""
    unique, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
    totals = np.bincount(places, weights=weights)
    is_drawn = ~np.isin(unique, ids[:k]) & (k > 0)
    found = zip(unique.tolist(), totals.tolist(), (counts * is_drawn).tolist(), strict=True)
    return tuple(
        Entry(token_id=token_id, text=decode(token_id), weight=weight, drawn=drawn)
        for token_id, weight, drawn in sorted(
            found, key=lambda entry: (entry[2] > 0, -entry[1], entry[0])
        )
    )
