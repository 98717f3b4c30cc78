"""``load_exits``: a student whose layers give words, by one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlsi_cache.models import Backbone, load_backbone, run_backbone
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.processes import resolve_device
from vlsi_cache.verbalizer.bank import VerbalizerBank
from vlsi_cache.verbalizer.checkpoint import load_verbalizers
from vlsi_cache.verbalizer.exits.keeping import EXITS_FOLDER

__all__ = ["Exits", "load_exits"]


class Exits(nn.Module):
    """A frozen student and its exits. ``load_exits`` makes it.

    Attributes:
        model: the ordinary model.
        processor: its processor or tokenizer.
        bank: the verbalizers.
    """

    def __init__(self, student: Backbone, bank: VerbalizerBank) -> None:
        super().__init__()
        self.model = student.decoder.model
        self.processor: Any = student.processor
        self.bank = bank.eval().requires_grad_(False)
        self._student = student

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks whose output is read, from 0, ascending."""
        return self.bank.taps

    @torch.no_grad()
    def forward(self, **inputs: Tensor) -> dict[int, Tensor]:
        """Return the logits of each tap and, at −1, of the model's own output.

        Args:
            inputs: the model's own inputs, such as ``input_ids`` and ``attention_mask``.

        Returns:
            tap → ``[B, T, V]``, without the head's padded rows.
        """
        student, decoder = self._student, self._student.decoder
        shape = inputs["input_ids"].shape
        positions = torch.arange(shape.numel(), device=student.device)
        states, final = run_backbone(decoder, self.taps, inputs, positions)
        features = {
            tap: decoder.features(read) for tap, read in self.bank(states, positions).items()
        }
        head = student.head
        return {
            tap: head.logits(read).unflatten(0, shape)
            for tap, read in {**features, -1: final}.items()
        }


def load_exits(
    student: str | Path,
    exits: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> Exits:
    """Load a student with its exits.

    Args:
        student: the student's folder.
        exits: folder of its exits; the folder ``exits`` inside the student's if None.
        device: as ``device`` of a recipe.
        dtype: as ``student.dtype`` of a recipe.

    Raises:
        ModelError: there is no student or there are no exits, or they belong to another model.
    """
    folder = Path(student) / EXITS_FOLDER if exits is None else Path(exits)
    # a fingerprint is of weights before they are rounded to float16
    section = ModelSection(model=str(student), dtype="auto" if dtype == "float16" else dtype)
    loaded = load_backbone(section, "student", resolve_device(device))
    if dtype == "float16":
        _round_to_float16(loaded.decoder.model)
    bank = load_verbalizers(folder, loaded.decoder, fingerprint=loaded.fingerprint)
    return Exits(loaded, bank)


def _round_to_float16(model: nn.Module) -> None:
    """Round the weights in place. Buffers, such as angles of positions, keep their dtype."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.half()
