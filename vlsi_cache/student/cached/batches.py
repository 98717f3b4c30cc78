"""``CachedBatches``: batches of response tokens with the teacher's record of the same tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlsi_cache.data import BatchEncoder, Conversation, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.hidden import sign_rows
from vlsi_cache.objectives import Tail, sparse_targets
from vlsi_cache.store import Cache, SampleRecord, open_cache, url_scheme
from vlsi_cache.student.agreement import validate_content, validate_tokens

__all__ = ["CachedBatches"]


class CachedBatches:
    """``TokenBatches`` with the teacher's sparse distributions of the same tokens.

    A batch gets ``targets``: ``SparseTargets`` ``[N, L_t + 1, S]`` of the teacher's taps.
    The last tap is its final output. If a hidden state is asked for, it also gets its
    ``hidden_signs`` ``[N, b / 8]`` uint8, and ``rotations`` ``[N]`` long.

    Args:
        encoder: the student's encoder.
        cache: the teacher's record of the same data.
        tail: what stands for the tokens that are not among the k most likely.
        with_hidden: whether batches hold the recorded hidden state.
    """

    def __init__(
        self, encoder: BatchEncoder, cache: Cache, tail: Tail, *, with_hidden: bool = False
    ) -> None:
        self.encoder = encoder
        self.with_hidden = with_hidden
        self.tail: Tail = tail
        self._tokens = TokenBatches(encoder)
        self._cache = cache
        self._process: int | None = os.getpid()
        self._validated: set[int] = set()

    @property
    def start_method(self) -> str | None:
        """How workers start: clients of object stores do not survive a fork."""
        return "spawn" if url_scheme(self._cache.path) else None

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Collate ``(sample index, conversation)`` pairs, and validate them against the record.

        Raises:
            CacheMismatchError: a sample, or its response tokens, differ from the recorded ones.
        """
        batch = self._tokens(items)
        cache = self._own_cache()
        records = [cache[index] for index, _ in items]
        counts = torch.bincount(batch["token_samples"], minlength=len(items)).tolist()
        responses = batch["labels"].split(counts)
        for (index, conversation), record, ids in zip(items, records, responses, strict=True):
            if index not in self._validated:  # hashing reads the images: once is enough
                validate_content(conversation, record)
                self._validated.add(index)
            expected = record.response_ids.tolist()
            validate_tokens(conversation, expected, ids.tolist(), self.encoder.word)
        joined = SparseDistribution.concatenate([record.distribution for record in records])
        hidden = _hidden_state(records) if self.with_hidden else {}
        return {**batch, **hidden, "targets": sparse_targets(joined, self.tail)}

    def _own_cache(self) -> Cache:
        """Return this process's cache: another's locks and event loops do not survive a fork."""
        if self._process != os.getpid():
            self._cache = open_cache(self._cache.path)
            self._process = os.getpid()
        return self._cache

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}


def _hidden_state(records: Sequence[SampleRecord]) -> dict[str, torch.Tensor]:
    signs = [record.hidden_signs for record in records if record.hidden_signs is not None]
    rotations = [sign_rows(record.key, len(record.response_ids)) for record in records]
    return {
        "hidden_signs": torch.from_numpy(np.concatenate(signs)),
        "rotations": torch.from_numpy(np.concatenate(rotations)),
    }
