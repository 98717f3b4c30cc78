"""``CacheManifest``: the identity and the layout of a cache."""

from __future__ import annotations

import functools
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vlsi_cache.jsonmodels import StoredModel
from vlsi_cache.manifest.identity import (
    CachePart,
    DatasetIdentity,
    HiddenIdentity,
    Sampling,
    TeacherIdentity,
    TokenizerIdentity,
    format_version_of,
    rotation_width,
)
from vlsi_cache.manifest.limits import (
    MAX_DRAWS,
    MAX_PARTS,
    MAX_POOL,
    MAX_SHARDS,
    MAX_TAPS,
    MAX_TOP,
    OUTPUT_TAP,
    PositiveCount,
    Sha256,
    Tap,
)
from vlsi_cache.manifest.sharding import Cut, Sharding, ShardOrigin

__all__ = ["CacheManifest"]


class CacheManifest(StoredModel):
    """Identity and layout of a cache. It is written once, before the first shard."""

    format_version: Literal[1, 2, 3] = 1
    """Version of the cache format: 3 with hidden states, 2 if the draws are from the whole
    distribution beside k."""
    vlsi_cache_version: str
    """Version of the library that began the cache, for people."""
    teacher: TeacherIdentity
    """The model that was recorded."""
    verbalizers_fingerprint: Sha256
    """SHA-256 over the weights of the teacher's verbalizers."""
    tokenizer: TokenizerIdentity
    """The teacher's tokenizer."""
    chat_template_hash: Sha256
    """SHA-256 of the chat template that rendered the conversations."""
    processor_options: dict[str, Any] = Field(default={}, exclude_if=lambda options: not options)
    """Options of the processor that took the place of its own. Caches without leave it out."""
    dataset: DatasetIdentity
    """The conversations that were recorded."""
    taps: tuple[Tap, ...] = Field(min_length=1, max_length=MAX_TAPS, strict=False)
    """0-based decoder block indices, ascending; the last is -1, the model's own output."""
    sampling: Sampling
    """What is kept of each distribution."""
    hidden: HiddenIdentity | None = Field(default=None, exclude_if=lambda hidden: hidden is None)
    """What is kept of a hidden state. Caches without one leave it out."""
    samples_per_shard: PositiveCount
    """Samples of every shard but the last, which may hold fewer."""
    batch_size: PositiveCount
    """Most samples per forward pass of the run that began the cache, for people. A record does not
    depend on it, but for its last bits."""
    dtype: str
    """The teacher's parameter type, such as `bfloat16`."""
    parts: tuple[CachePart, ...] = Field(
        default=(), max_length=MAX_PARTS, strict=False, exclude_if=lambda parts: not parts
    )
    """The caches that a merged cache holds, in order. Other caches leave the field out."""

    @model_validator(mode="after")
    def _validate_together(self) -> Self:
        *blocks, last = self.taps
        if last != OUTPUT_TAP or OUTPUT_TAP in blocks or blocks != sorted(set(blocks)):
            raise ValueError("taps must ascend without repetition and end with -1, the output")
        needed = format_version_of(self.sampling, has_hidden=self.hidden is not None)
        if self.format_version != needed:
            raise ValueError(f"format_version is not {needed}, which has such records")
        if self.hidden is not None:
            _validate_hidden(self.hidden)
        if self.sampling.drawn_from == "whole":
            self._validate_whole()
        if not 1 <= self.sampling.k + self.sampling.m <= self.tokenizer.vocab_size:
            raise ValueError("sampling.k + sampling.m is 0 or exceeds tokenizer.vocab_size")
        if len(self.taps) * self.sampling.m > MAX_POOL:
            raise ValueError(f"more than {MAX_POOL:,} draws per token at all taps together")
        if len(self.taps) * self.sampling.k > MAX_TOP:
            raise ValueError(f"more than {MAX_TOP:,} entries kept per token at all taps together")
        if self.parts:
            self._validate_parts()
        if self.num_shards > MAX_SHARDS:
            raise ValueError(
                f"{self.num_shards:,} shards, at most {MAX_SHARDS:,}: raise samples_per_shard"
            )
        return self

    def _validate_whole(self) -> None:
        k, m = self.sampling.k, self.sampling.m
        if not 1 <= k <= MAX_DRAWS or not m:
            raise ValueError(f"sampling.drawn_from whole needs m ≥ 1 and k in 1 … {MAX_DRAWS}")
        if len(self.taps) * (k + m) > MAX_POOL:
            raise ValueError(f"more than {MAX_POOL:,} entries per token at all taps together")

    def _validate_parts(self) -> None:
        if sum(part.dataset.num_samples for part in self.parts) != self.dataset.num_samples:
            raise ValueError("dataset.num_samples is not the sum of the parts'")
        for name in ("samples_per_shard", "batch_size"):
            if getattr(self, name) != max(getattr(part, name) for part in self.parts):
                raise ValueError(f"{name} is not the largest of the parts'")

    @property
    def num_shards(self) -> int:
        """Number of shards of the complete cache."""
        return self._sharding.num_shards

    def shard_of(self, sample_index: int) -> int:
        """Return the index of the shard that holds a sample.

        Raises:
            IndexError: the sample does not exist.
        """
        return self._sharding.shard_of(sample_index)

    def shard_range(self, shard_index: int) -> range:
        """Return the indices of the samples that a shard holds.

        Raises:
            IndexError: the shard does not exist.
        """
        return self.shard_origin(shard_index).samples

    def shard_origin(self, shard_index: int) -> ShardOrigin:
        """Return the cache that a shard was written for.

        Raises:
            IndexError: the shard does not exist.
        """
        return self._sharding.origin(shard_index)

    @property
    def _sharding(self) -> Sharding:
        if self.parts:
            return self._sharding_of_parts
        # not kept: a copy of the manifest with other numbers would inherit it
        return Sharding([Cut(self.dataset.num_samples, self.samples_per_shard)], is_merged=False)

    # pydantic takes no field from a cached property
    @functools.cached_property
    def _sharding_of_parts(self) -> Sharding:
        return Sharding([part.cut for part in self.parts], is_merged=True)


def _validate_hidden(hidden: HiddenIdentity) -> None:
    if hidden.bits > rotation_width(hidden.width):
        raise ValueError("hidden.bits exceeds the width of the rotation of hidden.width")
    if hidden.block >= hidden.num_blocks:
        raise ValueError("hidden.block is not one of hidden.num_blocks")
