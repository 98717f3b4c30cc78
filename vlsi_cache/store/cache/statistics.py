"""Statistics of a cache, tap by tap, in one pass over its shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.jsonmodels import PathText, ReportModel
from vlsi_cache.manifest import CacheManifest, Sampling, TeacherIdentity, TokenizerIdentity
from vlsi_cache.store.shards.layout import token_bytes
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["CacheSummary", "TapSummary", "summarize_cache"]

Floats = NDArray[np.float64]

_BF16_BYTES: Final = 2


class TapSummary(ReportModel):
    """Means of one tap over all response tokens that are recorded."""

    tap: int
    """0-based decoder block index; -1 is the model's own output."""
    entropy_nats: float
    """Entropy of the whole distribution."""
    captured_mass: float | None
    """Probability of the k most likely tokens together; null where k is 0."""
    label_log_prob_nats: float
    """Log-probability of the token that the data holds."""
    agreement_with_final: float
    """Fraction of tokens whose most likely token is also the final output's."""
    agreement_with_label: float
    """Fraction of tokens whose most likely token is the one that the data holds."""
    label_in_record: float
    """Fraction of tokens for which the data's token is among the k + m that are recorded."""


class CacheSummary(ReportModel):
    """Statistics of the published shards of a cache, complete or not."""

    path: PathText
    """Folder of the cache."""
    complete: bool
    """Whether every shard is written."""
    num_shards: int
    """Shards of the complete cache."""
    num_shards_present: int
    """Shards that are written."""
    missing_shards: tuple[int, ...]
    """Shards that are not written yet, ascending."""
    indexed: bool
    """Whether there is an index, which the last writer of a cache publishes."""
    num_samples: int
    """Samples in the shards that are written."""
    num_samples_total: int
    """Samples of the complete cache."""
    failures: dict[str, str]
    """Name of each sample that could not be read → reason. Such samples have no tokens."""
    num_tokens: int
    """Response tokens."""
    bytes_total: int
    """Bytes on disk, without the processor's copy."""
    bytes_per_token_tap: float | None
    """Bytes on disk per response token and tap; null without tokens."""
    compression_ratio: float | None
    """The arrays' uncompressed bytes over the bytes on disk; null without tokens."""
    dense_ratio: float | None
    """Bytes of the same distributions as dense bfloat16 logits over the bytes on disk; null
    without tokens."""
    teacher: TeacherIdentity
    """The model that was recorded."""
    tokenizer: TokenizerIdentity
    """The teacher's tokenizer."""
    dataset: str
    """Path or name of the conversations."""
    sampling: Sampling
    """What is kept of each distribution: k, m, seed."""
    num_parts: int
    """Caches that were merged into it; 0 if it is not merged."""
    samples_per_shard: int
    """Samples of every shard but the last; in a merged cache, the most."""
    batch_size: int
    """Samples per forward pass of the teacher."""
    dtype: str
    """The teacher's parameter type."""
    taps: tuple[TapSummary, ...]
    """One entry per tap, the final output last; empty without tokens."""


@dataclass(slots=True)
class _Sums:
    """Running sums over tokens, ``[L]`` each."""

    entropy: Floats
    mass: Floats
    label_log_prob: Floats
    agreement: Floats
    label_on_top: Floats
    label_in_record: Floats
    num_tokens: int = 0
    num_samples: int = 0
    num_shards: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def zero(cls, num_taps: int) -> _Sums:
        zeros = np.zeros((6, num_taps))
        return cls(zeros[0], zeros[1], zeros[2], zeros[3], zeros[4], zeros[5])

    def add(self, record: ShardRecord) -> None:
        distribution, labels = record.distribution, record.response_ids
        ids = distribution.token_ids
        (top, _), label = distribution.most_likely(), labels[:, None]
        self.entropy += distribution.entropy.sum(0, dtype=np.float64)
        self.mass += distribution.captured_mass().sum(0, dtype=np.float64)
        self.label_log_prob += distribution.label_log_prob.sum(0, dtype=np.float64)
        self.agreement += (top == top[:, -1:]).sum(0)
        self.label_on_top += (top == label).sum(0)
        self.label_in_record += (ids == label[..., None]).any(-1).sum(0)
        self.num_tokens += record.num_tokens
        self.num_samples += len(record)
        self.num_shards += 1
        self.failures |= {record.sample_ids[row]: why for row, why in record.failures.items()}

    def taps(self, manifest: CacheManifest) -> tuple[TapSummary, ...]:
        if not self.num_tokens:
            return ()
        k = manifest.sampling.k
        return tuple(self.tap(row, tap, k) for row, tap in enumerate(manifest.taps))

    def tap(self, row: int, tap: int, k: int) -> TapSummary:
        def mean(sums: Floats) -> float:
            return float(sums[row]) / self.num_tokens

        return TapSummary(
            tap=tap,
            entropy_nats=mean(self.entropy),
            captured_mass=mean(self.mass) if k else None,
            label_log_prob_nats=mean(self.label_log_prob),
            agreement_with_final=mean(self.agreement),
            agreement_with_label=mean(self.label_on_top),
            label_in_record=mean(self.label_in_record),
        )


class RecordedShards(Protocol):
    """What statistics need of an open cache."""

    path: str | Path
    manifest: CacheManifest

    @property
    def is_indexed(self) -> bool:
        """Whether there is an index."""

    def missing_shards(self) -> list[int]:
        """Find the shards that are not published yet."""

    def iter_shards(self) -> Iterator[ShardRecord]:
        """Yield every published shard, in order."""

    def size_bytes(self) -> int:
        """Return the bytes on disk."""


def summarize_cache(cache: RecordedShards) -> CacheSummary:
    """Read every published shard once, one at a time.

    Args:
        cache: an open cache.

    Raises:
        CacheError: a shard is damaged.
    """
    manifest = cache.manifest
    sums = _Sums.zero(len(manifest.taps))
    missing = cache.missing_shards()
    for record in cache.iter_shards():
        sums.add(record)
    complete = sums.num_shards == manifest.num_shards
    return CacheSummary(
        path=str(cache.path),
        complete=complete,
        num_shards=manifest.num_shards,
        num_shards_present=sums.num_shards,
        missing_shards=() if complete else tuple(missing),
        indexed=cache.is_indexed,
        num_samples=sums.num_samples,
        num_samples_total=manifest.dataset.num_samples,
        failures=sums.failures,
        num_tokens=sums.num_tokens,
        **_sizes(manifest, sums.num_tokens, cache.size_bytes()),
        teacher=manifest.teacher,
        tokenizer=manifest.tokenizer,
        dataset=manifest.dataset.source,
        sampling=manifest.sampling,
        num_parts=len(manifest.parts),
        samples_per_shard=manifest.samples_per_shard,
        batch_size=manifest.batch_size,
        dtype=manifest.dtype,
        taps=sums.taps(manifest),
    )


class _Sizes(TypedDict):
    bytes_total: int
    bytes_per_token_tap: float | None
    compression_ratio: float | None
    dense_ratio: float | None


def _sizes(manifest: CacheManifest, num_tokens: int, num_bytes: int) -> _Sizes:
    """Return the bytes on disk, and what they are compared with."""
    entries = num_tokens * len(manifest.taps)
    raw = num_tokens * token_bytes(manifest)
    dense = entries * manifest.tokenizer.vocab_size * _BF16_BYTES
    return {
        "bytes_total": num_bytes,
        "bytes_per_token_tap": num_bytes / entries if entries else None,
        "compression_ratio": raw / num_bytes if entries else None,
        "dense_ratio": dense / num_bytes if entries else None,
    }
