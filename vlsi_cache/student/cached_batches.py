"""``CachedBatches``: batches of response tokens with the teacher's record of the same tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsi_cache.data import BatchEncoder, Conversation, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.objectives import Tail, sparse_targets
from vlsi_cache.store import Cache, SampleRecord, open_cache
from vlsi_cache.store.places.place import url_scheme

__all__ = ["CachedBatches"]


class CachedBatches:
    """``TokenBatches`` with the teacher's sparse distributions of the same tokens.

    Adds ``teacher_ids`` ``[N, L_t + 1, S]``, ``teacher_weights`` (same shape) and
    ``teacher_entropy`` ``[N, L_t + 1]``; the last tap is the teacher's final output.

    Args:
        encoder: the student's.
        cache_path: folder or URL of the cache.
        tail: what stands for the tokens that are not among the k most likely.
    """

    def __init__(self, encoder: BatchEncoder, cache_path: str | Path, tail: Tail) -> None:
        self.tokens = TokenBatches(encoder)
        self.cache_path = cache_path
        self.tail: Tail = tail
        self._cache: Cache | None = None
        self._process = 0
        self._proven: set[int] = set()

    @property
    def start_method(self) -> str | None:
        """How workers have to start: clients of object stores do not live through a fork."""
        return "spawn" if url_scheme(self.cache_path) else None

    def __call__(self, items: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Collate, and prove that the student's tokens are those the teacher was read at.

        Raises:
            CacheMismatchError: a sample differs from the one that was dumped.
        """
        if self._cache is None or self._process != os.getpid():
            # each process has its own: locks and loops of another do not live through a fork
            self._cache, self._process = open_cache(self.cache_path), os.getpid()
        batch = self.tokens(items)
        records = [self._cache[index] for index, _ in items]
        counts = torch.bincount(batch["token_samples"], minlength=len(items)).tolist()
        for (index, conversation), record, ids in zip(
            items, records, batch["labels"].split(counts), strict=True
        ):
            if index not in self._proven:  # hashing reads the images: once is enough
                _prove_same_content(conversation, record)
                self._proven.add(index)
            self._prove_same_tokens(conversation, record, ids)
        joined = SparseDistribution.concatenate([record.distribution for record in records])
        targets = sparse_targets(joined, self.tail)
        batch["teacher_ids"] = targets.token_ids
        batch["teacher_weights"] = targets.weights
        batch["teacher_entropy"] = targets.entropy
        return batch

    def _prove_same_tokens(
        self, conversation: Conversation, record: SampleRecord, ids: Tensor
    ) -> None:
        found, expected = ids.tolist(), record.response_ids.tolist()
        if found == expected:
            return
        pairs = zip_longest(expected, found)
        place = next(index for index, (wanted, given) in enumerate(pairs) if wanted != given)
        raise CacheMismatchError(
            f"the student's processor gives sample {conversation.sample_id!r} other response "
            "tokens than the teacher's",
            where=conversation.origin,
            expected=f"{len(expected)} tokens, {self._token(expected, place)}",
            found=f"{len(found)} tokens, {self._token(found, place)}",
            mend="Teacher and student must share tokenizer, chat template and end-of-turn token: "
            "give the student the teacher's tokenizer_config.json and chat template",
        )

    def _token(self, ids: Sequence[int], place: int) -> str:
        if place >= len(ids):
            return f"none at place {place}"
        return f"{ids[place]} ({self.tokens.encoder.word(ids[place])!r}) at place {place}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


def _prove_same_content(conversation: Conversation, record: SampleRecord) -> None:
    if record.key != conversation.key():
        raise CacheMismatchError(
            f"sample {conversation.sample_id!r} differs from the one that was dumped",
            where=conversation.origin,
            expected=f"content {record.key[:12]} (sample {record.sample_id!r})",
            found=f"content {conversation.key()[:12]}",
            mend="Dump the teacher again for this data, or train on the data of the cache",
        )
