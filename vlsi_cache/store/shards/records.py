"""Records: one sample's, and those of a whole shard laid end to end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.distribution import SparseDistribution

__all__ = ["SampleRecord", "ShardRecord"]


@dataclass(frozen=True, slots=True, eq=False)
class SampleRecord:
    """The teacher's record of the N response tokens of one conversation."""

    sample_id: str
    """Name of the sample in its dataset."""
    key: str
    """SHA-256 hex of the conversation's content."""
    response_ids: NDArray[np.int32]
    """``[N]``: the response tokens."""
    distribution: SparseDistribution
    """``[N, L]``: the teacher's taps at every response token, the output last."""
    failure: str | None = None
    """Why the sample could not be read. Such a sample has no tokens."""
    hidden_signs: NDArray[np.uint8] | None = None
    """``[N, b / 8]``: signs of a hidden state, if the cache keeps them (``vlsi_cache.hidden``)."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardRecord:
    """The records of n samples, their N response tokens laid end to end."""

    sample_ids: tuple[str, ...]
    """The n names."""
    keys: NDArray[np.uint8]
    """``[n, 32]``: SHA-256 of each conversation's content."""
    offsets: NDArray[np.int64]
    """``[n + 1]``: sample i owns the tokens from ``offsets[i]`` to ``offsets[i + 1]``."""
    response_ids: NDArray[np.int32]
    """``[N]``: the response tokens."""
    distribution: SparseDistribution
    """``[N, L]``: the taps, the output last."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Row of each sample that could not be read → reason."""
    hidden_signs: NDArray[np.uint8] | None = None
    """``[N, b / 8]``: signs of a hidden state, if the cache keeps them."""

    @classmethod
    def join(cls, records: Sequence[SampleRecord]) -> ShardRecord:
        """Lay at least one sample's records end to end.

        Raises:
            ValueError: a key is not SHA-256 in hex, or shapes disagree.
        """
        counts = [len(record.response_ids) for record in records]
        for record, count in zip(records, counts, strict=True):
            if record.failure and count:
                raise ValueError(f"sample {record.sample_id!r} failed, and yet has tokens")
            if len(record.distribution) != count or len(bytes.fromhex(record.key)) != 32:
                raise ValueError(f"record of sample {record.sample_id!r} contradicts itself")
        keys = b"".join(bytes.fromhex(record.key) for record in records)
        signs = [record.hidden_signs for record in records if record.hidden_signs is not None]
        return cls(
            sample_ids=tuple(record.sample_id for record in records),
            keys=np.frombuffer(keys, np.uint8).reshape(-1, 32),
            offsets=np.cumsum([0, *counts], dtype=np.int64),
            response_ids=np.concatenate([record.response_ids for record in records]),
            distribution=SparseDistribution.concatenate([r.distribution for r in records]),
            failures={row: record.failure for row, record in enumerate(records) if record.failure},
            hidden_signs=np.concatenate(signs) if signs else None,
        )

    @property
    def num_tokens(self) -> int:
        """Number of response tokens, N."""
        return len(self.response_ids)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __iter__(self) -> Iterator[SampleRecord]:
        for index, sample_id in enumerate(self.sample_ids):
            part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
            yield SampleRecord(
                sample_id=sample_id,
                key=self.keys[index].tobytes().hex(),
                response_ids=self.response_ids[part],
                distribution=self.distribution[part],
                failure=self.failures.get(index),
                hidden_signs=None if self.hidden_signs is None else self.hidden_signs[part],
            )
