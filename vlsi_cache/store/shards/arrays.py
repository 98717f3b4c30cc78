"""Conversion between a shard's record and its stored arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP, SparseDistribution
from vlsi_cache.errors import CacheError
from vlsi_cache.jsonmodels import parse_json
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.shards.layout import CODE_HOLE, LOG_PROB_FLOOR
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = [
    "Array",
    "encode_shard",
    "find_problem",
    "parse_distribution",
    "parse_sample_ids",
    "validate_storable",
]

Array = NDArray[Any]

_ROUNDING: Final = 1e-2
"""Nats by which low precision may put a log-probability above 0, or an entropy below."""


def validate_storable(record: SampleRecord, manifest: CacheManifest) -> None:
    """Refuse a record that does not fit the manifest, or is not a distribution.

    Log-probabilities of −inf are valid. They are stored as the floor.

    Raises:
        CacheError: a shape differs from the manifest's, a token id is outside the vocabulary,
            or a value is NaN, +inf or otherwise impossible.
    """
    _validate_name(record.sample_id)
    _validate_shape(record, manifest)
    distribution = record.distribution
    where, vocab_size = f"sample {record.sample_id!r}", manifest.tokenizer.vocab_size
    floats = {
        "top_log_probs": distribution.top_log_probs <= _ROUNDING,
        "label_log_prob": distribution.label_log_prob <= _ROUNDING,
        "entropy": (distribution.entropy >= -_ROUNDING)
        & (distribution.entropy < np.log(vocab_size) + ENTROPY_STEP),
    }
    ids = {
        "token_ids": _within(distribution.token_ids, vocab_size),
        "response_ids": _within(record.response_ids, vocab_size),
    }
    for name, sound in {**floats, **ids}.items():
        if not sound.all():
            values = record.response_ids if name == "response_ids" else getattr(distribution, name)
            raise CacheError(
                f"{name} holds an impossible value",
                where=f"{where}, at {np.argwhere(~sound)[0].tolist()}",
                expected=f"an id below {vocab_size}" if name in ids else "a finite number of nats",
                found=values[~sound][0],
                mend="Check the teacher's weights and dtype",
            )


def _validate_shape(record: SampleRecord, manifest: CacheManifest) -> None:
    distribution, sampling = record.distribution, manifest.sampling
    expected = (len(record.response_ids), len(manifest.taps)), sampling.k, sampling.m
    found = distribution.shape, distribution.k, distribution.m
    if found != expected:
        raise CacheError(
            "record does not fit the cache",
            where=f"sample {record.sample_id!r}",
            expected="[tokens, taps], k, m = {}, {}, {}".format(*expected),
            found="{}, {}, {}".format(*found),
        )


def _validate_name(sample_id: str) -> None:
    try:
        sample_id.encode()
    except UnicodeEncodeError:
        raise CacheError(
            "name holds half a character (a lone surrogate)",
            where=f"sample {sample_id!r}",
            mend="Give the sample another id",
        ) from None


def encode_shard(record: ShardRecord) -> dict[str, Array]:
    """Return a shard's arrays by name, in their stored types.

    Log-probabilities are clamped to finite float16. Entropy and the label's log-probability are
    whole numbers of steps. The last step stands for all values beyond.
    """
    distribution, k = record.distribution, record.distribution.k
    names = json.dumps(record.sample_ids).encode("ascii")
    ids = distribution.token_ids.astype(np.int32, copy=False)
    return {
        "top_ids": ids[..., :k],
        "top_log_probs": _log_probs(distribution.top_log_probs),
        "drawn_ids": ids[..., k:],
        "entropy": _codes(distribution.entropy / ENTROPY_STEP),
        "label_log_prob": _codes(distribution.label_log_prob / -LABEL_STEP),
        "response_ids": record.response_ids.astype(np.int32),
        "sample_offsets": record.offsets.astype(np.int64),
        "sample_keys": record.keys,
        "sample_ids": np.frombuffer(names, np.uint8),
    }


def parse_distribution(arrays: Mapping[str, Array]) -> SparseDistribution:
    """Parse stored token arrays as a distribution, with nats in float32."""
    ids = [arrays[name] for name in ("top_ids", "drawn_ids") if name in arrays]
    entropy = arrays["entropy"].astype(np.float32) * np.float32(ENTROPY_STEP)
    label = arrays["label_log_prob"].astype(np.float32) * np.float32(-LABEL_STEP)
    top = arrays.get("top_log_probs", np.empty((*entropy.shape, 0), np.float16))
    return SparseDistribution(
        token_ids=np.concatenate(ids, axis=-1) if len(ids) > 1 else ids[0],
        top_log_probs=top.astype(np.float32),
        entropy=entropy,
        label_log_prob=label,
    )


def parse_sample_ids(stored: Array) -> tuple[str, ...]:
    """Parse the names from ``sample_ids``.

    Raises:
        ValueError: the bytes are not a JSON array of strings.
    """
    names = parse_json(stored.tobytes())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("sample_ids is not a JSON array of strings")
    "".join(names).encode()  # refuses half a character, which no file or terminal takes
    return tuple(names)


def find_problem(arrays: Mapping[str, Array], vocab_size: int) -> str | None:
    """Find what is impossible about stored token arrays, or None.

    A hole in a file reads as its array's fill value, which is impossible on purpose.
    """
    for name in ("top_ids", "drawn_ids", "response_ids"):
        if name in arrays and not _within(arrays[name], vocab_size).all():
            return f"{name} holds a hole or an id outside the vocabulary"
    top = arrays.get("top_log_probs")
    if top is not None and not ((top <= 0) & np.isfinite(top)).all():
        return "top_log_probs holds a hole or a value that is not a log-probability"
    if (arrays["label_log_prob"] == CODE_HOLE).any():
        return "label_log_prob holds a hole"
    if arrays["entropy"].max(initial=0) * ENTROPY_STEP > np.log(vocab_size) + ENTROPY_STEP:
        return "entropy holds a hole or a value that is not an entropy"
    return None


def _codes(steps: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(steps), 0, CODE_HOLE - 1).astype(np.uint8)


def _log_probs(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.clip(values, LOG_PROB_FLOOR, 0.0).astype(np.float16)


def _within(ids: Array, vocab_size: int) -> NDArray[np.bool_]:
    return np.asarray((ids >= 0) & (ids < vocab_size))
