"""``TeacherPass``: batches of conversations to records, every tap of every response token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.errors import StageError
from vlsi_cache.hidden import HiddenTap, sign_rows
from vlsi_cache.models import Backbone, TapState, is_split, run_backbone
from vlsi_cache.sampling import TapRecorder, begin_copy, begin_send
from vlsi_cache.store import SampleRecord
from vlsi_cache.training.processes import gathered, own_part
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["TeacherPass", "record_uniforms"]

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of N response tokens."""

    distribution: SparseDistribution
    """``[N, L_t + 1]``."""
    hidden_signs: np.ndarray[Any, np.dtype[np.uint8]] | None
    """``[N, b / 8]``, if a hidden state is kept."""

    @staticmethod
    def join(parts: Sequence[_Read]) -> _Read:
        """Join the slices of several processes."""
        signs = [part.hidden_signs for part in parts if part.hidden_signs is not None]
        return _Read(
            SparseDistribution.concatenate([part.distribution for part in parts]),
            np.concatenate(signs) if signs else None,
        )


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """Reads batches of conversations into sparse distributions."""

    backbone: Backbone
    """The teacher."""
    bank: VerbalizerBank
    """Its verbalizers."""
    recorder: TapRecorder
    """Keeps a sparse record of each distribution."""
    seed: int
    """Seed of the draws."""
    hidden: HiddenTap | None = None
    """The block whose hidden state is kept, if any."""

    @torch.no_grad()
    def begin(
        self,
        batch: Mapping[str, Any],
        uniforms: Floats,
        rotations: np.ndarray[Any, np.dtype[np.int64]],
    ) -> Callable[[], _Read]:
        """Begin to read the distributions of every tap, then of the output, ``[N, L_t + 1]``.

        The returned function waits for them.

        Args:
            batch: a batch of ``TokenBatches``, on the backbone's device. Processes that hold one
                teacher together read the same batch. Each records a slice of its tokens, and all
                return the whole.
            uniforms: ``[N, L_t + 1, num_uniforms]`` float64 in [0, 1), for each token and tap as
                many random numbers as the recorder takes.
            rotations: ``[N]``, the number of each token's rotation of a hidden state.
        """
        decoder = self.backbone.decoder
        positions = batch["positions"]
        labels = batch["labels"]
        own = own_part(len(labels)) if is_split(decoder.model) else slice(None)
        # Apple's devices have no float64; the others lose nothing to rounding in long sums
        sums = torch.float32 if labels.device.type == "mps" else torch.float64
        dice = begin_send(torch.from_numpy(uniforms).to(sums)[own], labels.device)
        turns = begin_send(torch.from_numpy(rotations)[own], labels.device)
        blocks = {*self.bank.taps} | ({self.hidden.block} if self.hidden else set())
        states, final = run_backbone(decoder, sorted(blocks), batch["inputs"], positions[own])
        signs = self._begin_signs(states, positions[own], turns)
        reads = [decoder.features(read) for read in self.bank(states, positions[own]).values()]
        pending = self.recorder.begin([*reads, final], labels[own], dice)
        if own == slice(None):
            return lambda: _Read(pending.result(), signs())
        return lambda: _Read.join(gathered([_Read(pending.result(), signs())]))

    def _begin_signs(
        self, states: Mapping[int, TapState], positions: Tensor, rotations: Tensor
    ) -> Callable[[], np.ndarray[Any, Any] | None]:
        """Begin to read the signs of the hidden state, if one is kept."""
        if self.hidden is None:
            return lambda: None
        kept = states[self.hidden.block].at(positions)
        pending = begin_copy([self.hidden.signs.encode(kept, rotations.to(kept.device))])
        return lambda: pending.arrays()[0]

    def begin_records(
        self, batch: Mapping[str, Any], keys: Sequence[tuple[str, str]]
    ) -> Callable[[], list[SampleRecord | StageError]]:
        """Begin to read a batch, without waiting for an accelerator.

        The returned function waits. It gives each sample's record, or the error that says which tap
        is not finite.

        Args:
            batch: a batch of ``TokenBatches``.
            keys: id and content key of each sample.
        """
        counts = np.bincount(batch["token_samples"].numpy(), minlength=len(keys))
        each = self.recorder.num_uniforms
        uniforms = np.concatenate(
            [
                record_uniforms(self.seed, key, int(count), len(self.bank.taps) + 1, each)
                for (_, key), count in zip(keys, counts, strict=True)
            ]
        )
        rotations = np.concatenate(
            [sign_rows(key, int(count)) for (_, key), count in zip(keys, counts, strict=True)]
        )
        pending = self.begin(_to_device(batch, self.backbone.device), uniforms, rotations)
        labels = batch["labels"].int().numpy()
        return lambda: self._records(pending(), labels, list(zip(keys, counts, strict=True)))

    def _records(
        self,
        read: _Read,
        labels: np.ndarray[Any, Any],
        samples: Sequence[tuple[tuple[str, str], int]],
    ) -> list[SampleRecord | StageError]:
        records: list[SampleRecord | StageError] = []
        start = 0
        for (sample_id, key), count in samples:
            own = slice(start, start + int(count))
            signs = None if read.hidden_signs is None else read.hidden_signs[own]
            error = self._find_error(read.distribution.entropy[own], signs, sample_id)
            found = SampleRecord(
                *(sample_id, key, labels[own], read.distribution[own]), hidden_signs=signs
            )
            records.append(error or found)
            start = own.stop
        return records

    def _find_error(
        self, entropy: np.ndarray[Any, Any], signs: np.ndarray[Any, Any] | None, sample_id: str
    ) -> StageError | None:
        sound = np.isfinite(entropy).all(axis=0)
        taps = [*map(str, self.bank.taps), "output"]
        broken = ", ".join(tap for tap, good in zip(taps, sound, strict=True) if not good)
        problem = f"teacher's distribution is not finite at tap {broken}" if broken else None
        if problem is None and signs is not None and not signs.any(-1).all():
            assert self.hidden is not None
            problem = f"teacher's hidden state of block {self.hidden.block} is 0 or not finite"
        if problem is None:
            return None
        return StageError(
            problem,
            where=f"sample {sample_id!r}",
            mend="Try teacher.dtype: float32, or check the teacher's weights; or skip such samples "
            "with cache.on_error: skip",
        )


def record_uniforms(seed: int, key: str, *shape: int) -> Floats:
    """Return the random numbers behind a sample's record, float64 in [0, 1).

    They follow from the seed and the sample's content alone. So a resumed pass, or one with other
    partitions, draws the same tokens.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.random(shape)


def _to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: _to_device(value, device)
        if isinstance(value, Mapping)
        else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }
