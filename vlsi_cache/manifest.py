"""``CacheManifest``: what a cache was made from, and how its samples are laid out in shards."""

from __future__ import annotations

import functools
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "FORMAT_VERSION",
    "MAX_DRAWS",
    "MAX_PARTS",
    "MAX_POOL",
    "MAX_SHARDS",
    "MAX_TOP",
    "OUTPUT_TAP",
    "CacheManifest",
    "CachePart",
    "DatasetIdentity",
    "Sampling",
    "ShardOrigin",
    "TeacherIdentity",
    "TokenizerIdentity",
    "differences",
]

FORMAT_VERSION: Final = 1
"""Version of the cache format that this library writes and reads; see FORMAT.md."""

MAX_DRAWS: Final = 255
"""Most tokens that are drawn per response token and tap."""

MAX_POOL: Final = 65_535
"""Most tokens that are drawn per response token at all taps together."""

MAX_TOP: Final = 2**26
"""Most tokens that are kept per response token at all taps together: a chunk holds at least one
response token."""

MAX_PARTS: Final = 1000
"""Most parts of a merged cache."""

MAX_SHARDS: Final = 10**6
"""Most shards of a cache."""

OUTPUT_TAP: Final = -1
"""The tap that stands for the model's own output."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# the bounds keep a hostile manifest from asking for more than any machine holds
_Count = Annotated[int, Field(ge=0, le=10**12)]
_Positive = Annotated[int, Field(ge=1, le=10**9)]
_MAX_TAPS: Final = 10**4
_Block = Annotated[int, Field(ge=-1, le=10**6)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class TeacherIdentity(_Part):
    """The model that was recorded."""

    name: str
    """`from_pretrained` name or folder, for people; the fingerprint identifies it."""
    model_type: str
    """Model type of its Hugging Face config, such as `qwen2_vl`."""
    weights_fingerprint: _Sha256
    """SHA-256 over the weights (`vlsi_cache.models.weights_fingerprint`)."""


class TokenizerIdentity(_Part):
    """The tokenizer whose ids the distributions live on."""

    name: str
    """Name or folder, for people; the hash identifies it."""
    hash: _Sha256
    """SHA-256 over the vocabulary (`vlsi_cache.models.vocabulary_hash`)."""
    vocab_size: _Positive
    """Number of ids, V; padded rows of the head are not counted."""


class DatasetIdentity(_Part):
    """The conversations that were recorded."""

    source: str
    """Path or name, for people; the fingerprint identifies it."""
    fingerprint: _Sha256
    """SHA-256 over the samples' content keys, in order."""
    num_samples: _Count
    """Number of conversations."""


class Sampling(_Part):
    """What is kept of each distribution."""

    k: _Count
    """Most likely tokens kept."""
    m: int = Field(ge=0, le=MAX_DRAWS)
    """Tokens drawn from the rest: from the whole distribution if k is 0."""
    seed: int
    """Seed of the draws."""


class CachePart(_Part):
    """One of the caches that a merged one holds, with its shards as they are."""

    manifest_sha256: _Sha256
    """SHA-256 of the part's own `manifest.json`, which its shards name; `parts/` keeps a copy."""
    dataset: DatasetIdentity
    """Its conversations."""
    samples_per_shard: _Positive
    """Samples of each of its shards but the last."""
    batch_size: _Positive
    """Samples per forward pass of the teacher."""

    @property
    def num_shards(self) -> int:
        """Number of its shards."""
        return _num_shards(self.dataset.num_samples, self.samples_per_shard)


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """Where a shard comes from: its number in the cache that it was written for."""

    part_index: int | None
    """Part of a merged cache; None in a cache that is not merged."""
    shard_index: int
    """Its number there."""
    samples: range
    """Indices of its samples in the whole cache."""


class _PartStarts(NamedTuple):
    """Where the parts of a merged cache begin, so that none has to be walked over."""

    shards: list[int]
    """First shard of each part; of parts without one, that of the next."""
    samples: list[int]
    """First sample of each part."""
    num_shards: int
    """Of all."""


