"""Samples that the teacher pass cannot read: each stops the run, or is skipped and recorded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import SampleRecord
from vlsi_cache.training import too_many_in_a_row

__all__ = ["Failures", "failed_record"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Failures:
    """Counts samples that failed, and stops a run in which nothing else happens.

    Attributes:
        max_in_a_row: the most that may fail one after another.
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
            raise too_many_in_a_row(
                self.in_a_row, self.max_in_a_row, f"sample {record.sample_id!r}", record.failure
            )


def failed_record(sample_id: str, key: str, reason: str, manifest: CacheManifest) -> SampleRecord:
    """Return the record of a sample that cannot be read: the reason, and no tokens."""
    leading, sampling = (0, len(manifest.taps)), manifest.sampling
    hidden = manifest.hidden
    return SampleRecord(
        sample_id=sample_id,
        key=key,
        response_ids=np.empty(0, np.int32),
        distribution=SparseDistribution(
            token_ids=np.empty((*leading, sampling.k + sampling.m), np.int32),
            top_log_probs=np.empty((*leading, sampling.k), np.float32),
            entropy=np.empty(leading, np.float32),
            label_log_prob=np.empty(leading, np.float32),
            drawn_from=sampling.drawn_from,
        ),
        failure=reason,
        hidden_signs=None if hidden is None else np.empty((0, hidden.bits // 8), np.uint8),
    )
