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
from vlsi_cache.levels import are_levels, find_levels, log_probs_of
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store.shards.layout import CODE_HOLE, LOG_PROB_FLOOR
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = [
    "Array",
    "encode_shard",
    "find_problem",
    "parse_distribution",
    "parse_sample_ids",
    "separate",
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
    _validate_hidden(record, manifest)
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
    if distribution.drawn_from == "whole":
        ids["token_ids"] &= _are_distinct(distribution.token_ids, distribution.k)
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
    shape = len(record.response_ids), len(manifest.taps)
    expected = shape, sampling.k, sampling.m, sampling.drawn_from
    found = distribution.shape, distribution.k, distribution.m, distribution.drawn_from
    if found != expected:
        raise CacheError(
            "record does not fit the cache",
            where=f"sample {record.sample_id!r}",
            expected="[tokens, taps], k, m = {}, {}, {}, drawn from the {}".format(*expected),
            found="{}, {}, {}, drawn from the {}".format(*found),
        )


def _validate_hidden(record: SampleRecord, manifest: CacheManifest) -> None:
    wanted = None
    if manifest.hidden is not None:
        wanted = len(record.response_ids), manifest.hidden.bits // 8
    found = None if record.hidden_signs is None else record.hidden_signs.shape
    if found != wanted:
        raise CacheError(
            "record does not fit the cache",
            where=f"sample {record.sample_id!r}",
            expected=f"hidden_signs {wanted}",
            found=found,
        )
    if record.hidden_signs is not None and not record.hidden_signs.any(-1).all():
        raise CacheError(
            "hidden state is 0 or not finite",
            where=f"sample {record.sample_id!r}",
            mend="Check the teacher's weights and dtype",
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
    entropy = _codes(distribution.entropy / ENTROPY_STEP)
    label = _codes(distribution.label_log_prob / -LABEL_STEP)
    if distribution.drawn_from == "whole":
        codes = np.stack([entropy, label], -1)
        levels = find_levels(distribution.top_log_probs)
        parts: list[Array] = [ids[..., :k], levels, ids[..., k:], codes]
        kept: dict[str, Array] = {"together": np.concatenate(parts, -1, dtype=np.int32)}
    else:
        kept = {
            "top_ids": ids[..., :k],
            "top_log_probs": _log_probs(distribution.top_log_probs),
            "drawn_ids": ids[..., k:],
            "entropy": entropy,
            "label_log_prob": label,
        }
    if record.hidden_signs is not None:
        kept["hidden_signs"] = record.hidden_signs
    return {
        **kept,
        "response_ids": record.response_ids.astype(np.int32),
        "sample_offsets": record.offsets.astype(np.int64),
        "sample_keys": record.keys,
        "sample_ids": np.frombuffer(names, np.uint8),
    }


def separate(arrays: Mapping[str, Array], k: int) -> dict[str, Array]:
    """Return stored token arrays with ``together`` as arrays of their own."""
    parts = dict(arrays)
    kept = parts.pop("together", None)
    if kept is None:
        return parts
    return parts | {
        "top_ids": kept[..., :k],
        "top_levels": kept[..., k : 2 * k],
        "drawn_ids": kept[..., 2 * k : -2],
        "entropy": kept[..., -2],
        "label_log_prob": kept[..., -1],
    }


def parse_distribution(arrays: Mapping[str, Array]) -> SparseDistribution:
    """Parse token arrays of ``separate`` as a distribution, with nats in float32."""
    ids = [arrays[name] for name in ("top_ids", "drawn_ids") if name in arrays]
    entropy = arrays["entropy"].astype(np.float32) * np.float32(ENTROPY_STEP)
    label = arrays["label_log_prob"].astype(np.float32) * np.float32(-LABEL_STEP)
    levels = arrays.get("top_levels")
    top = arrays.get("top_log_probs", np.empty((*entropy.shape, 0), np.float16))
    if levels is not None:
        top = log_probs_of(levels)
    return SparseDistribution(
        token_ids=np.concatenate(ids, axis=-1) if len(ids) > 1 else ids[0],
        top_log_probs=top.astype(np.float32),
        entropy=entropy,
        label_log_prob=label,
        drawn_from="rest" if levels is None else "whole",
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
    """Find what is impossible about token arrays of ``separate``, or None.

    A hole in a file reads as its array's fill value, which is impossible on purpose.
    """
    for name in ("top_ids", "drawn_ids", "response_ids"):
        if name in arrays and not _all_within(arrays[name], vocab_size):
            return f"{name} holds a hole or an id outside the vocabulary"
    signs = arrays.get("hidden_signs")
    if signs is not None and not signs.any(-1).all():
        return "hidden_signs holds a hole"
    top = arrays.get("top_log_probs")
    if top is not None and not ((top <= 0) & np.isfinite(top)).all():
        return "top_log_probs holds a hole or a value that is not a log-probability"
    levels = arrays.get("top_levels")
    if levels is not None and not are_levels(levels):
        return "together holds a hole or a level that does not exist"
    if not _all_within(arrays["label_log_prob"], CODE_HOLE):
        return "label_log_prob holds a hole"
    if arrays["entropy"].max(initial=0) * ENTROPY_STEP > np.log(vocab_size) + ENTROPY_STEP:
        return "entropy holds a hole or a value that is not an entropy"
    return None


def _are_distinct(ids: Array, k: int) -> NDArray[np.bool_]:
    """Report for each id ``[*, k + m]`` whether it is no likely one that stands there twice."""
    sound = np.ones(ids.shape, np.bool_)
    for rank in range(1, k):
        sound[..., rank] = (ids[..., :rank] != ids[..., rank : rank + 1]).all(-1)
    return sound


def _codes(steps: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(steps), 0, CODE_HOLE - 1).astype(np.uint8)


def _log_probs(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.clip(values, LOG_PROB_FLOOR, 0.0).astype(np.float16)


def _all_within(ids: Array, vocab_size: int) -> bool:
    # two reductions, without an array of each comparison
    return bool(ids.min(initial=0) >= 0 and ids.max(initial=0) < vocab_size)


def _within(ids: Array, vocab_size: int) -> NDArray[np.bool_]:
    return np.asarray((ids >= 0) & (ids < vocab_size))
