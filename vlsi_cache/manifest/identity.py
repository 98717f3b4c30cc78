"""The identities that a manifest records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vlsi_cache.jsonmodels import StoredModel
from vlsi_cache.manifest.limits import (
    LEAST_BITS,
    MAX_BITS,
    MAX_DRAWS,
    Count,
    PositiveCount,
    Sha256,
)
from vlsi_cache.manifest.sharding import Cut

__all__ = [
    "CachePart",
    "ConfigIdentity",
    "DatasetIdentity",
    "HiddenIdentity",
    "Sampling",
    "TeacherIdentity",
    "TokenizerIdentity",
    "format_version_of",
    "rotation_width",
]


class ConfigIdentity(StoredModel):
    """What a model's configuration decides, as the library that ran it reads the configuration."""

    sha256: Sha256
    """SHA-256 over its values that decide numbers (`vlsi_cache.models.config_hash`)."""
    transformers: str
    """Version of transformers. Another one names the same values otherwise, so hashes are compared
    under one version only."""


class TeacherIdentity(StoredModel):
    """The model that was recorded."""

    name: str
    """`from_pretrained` name or folder, for people; the fingerprint identifies it."""
    model_type: str
    """Model type of its Hugging Face config, such as `qwen2_vl`."""
    weights_fingerprint: Sha256
    """SHA-256 over the weights (`vlsi_cache.models.weights_fingerprint`)."""
    revision: str | None = Field(default=None, exclude_if=lambda revision: revision is None)
    """Branch, tag or commit on the hub. Teachers without one leave the field out."""
    loading: dict[str, Any] = Field(default={}, exclude_if=lambda loading: not loading)
    """Kernels and quantisation that take the place of the default. Most teachers leave it out."""
    config: ConfigIdentity | None = Field(default=None, exclude_if=lambda config: config is None)
    """What the configuration decides beside the weights. Caches from before this field leave it
    out."""


class TokenizerIdentity(StoredModel):
    """The tokenizer whose ids the distributions live on."""

    name: str
    """Name or folder, for people; the hash identifies it."""
    hash: Sha256
    """SHA-256 over the vocabulary (`vlsi_cache.models.vocabulary_hash`)."""
    vocab_size: PositiveCount
    """Number of ids, V; padded rows of the head are not counted."""


class DatasetIdentity(StoredModel):
    """The conversations that were recorded."""

    source: str
    """Path or name, for people; the fingerprint identifies it."""
    fingerprint: Sha256
    """SHA-256 over the samples' content keys, in order."""
    num_samples: Count
    """Number of conversations."""


class Sampling(StoredModel):
    """What is kept of each distribution."""

    k: Count
    """Most likely tokens kept."""
    m: int = Field(ge=0, le=MAX_DRAWS)
    """Tokens drawn from the rest; from the whole distribution if k is 0."""
    seed: int
    """Seed of the draws."""
    drawn_from: Literal["rest", "whole"] = Field(
        default="rest", exclude_if=lambda drawn_from: drawn_from == "rest"
    )
    """What the m tokens are drawn from if k ≥ 1. `rest` is left out."""


class HiddenIdentity(StoredModel):
    """What is kept of a hidden state: signs of its random rotations (`vlsi_cache.hidden`)."""

    block: int = Field(ge=0, le=10**6)
    """The decoder block whose output it is, from 0."""
    num_blocks: int = Field(ge=1, le=10**6)
    """Decoder blocks of the teacher."""
    width: int = Field(ge=1, le=MAX_BITS)
    """Hidden size of the teacher, D."""
    bits: int = Field(ge=LEAST_BITS, le=MAX_BITS, multiple_of=8)
    """Signs kept, b. At most the width of the rotation, W."""


def rotation_width(width: int) -> int:
    """Return the width W of a hidden state's rotation: a power of two, at least its size and 64."""
    return max(1 << (width - 1).bit_length(), LEAST_BITS)


def format_version_of(sampling: Sampling, *, has_hidden: bool) -> Literal[1, 2, 3]:
    """Return the version of the format that has such records."""
    if has_hidden:
        return 3
    return 2 if sampling.drawn_from == "whole" else 1


class CachePart(StoredModel):
    """One of the caches that a merged cache holds, with its shards unchanged."""

    manifest_sha256: Sha256
    """SHA-256 of the part's own `manifest.json`, which its shards name; `parts/` keeps a copy."""
    dataset: DatasetIdentity
    """The part's conversations."""
    samples_per_shard: PositiveCount
    """Samples of each of the part's shards but the last."""
    batch_size: PositiveCount
    """Most samples per forward pass of the run that began the part, for people."""

    @property
    def cut(self) -> Cut:
        """The part's samples, cut into shards."""
        return Cut(self.dataset.num_samples, self.samples_per_shard)
