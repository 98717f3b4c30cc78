"""Statistics of a cache, tap by tap, in one pass over its shards or over samples of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypedDict

import numpy as np

from vlsi_cache.manifest import (
    CacheManifest,
    HiddenIdentity,
    Sampling,
    TeacherIdentity,
    TokenizerIdentity,
)
from vlsi_cache.phases import phase
from vlsi_cache.store.cache.figures.counting import new_tally, tally_shards
from vlsi_cache.store.cache.figures.summary import CacheSummary, TapErrors, TapSummary
from vlsi_cache.store.cache.figures.tally import MEASURES, Tally
from vlsi_cache.store.shards.layout import token_bytes
from vlsi_cache.store.shards.records import SampleRecord, ShardRecord

__all__ = ["choose_groups", "choose_samples", "summarize_cache"]

_BF16_BYTES: Final = 2
_GROUP: Final = 16
"""Most neighbours that are chosen together. They mostly lie in one chunk, which is decoded once."""
_GROUPS: Final = 64
"""Groups that a standard error should be able to count. Fewer samples make groups smaller."""


class RecordedShards(Protocol):
    """What statistics need of an open cache."""

    path: str | Path
    manifest: CacheManifest

    @property
    def is_indexed(self) -> bool:
        """Whether there is an index."""

    @property
    def num_tokens(self) -> int:
        """Response tokens of the published shards."""

    def __getitem__(self, key: int | str) -> SampleRecord:
        """Read a sample's record."""

    def missing_shards(self) -> list[int]:
        """Find the shards that are not published yet."""

    def present_shards(self) -> list[int]:
        """Find the published shards."""

    def iter_parts(self, shard_index: int, num_tokens: int) -> Iterator[ShardRecord]:
        """Yield a published shard in parts of whole samples."""

    def failures(self) -> dict[int, str]:
        """Return index → reason of the samples that could not be read."""

    def size_bytes(self, *, processor: bool = False) -> int:
        """Return the bytes on disk."""

    def array_bytes(self) -> dict[str, int]:
        """Return array → bytes on disk."""


