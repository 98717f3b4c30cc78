"""Small caches of made-up but lifelike records."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlsi_cache.distribution import DrawnFrom, SparseDistribution
from vlsi_cache.levels import find_levels, log_probs_of
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import Cache, SampleRecord, create_cache, open_cache

__all__ = ["FAILED", "HIDDEN", "make_cache", "make_manifest", "make_record", "write_part"]

FAILED = 6
"""Number of the sample that ``write_part`` records as one that could not be read."""


HIDDEN = {"block": 5, "num_blocks": 8, "width": 48, "bits": 64}
"""What is kept of a hidden state, for ``make_manifest(hidden=HIDDEN)``."""


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_manifest(
    *,
    num_samples: int = 5,
    samples_per_shard: int = 2,
    taps: Sequence[int] = (2, 6, -1),
    k: int = 4,
    m: int = 4,
    vocab_size: int = 500,
    drawn_from: DrawnFrom = "rest",
    **changes: Any,
) -> CacheManifest:
    """A sound manifest; ``changes`` replace whole fields."""
    version = 3 if changes.get("hidden") else 2 if drawn_from == "whole" else 1
    fields: dict[str, Any] = {
        "format_version": version,
        "vlsi_cache_version": "0.1.0",
        "teacher": {
            "name": "runs/teacher",
            "model_type": "qwen2_vl",
            "weights_fingerprint": sha256("weights"),
        },
        "verbalizers_fingerprint": sha256("verbalizers"),
        "tokenizer": {
            "name": "runs/teacher",
            "hash": sha256("vocabulary"),
            "vocab_size": vocab_size,
        },
        "chat_template_hash": sha256("template"),
        "dataset": {
            "source": "train.jsonl",
            "fingerprint": sha256("data"),
            "num_samples": num_samples,
        },
        "taps": tuple(taps),
        "sampling": {"k": k, "m": m, "seed": 0, "drawn_from": drawn_from},
        "samples_per_shard": samples_per_shard,
        "batch_size": 8,
        "dtype": "float32",
    }
    return CacheManifest.model_validate(fields | changes)


def make_record(
    manifest: CacheManifest, sample_index: int, *, num_tokens: int | None = None, seed: int = 0
) -> SampleRecord:
    """The record of one sample: real softmaxes of random logits, sharper from tap to tap."""
    generator = np.random.default_rng([seed, sample_index])
    count = int(generator.integers(1, 12)) if num_tokens is None else num_tokens
    vocab_size, sampling = manifest.tokenizer.vocab_size, manifest.sampling
    base = generator.normal(size=(count, 1, vocab_size))
    own = generator.normal(size=(count, len(manifest.taps), vocab_size))
    logits = (base + 0.5 * own) * np.linspace(1, 4, len(manifest.taps))[:, None]
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    order = np.argsort(-log_p, axis=-1)
    rest = np.take_along_axis(np.exp(log_p), order, axis=-1)
    rest[..., : sampling.k] = 0
    edges = rest.cumsum(-1) / np.maximum(rest.sum(-1, keepdims=True), 1e-300)
    dice = generator.random((*order.shape[:2], sampling.m))
    drawn = (edges[..., None, :] < dice[..., None]).sum(-1).clip(sampling.k, vocab_size - 1)
    top = order[..., : sampling.k]
    ids = np.concatenate([top, np.sort(np.take_along_axis(order, drawn, axis=-1))], axis=-1)
    top_log_probs = np.take_along_axis(log_p, top, axis=-1).astype(np.float32)
    labels = np.array([generator.choice(vocab_size, p=np.exp(row)) for row in log_p[:, -1]], int)
    if sampling.drawn_from == "whole":
        ids, top_log_probs = _of_whole(ids, top_log_probs, sampling.m, generator)
    signs = None
    if manifest.hidden is not None:
        signs = generator.integers(256, size=(count, manifest.hidden.bits // 8), dtype=np.uint8)
    return SampleRecord(
        hidden_signs=signs,
        sample_id=f"sample-{sample_index}",
        key=sha256(f"conversation {sample_index}"),
        response_ids=labels.astype(np.int32),
        distribution=SparseDistribution(
            token_ids=ids.astype(np.int32),
            top_log_probs=top_log_probs,
            entropy=-(np.exp(log_p) * log_p).sum(-1).astype(np.float32),
            label_log_prob=np.take_along_axis(log_p, labels[:, None, None], axis=-1)[..., 0].astype(
                np.float32
            ),
            drawn_from=sampling.drawn_from,
        ),
    )


def _of_whole(
    ids: np.ndarray[Any, Any], log_probs: np.ndarray[Any, Any], m: int, generator: Any
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ids and log-probabilities of ``drawn_from: whole``, from those of ``rest``."""
    k = log_probs.shape[-1]
    stored = log_probs_of(find_levels(log_probs))
    tail = 1 - np.exp(stored.astype(float)).sum(-1, keepdims=True)
    counts = np.floor(m * tail.clip(0) + generator.random(tail.shape))
    draws = np.where(np.arange(m) < counts, ids[..., k:], ids[..., :1])
    return np.concatenate([ids[..., :k], draws], -1), stored


def make_cache(
    path: Path, manifest: CacheManifest | None = None, *, shards: Sequence[int] | None = None
) -> Cache:
    """A cache on disk, complete unless only some shards are asked for."""
    manifest = manifest or make_manifest()
    writer = create_cache(path, manifest)
    for shard in range(manifest.num_shards) if shards is None else shards:
        writer.write_shard(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)])
    return open_cache(path)


def write_part(
    path: Path,
    numbers: Sequence[int],
    samples_per_shard: int = 2,
    processor: Path | None = None,
    **changes: Any,
) -> Path:
    """A cache of these samples of a larger dataset, under the fingerprint that is theirs."""
    manifest = make_manifest(
        num_samples=len(numbers), samples_per_shard=samples_per_shard, hidden=changes.get("hidden")
    )
    records = [_record_of(manifest, number) for number in numbers]
    keys = b"".join(bytes.fromhex(record.key) for record in records)
    dataset = {
        "source": path.name,
        "fingerprint": hashlib.sha256(keys).hexdigest(),
        "num_samples": len(numbers),
    }
    fields = {**manifest.model_dump(), "dataset": dataset, **changes}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text('{"vocabulary": []}')
        writer = create_cache(path, CacheManifest.model_validate(fields), processor or Path(folder))
    for shard in writer.missing_shards():
        samples = manifest.shard_range(shard)
        writer.write_shard(shard, records[samples.start : samples.stop])
    return path


def _record_of(manifest: CacheManifest, number: int) -> SampleRecord:
    if number != FAILED:
        return make_record(manifest, number)
    empty = make_record(manifest, number, num_tokens=0)
    return dataclasses.replace(empty, failure="image is broken")
