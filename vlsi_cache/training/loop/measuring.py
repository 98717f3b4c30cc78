"""``Meter``: the held-out figures of a module, alike in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.phases import phase
from vlsi_cache.training.loop.pieces import align_pieces, pieces_of
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.processes import found_by_main_process, gathered, raise_together
from vlsi_cache.training.samples.budget import collate_pieces
from vlsi_cache.training.samples.heldout import HeldOut
from vlsi_cache.training.samples.loader import FURTHER, make_loader

__all__ = ["Meter", "MeterSettings"]

_FIGURES: Final = ("loss", "divergence")


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
    def measure(self, module: StageModule) -> dict[str, float]:
        """Return the figures. The module is left in training mode.

        Raises:
            VlsiCacheError: a sample cannot be read, here or in another process.
        """
        self._batches.own = self._own_batches()
        device = self._accelerator.device
        sums = torch.zeros(2, 3, dtype=torch.float64)  # of figures: tokens, nats, samples
        module.eval()
        own = self._batches.own
        total = sum(map(len, own))
        with phase("measuring on held-out samples", total=total, unit="samples") as progress:
            for batch, picks in zip(self._load(), own, strict=True):
                raise_together(batch if isinstance(batch, VlsiCacheError) else None)
                if self._settings.is_sharded:
                    align_pieces([batch], self._accelerator, device)
                for piece in pieces_of(batch):
                    sums += self._sums(module, piece)
                progress.advance(len(picks))
        module.train()
        return _figures(torch.stack(gathered([sums])).sum(0))

    def _sums(self, module: StageModule, piece: dict[str, Any]) -> Tensor:
        piece = {**piece}
        weight = piece.pop("weight")
        num_samples = piece["inputs"]["input_ids"].shape[0]
        moved = _moved(piece, self._accelerator.device)
        with self._accelerator.autocast():
            found = module.measure(
                moved["inputs"], moved["positions"], moved["labels"], moved.get("targets")
            )
        sums = torch.zeros(2, 3, dtype=torch.float64)
        for row, name in enumerate(_FIGURES):
            if name in found:
                nats = float(found[name].double().sum())
                sums[row] = torch.tensor([len(found[name]), nats, num_samples])
        return sums if weight else torch.zeros_like(sums)

    def _load(self) -> DataLoader[Any]:
        if self._loader is None:
            held_out = self._held_out
            self._loader = make_loader(
                _Reader(held_out, self._settings.batch_tokens),
                self._batches,
                workers=self._settings.workers,
                start_method=held_out.start_method,
            )
            # a loader draws a number whenever it starts, and training must not notice
            self._loader.generator = torch.Generator()
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
        first, *further = ({**batch, "weight": pick.weight} for _, batch in pieces)
        return {**first, FURTHER: further}


def _moved(piece: dict[str, Any], device: torch.device) -> dict[str, Any]:
    moved: dict[str, Any] = send_to_device(piece, device)
    return moved


def _figures(total: Tensor) -> dict[str, float]:
    """Return the means per response token, and how many samples they are of."""
    found: dict[str, float] = {}
    for name, (tokens, nats, samples) in zip(_FIGURES, total.tolist(), strict=True):
        if tokens:
            found[f"held_out_{name}_nats"] = nats / tokens
            found["held_out_samples" if name == "loss" else "held_out_compared"] = samples
    return found
