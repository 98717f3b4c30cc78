"""Samples that cannot be read in the teacher pass: told, skipped if asked for, and counted."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlsi_cache.data import Conversation, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import DataError, StageError, VlsiCacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import SampleRecord

__all__ = ["Failures", "KeyedBatch", "KeyedBatches", "failed_record", "reason_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyedBatch:
    """A batch of conversations, those that could not be encoded left out of its tensors."""

    keys: list[tuple[str, str]]
    """Id and content key of every sample."""
    failures: dict[int, str]
    """Place of a sample that is left out → why."""
    inputs: dict[str, Any] | None
    """Of ``TokenBatches``, of the samples that are left; None if none is."""


@dataclass(frozen=True, slots=True)
class KeyedBatches:
    """Collation that keeps each sample's id and content key beside the batch."""

    collate: TokenBatches
    skip: bool
    """Leave out samples that cannot be encoded, instead of raising."""

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> KeyedBatch:
        """Collate ``(sample index, conversation)`` pairs.

        Raises:
            DataError: a sample cannot be encoded, and is not to be skipped.
        """
        keys = [(conversation.sample_id, conversation.key()) for _, conversation in items]
        try:
            return KeyedBatch(keys, {}, self.collate(items))
        except DataError:
            if not self.skip:
                raise
        failures = {}
        for place, item in enumerate(items):
            try:
                self.collate([item])
            except DataError as error:
                failures[place] = reason_of(error)
        left = [item for place, item in enumerate(items) if place not in failures]
        return KeyedBatch(keys, failures, self.collate(left) if left else None)


@dataclass(slots=True)
class Failures:
    """Counts samples that failed, and stops a run in which nothing else happens.

    Attributes:
        max_in_a_row: more than so many, one after another, stop it.
    """

    max_in_a_row: int
    in_a_row: int = field(default=0, init=False)

    def add(self, record: SampleRecord) -> None:
        """Count a record in the order of samples.

        Raises:
            StageError: too many failed one after another.
        """
        if record.failure is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        logger.warning("skipped sample %r: %s", record.sample_id, record.failure)
        if self.in_a_row > self.max_in_a_row:
            raise StageError(
                f"{self.in_a_row} samples in a row cannot be read, the last because: "
                f"{record.failure}",
                where=f"sample {record.sample_id!r}",
                expected=f"at most {self.max_in_a_row} in a row",
                mend="Mend their cause, or raise cache.max_failures_in_a_row",
            )


def failed_record(sample_id: str, key: str, reason: str, manifest: CacheManifest) -> SampleRecord:
    """The record of a sample that cannot be read: no tokens, and why."""
    leading, sampling = (0, len(manifest.taps)), manifest.sampling
    return SampleRecord(
        sample_id=sample_id,
        key=key,
        response_ids=np.empty(0, np.int32),
        distribution=SparseDistribution(
            token_ids=np.empty((*leading, sampling.k + sampling.m), np.int32),
            top_log_probs=np.empty((*leading, sampling.k), np.float32),
            entropy=np.empty(leading, np.float32),
            label_log_prob=np.empty(leading, np.float32),
        ),
        failure=reason,
    )


def reason_of(error: VlsiCacheError) -> str:
    """What went wrong, the same on every machine: not where, and no addresses of objects."""
    parts = [error.what]
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    if error.found is not None:
        parts.append(f"found {error.found}")
    return re.sub(r" at 0x[0-9a-f]+", "", "; ".join(parts))
