"""``Meter``: a module's figures on each held-out sample, alike in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Sampler

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.phases import phase
from vlsi_cache.training.loop.pieces import align_pieces, pieces_of
from vlsi_cache.training.loop.tally import MeasuredSample
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import found_by_main_process, gathered, raise_together
from vlsi_cache.training.samples.budget import collate_pieces
from vlsi_cache.training.samples.heldout import HeldOut
from vlsi_cache.training.samples.loader import FURTHER, make_loader
from vlsi_cache.training.sharding import reshard

__all__ = ["Meter", "MeterSettings"]

_MEASURED: Final = ("inputs", "positions", "labels", "targets")


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """How a meter reads."""

    batch_size: int
    """Samples of one forward pass."""
    batch_tokens: int | None
    """Most padded tokens of one forward pass; None for no bound."""
    workers: int
    """Processes that prepare batches."""
    is_sharded: bool
    """Whether the module's weights are sharded, so that all processes step together."""


@dataclass(frozen=True, slots=True)
class _Pick:
    """One sample of a batch."""

    index: int
    is_recorded: bool
    weight: int


class Meter:
    """Measures a module on held-out samples. Each process reads a part of them.

    Args:
        held_out: the samples.
        settings: how they are read.
        accelerator: the Trainer's, for autocast and for sums over the processes.
    """

    def __init__(
        self, held_out: HeldOut, settings: MeterSettings, accelerator: Accelerator
    ) -> None:
        self._held_out = held_out
        self._settings = settings
        self._accelerator = accelerator
        self._batches = _Batches()
        self._loader: DataLoader[Any] | None = None

    @torch.no_grad()
    def measure(self, module: StageModule) -> list[MeasuredSample]:
        """Return every sample's figures, by index. The module is left in training mode.

        Raises:
            VlsiCacheError: a sample cannot be read, here or in another process.
        """
        self._batches.own = self._own_batches()
        device = self._accelerator.device
        found: list[MeasuredSample] = []
        module.eval()
        own = self._batches.own
        total = sum(map(len, own))
        with phase("measuring on held-out samples", total=total, unit="samples") as progress:
            for batch, picks in zip(self._load(), own, strict=True):
                raise_together(batch if isinstance(batch, VlsiCacheError) else None)
                if self._settings.is_sharded:
                    align_pieces([batch], self._accelerator, device)
                for piece in pieces_of(batch):
                    found += self._sums(module, piece)
                progress.advance(len(picks))
        module.train()
        reshard(module)  # a forward without gradients leaves some weights whole
        return sorted(gathered(found))

    def _sums(self, module: StageModule, piece: dict[str, Any]) -> list[MeasuredSample]:
        moved = _moved(
            {name: value for name, value in piece.items() if name in _MEASURED},
            self._accelerator.device,
        )
        with self._accelerator.autocast():
            found = module.measure(
                moved["inputs"], moved["positions"], moved["labels"], moved.get("targets")
            )
        if not piece["weight"]:
            return []
        rows, indices = piece["token_samples"], piece["indices"]
        sums = {
            name: torch.zeros(len(indices), dtype=torch.float64)
            .index_add_(0, rows, values.double().cpu())
            .tolist()
            for name, values in found.items()
        }
        tokens = torch.bincount(rows, minlength=len(indices)).tolist()
        divergences = sums.get("divergence", [None] * len(indices))
        return list(map(MeasuredSample, indices, tokens, sums["loss"], divergences))

    def _load(self) -> DataLoader[Any]:
        if self._loader is None:
            held_out = self._held_out
            self._loader = make_loader(
                _Reader(held_out, self._settings.batch_tokens),
                self._batches,
                workers=self._settings.workers,
                start_method=held_out.start_method,
            )
        return self._loader

    def _own_batches(self) -> list[list[_Pick]]:
        """Return this process's batches, as many as every process has."""
        rank, num_ranks = self._accelerator.process_index, self._accelerator.num_processes
        recorded, others = found_by_main_process(self._held_out.divided)
        size = self._settings.batch_size
        batches = [
            [_Pick(index, is_recorded, 1) for index in indices[start : start + size]]
            for is_recorded, indices in ((True, recorded), (False, others))
            for start in range(0, len(indices), size)
        ]
        spare = [_Pick(pick.index, pick.is_recorded, 0) for pick in batches[0][:1]]
        batches += [spare] * (-len(batches) % num_ranks)
        return batches[rank::num_ranks]


class _Batches(Sampler[list[_Pick]]):
    """A process's batches, which a growing cache changes from one measurement to the next."""

    def __init__(self) -> None:
        self.own: list[list[_Pick]] = []

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[list[_Pick]]:
        return iter(self.own)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads and collates the samples of one batch."""

    held_out: HeldOut
    batch_tokens: int | None

    def __call__(self, picks: Sequence[_Pick]) -> dict[str, Any]:
        held_out, pick = self.held_out, picks[0]
        items = [held_out.dataset[one.index] for one in picks]
        collate = held_out.collate if pick.is_recorded else held_out.collate_labels
        pieces = collate_pieces(collate, items, self.batch_tokens)
        first, *further = (
            {**batch, "weight": pick.weight, "indices": [picks[row].index for row in rows]}
            for rows, batch in pieces
        )
        return {**first, FURTHER: further}


def _moved(piece: dict[str, Any], device: torch.device) -> dict[str, Any]:
    moved: dict[str, Any] = send_to_device(piece, device)
    return moved