class CacheManifest(_Part):
    """Identity and layout of a cache; written once, before the first shard."""

    format_version: Literal[1] = 1
    """Version of the cache format."""
    vlsi_cache_version: str
    """Version of the library that began the cache, for people."""
    teacher: TeacherIdentity
    """The model that was recorded."""
    verbalizers_fingerprint: _Sha256
    """SHA-256 over the weights of the teacher's verbalizers."""
    tokenizer: TokenizerIdentity
    """The teacher's tokenizer."""
    chat_template_hash: _Sha256
    """SHA-256 of the chat template that rendered the conversations."""
    dataset: DatasetIdentity
    """The conversations that were recorded."""
    taps: tuple[_Block, ...] = Field(min_length=1, max_length=_MAX_TAPS, strict=False)
    """0-based decoder block indices, ascending; the last is -1, the model's own output."""
    sampling: Sampling
    """What is kept of each distribution."""
    samples_per_shard: _Positive
    """Samples of every shard but the last, which may hold fewer."""
    batch_size: _Positive
    """Samples per forward pass of the teacher: padding may change the last bits of a result."""
    dtype: str
    """The teacher's parameter type, such as `bfloat16`."""
    parts: tuple[CachePart, ...] = Field(
        default=(), max_length=MAX_PARTS, strict=False, exclude_if=lambda parts: not parts
    )
    """Of a merged cache: the caches that it holds, one after the other; else left out."""

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        *blocks, last = self.taps
        if last != OUTPUT_TAP or OUTPUT_TAP in blocks or blocks != sorted(set(blocks)):
            raise ValueError("taps must ascend without repetition and end with -1, the output")
        if not 1 <= self.sampling.k + self.sampling.m <= self.tokenizer.vocab_size:
            raise ValueError("sampling.k + sampling.m is 0 or exceeds tokenizer.vocab_size")
        if len(self.taps) * self.sampling.m > MAX_POOL:
            raise ValueError(f"more than {MAX_POOL:,} draws per token at all taps together")
        if len(self.taps) * self.sampling.k > MAX_TOP:
            raise ValueError(f"more than {MAX_TOP:,} entries kept per token at all taps together")
        if self.parts:
            self._check_parts()
        if self.num_shards > MAX_SHARDS:
            raise ValueError(
                f"{self.num_shards:,} shards, at most {MAX_SHARDS:,}: raise samples_per_shard"
            )
        return self

    def _check_parts(self) -> None:
        if sum(part.dataset.num_samples for part in self.parts) != self.dataset.num_samples:
            raise ValueError("dataset.num_samples is not the sum of the parts'")
        for name in ("samples_per_shard", "batch_size"):
            if getattr(self, name) != max(getattr(part, name) for part in self.parts):
                raise ValueError(f"{name} is not the largest of the parts'")

    @property
    def num_shards(self) -> int:
        """Number of shards of the complete cache."""
        if self.parts:
            return self._part_starts.num_shards
        return _num_shards(self.dataset.num_samples, self.samples_per_shard)

    # not a field: pydantic leaves what functools made alone
    @functools.cached_property
    def _part_starts(self) -> _PartStarts:
        shards = list(accumulate((part.num_shards for part in self.parts), initial=0))
        samples = list(accumulate((part.dataset.num_samples for part in self.parts), initial=0))
        return _PartStarts(shards[:-1], samples[:-1], shards[-1])

    def shard_of(self, sample_index: int) -> int:
        """Shard that holds a sample.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= sample_index < self.dataset.num_samples:
            raise IndexError(f"sample {sample_index} of {self.dataset.num_samples}")
        if not self.parts:
            return sample_index // self.samples_per_shard
        starts = self._part_starts
        part_index = bisect_right(starts.samples, sample_index) - 1
        row = sample_index - starts.samples[part_index]
        return starts.shards[part_index] + row // self.parts[part_index].samples_per_shard

    def shard_range(self, shard_index: int) -> range:
        """Indices of the samples that a shard holds.

        Raises:
            IndexError: there is no such shard.
        """
        return self.shard_origin(shard_index).samples

    def shard_origin(self, shard_index: int) -> ShardOrigin:
        """Where a shard comes from.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard_index < self.num_shards:
            raise IndexError(f"shard {shard_index} of {self.num_shards}")
        if not self.parts:
            samples = _shard_samples(shard_index, self.samples_per_shard, self.dataset.num_samples)
            return ShardOrigin(None, shard_index, samples)
        starts = self._part_starts
        part_index = bisect_right(starts.shards, shard_index) - 1
        part, first = self.parts[part_index], starts.samples[part_index]
        own_index = shard_index - starts.shards[part_index]
        own = _shard_samples(own_index, part.samples_per_shard, part.dataset.num_samples)
        return ShardOrigin(part_index, own_index, range(first + own.start, first + own.stop))

    def differences_from(self, wanted: CacheManifest) -> list[str]:
        """Every difference that makes this cache another than the wanted one.

        Names, sources and the library's version inform people only and are not compared: a moved
        model folder is the same model, as its fingerprint says.

        Returns:
            One clause per difference, with its path; empty if a run may go on with this cache.
        """
        return _explained(differences(_content(self), _content(wanted)))

    def differences_of_kind(self, first: CacheManifest) -> list[str]:
        """Every difference for which this cache and the first cannot be parts of one.

        Samples and their cutting into shards and batches may differ.

        Returns:
            One clause per difference, with its path.
        """
        own, others = (
            {name: value for name, value in _content(manifest).items() if name not in _OF_PART}
            for manifest in (self, first)
        )
        return _explained(differences(own, others, other="the first cache's"))


_OF_PART: Final = frozenset({"batch_size", "dataset", "parts", "samples_per_shard"})
"""What each part of a merged cache has of its own."""

_MEANINGS: Final = {
    "batch_size": "padding may change a result's last bits",
    "chat_template_hash": "the chat template renders other conversations",
    "dataset.fingerprint": "the conversations or their images are others",
    "dataset.num_samples": "the data is longer or shorter; see data.limit",
    "dtype": "the teacher runs in another precision",
    "sampling.seed": "the tail is drawn otherwise",
    "parts": "one of the two is merged of others",
    "samples_per_shard": "the shards are cut otherwise",
    "taps": "the teacher is read at other layers",
    "teacher.model_type": "the teacher is of another architecture",
    "teacher.weights_fingerprint": "the teacher has other weights",
    "tokenizer.hash": "the teacher's vocabulary is another",
    "tokenizer.vocab_size": "the teacher's vocabulary is of another size",
    "verbalizers_fingerprint": "the teacher's verbalizers have other weights",
}
"""What a difference comes from, where its path does not say it."""


def _num_shards(num_samples: int, samples_per_shard: int) -> int:
    return -(-num_samples // samples_per_shard)


def _shard_samples(shard_index: int, samples_per_shard: int, num_samples: int) -> range:
    first = shard_index * samples_per_shard
    return range(first, min(first + samples_per_shard, num_samples))


def _explained(clauses: Sequence[str]) -> list[str]:
    return [
        f"{clause} ({_MEANINGS[path]})"
        if (path := clause.split(" is ")[0]) in _MEANINGS
        else clause
        for clause in clauses
    ]


def differences(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], *, other: str = "asked for"
) -> list[str]:
    """Every value in which two trees of JSON values differ.

    Args:
        recorded: what a folder says it was made with.
        asked: what it is wanted for.
        other: how the second is called.

    Returns:
        One clause per difference, in the order of their dotted paths, such as
        ``sampling.k is 4, asked for 8``.
    """
    left, right = dict(_leaves(recorded)), dict(_leaves(asked))
    return [
        f"{path} is {_shown(left, path)}, {other} {_shown(right, path)}"
        for path in sorted(left.keys() | right.keys())
        # compared as JSON, in which True is not 1 and NaN is NaN
        if _as_json(left, path) != _as_json(right, path)
    ]


def _content(manifest: CacheManifest) -> dict[str, Any]:
    return manifest.model_dump(
        mode="json",
        exclude={
            "vlsi_cache_version": True,
            "teacher": {"name"},
            "tokenizer": {"name"},
            "dataset": {"source"},
            "parts": {"__all__": {"dataset": {"source"}}},
        },
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _as_json(leaves: Mapping[str, Any], path: str) -> str | None:
    return json.dumps(leaves[path], sort_keys=True) if path in leaves else None


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    if path not in leaves:
        return "absent"
    text = json.dumps(leaves[path], ensure_ascii=False, sort_keys=True)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}…"
    # enough of a fingerprint to tell two apart
    return f"{leaves[path][:12]}…" if _is_hash(leaves[path]) else text


_SHOWN_CHARACTERS: Final = 200


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