def summarize_cache(
    cache: RecordedShards, *, max_samples: int | None = None, processes: int = 1
) -> CacheSummary:
    """Read every published shard once, part by part. Or read some samples of them.

    Memory does not grow with the cache. The figures are the same with any number of processes.

    Args:
        cache: an open cache.
        max_samples: most samples to read, at least 2. They are chosen at random, always the same
            ones, from 128 on in groups of neighbours. The means get standard errors.
        processes: processes that read all shards at once. With several, a script needs
            ``if __name__ == "__main__":``.

    Raises:
        CacheError: a shard is damaged.
        ValueError: ``max_samples`` is less than 2, which gives no standard error.
    """
    if max_samples is not None and max_samples < 2:
        raise ValueError(f"max_samples is {max_samples}, and a standard error needs 2")
    manifest, missing = cache.manifest, cache.missing_shards()
    total = _count_samples(manifest, missing)
    if max_samples is None or max_samples >= total:
        present = cache.present_shards()
        tally = tally_shards(cache, present, cache.num_tokens, processes)
        # a growing cache may have gained shards since its missing ones were found
        missing = sorted({*range(manifest.num_shards)} - {*present})
        arrays = cache.array_bytes()
        rest = {"other": cache.size_bytes() - sum(arrays.values())}
        return _summary(cache, tally, missing, bytes_by_array={**arrays, **rest})
    size = max(1, min(_GROUP, max_samples // _GROUPS))
    tally = new_tally(manifest, cache.num_tokens * max_samples // max(total, 1))
    groups = choose_groups(manifest, missing, max_samples, size)
    with phase("reading samples", total=max_samples, unit="samples", patient=True) as reading:
        for group in groups:
            tally.add(ShardRecord.join([cache[index] for index in group]))
            reading.advance(len(group))
    chosen = _Chosen(num_samples_total=total, num_groups_total=-(-total // size))
    return _summary(cache, tally, missing, chosen=chosen)


def choose_samples(manifest: CacheManifest, missing: Sequence[int], count: int) -> list[int]:
    """Choose published samples at random, always the same ones.

    Args:
        manifest: manifest of the cache.
        missing: shards that are not published.
        count: samples to choose. All are returned if there are no more.

    Returns:
        Their indices, ascending.
    """
    return [index for group in choose_groups(manifest, missing, count, 1) for index in group]


def choose_groups(
    manifest: CacheManifest, missing: Sequence[int], count: int, size: int
) -> list[list[int]]:
    """Choose groups of neighbouring published samples at random, always the same ones.

    Args:
        manifest: manifest of the cache.
        missing: shards that are not published.
        count: most samples to choose.
        size: samples of a group. The last group of a cache may be smaller.

    Returns:
        The indices of each group, ascending.
    """
    ranges = _published(manifest, missing)
    ends = np.cumsum([len(samples) for samples in ranges], dtype=np.int64)
    total = int(ends[-1]) if ranges else 0
    num_groups = -(-total // size)
    chosen = np.random.default_rng(0).choice(
        num_groups, min(count // size, num_groups), replace=False
    )
    groups = []
    for group in np.sort(chosen).tolist():
        numbers = np.arange(group * size, min((group + 1) * size, total))
        shards = np.searchsorted(ends, numbers, side="right").tolist()
        groups.append(
            [
                ranges[shard].stop - int(ends[shard]) + number
                for shard, number in zip(shards, numbers.tolist(), strict=True)
            ]
        )
    return groups


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What the samples that were read were chosen among."""

    num_samples_total: int
    num_groups_total: int


def _published(manifest: CacheManifest, missing: Sequence[int]) -> list[range]:
    absent = set(missing)
    return [
        manifest.shard_range(shard) for shard in range(manifest.num_shards) if shard not in absent
    ]


def _count_samples(manifest: CacheManifest, missing: Sequence[int]) -> int:
    return sum(map(len, _published(manifest, missing)))


def _summary(
    cache: RecordedShards,
    tally: Tally,
    missing: Sequence[int],
    *,
    bytes_by_array: Mapping[str, int] | None = None,
    chosen: _Chosen | None = None,
) -> CacheSummary:
    """Summarize a tally of all samples, or of those that were chosen."""
    manifest, some = cache.manifest, chosen is not None
    num_tokens = cache.num_tokens if some else tally.num_tokens
    found = bool(tally.num_tokens)
    return CacheSummary(
        path=str(cache.path),
        complete=not missing,
        num_shards=manifest.num_shards,
        num_shards_present=manifest.num_shards - len(missing),
        missing_shards=tuple(missing),
        indexed=cache.is_indexed,
        num_samples=tally.num_samples if chosen is None else chosen.num_samples_total,
        num_samples_total=manifest.dataset.num_samples,
        failures=_named_failures(cache) if some else tally.failures,
        num_tokens=num_tokens,
        num_samples_read=tally.num_samples if some else None,
        num_tokens_read=tally.num_tokens if some else None,
        **_sizes(manifest, num_tokens, cache.size_bytes()),
        bytes_on_disk=cache.size_bytes(processor=True),
        num_tokens_compared=_num_compared(tally) if some or tally.distances.share < 1 else None,
        bytes_by_array=dict(bytes_by_array or {}),
        **_settings(manifest),
        taps=_taps(tally, manifest, chosen) if found else (),
        lengths=tally.lengths() if found else None,
        most_certain=tally.most_certain(),
        least_certain=tally.least_certain(),
    )


def _num_compared(tally: Tally) -> int | None:
    """Return the tokens that distances are taken over, or None where there are no distances."""
    return tally.distances.num_tokens or None


def _named_failures(cache: RecordedShards) -> dict[str, str]:
    return {cache[index].sample_id: reason for index, reason in cache.failures().items()}


class _Settings(TypedDict):
    teacher: TeacherIdentity
    tokenizer: TokenizerIdentity
    dataset: str
    sampling: Sampling
    hidden: HiddenIdentity | None
    num_parts: int
    samples_per_shard: int
    batch_size: int
    dtype: str


def _settings(manifest: CacheManifest) -> _Settings:
    return {
        "teacher": manifest.teacher,
        "tokenizer": manifest.tokenizer,
        "dataset": manifest.dataset.source,
        "sampling": manifest.sampling,
        "hidden": manifest.hidden,
        "num_parts": len(manifest.parts),
        "samples_per_shard": manifest.samples_per_shard,
        "batch_size": manifest.batch_size,
        "dtype": manifest.dtype,
    }


def _taps(tally: Tally, manifest: CacheManifest, chosen: _Chosen | None) -> tuple[TapSummary, ...]:
    """Return the figures of each tap, with standard errors if only some samples were read."""
    lacking = () if manifest.sampling.k else ("captured_mass",)

    def tap_summary(row: int, tap: int) -> TapSummary:
        means = {measure: tally.mean(measure, row) for measure in MEASURES}
        errors = None
        if chosen is not None:
            errors = TapErrors.model_validate(
                {
                    measure: tally.standard_error(measure, row, chosen.num_groups_total)
                    for measure in MEASURES
                }
                | dict.fromkeys(lacking)
            )
        return TapSummary.model_validate(
            {
                "tap": tap,
                **means,
                **dict.fromkeys(lacking),
                "entropy_quantiles": tally.entropy_quantiles(row),
                "label_log_prob_quantiles": tally.label_log_prob_quantiles(row),
                "agreement_quantiles": tally.agreement_quantiles(row),
                "agreement_with_taps": tally.agreement_with_taps(row),
                "distance_to_taps": tally.distances.means(row),
                "distance_errors": tally.distances.errors(
                    row,
                    num_groups=0 if chosen is None else tally.num_added,
                    num_groups_total=0 if chosen is None else chosen.num_groups_total,
                ),
                "standard_errors": errors,
            }
        )

    return tuple(tap_summary(row, tap) for row, tap in enumerate(manifest.taps))


class _Sizes(TypedDict):
    bytes_total: int
    bytes_per_token_tap: float | None
    compression_ratio: float | None
    dense_ratio: float | None


def _sizes(manifest: CacheManifest, num_tokens: int, num_bytes: int) -> _Sizes:
    """Return the bytes on disk, and what those of the distributions are compared with."""
    entries = num_tokens * len(manifest.taps)
    hidden = num_tokens * (manifest.hidden.bits // 8 if manifest.hidden else 0)
    raw = num_tokens * token_bytes(manifest) - hidden
    kept = num_bytes - hidden
    dense = entries * manifest.tokenizer.vocab_size * _BF16_BYTES
    return {
        "bytes_total": num_bytes,
        "bytes_per_token_tap": kept / entries if entries else None,
        "compression_ratio": raw / kept if entries else None,
        "dense_ratio": dense / kept if entries else None,
    }
