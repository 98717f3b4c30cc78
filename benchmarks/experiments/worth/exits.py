"""What a student's layers say beside its output, and how the verbalizers move as it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from experiments.first_proof.scoring import CHUNK, HeldOut
from vlsi_cache.models import Decoder, run_backbone
from vlsi_cache.objectives import chunks
from vlsi_cache.verbalizer import VerbalizerBank

__all__ = ["Audit", "score_exits"]


@torch.no_grad()
def score_exits(held_out: HeldOut, decoder: Decoder, bank: VerbalizerBank) -> dict[int, Any]:
    """Return each tap's acceptance Σ min(p, q), greedy agreement and label loss in nats.

    p is the tap's distribution and q the output's, at every response token, teacher-forced.
    """
    head = decoder.head.real_rows(held_out.vocab_size)
    sums: dict[int, Tensor] = {tap: torch.zeros(3, dtype=torch.float64) for tap in bank.taps}
    count = 0
    for batch in held_out.batches:
        states, final = run_backbone(decoder, bank.taps, batch["inputs"], batch["positions"])
        reads = {
            tap: decoder.features(read) for tap, read in bank(states, batch["positions"]).items()
        }
        for rows in chunks(len(final), CHUNK):
            late = head.logits(final[rows]).float().softmax(-1)
            label = batch["labels"][rows][:, None]
            for tap, features in reads.items():
                early = head.logits(features[rows]).float().softmax(-1)
                found = (
                    torch.minimum(early, late).sum(),
                    (early.argmax(-1) == late.argmax(-1)).sum(),
                    -early.gather(1, label).log().sum(),
                )
                sums[tap] += torch.stack(found).double()
        count += len(final)
    names = ("acceptance", "agreement", "label_loss")
    return {tap: dict(zip(names, (s / count).tolist(), strict=True)) for tap, s in sums.items()}


@dataclass
class Audit(TrainerCallback):
    """Watch the verbalizers of stage two: how far they move, and what they say at the end."""

    held_out: HeldOut
    """For the end."""
    some: HeldOut
    """For the way there."""
    every: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Step, share of each map's change, label loss of each tap."""
    gradients: list[dict[str, Any]] = field(default_factory=list)
    """Norms of the gradients of taps and output, and the cosine between them."""
    exits: dict[int, Any] = field(default_factory=dict)
    _start: dict[str, Tensor] = field(default_factory=dict)

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the maps as they begin."""
        self._start = {name: value.clone() for name, value in model.bank.state_dict().items()}
        self._row(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Measure after every ``every`` steps."""
        if state.global_step % self.every == 0:
            self._row(state.global_step, model)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        """Keep what the stage says of its gradients."""
        found = {name: value for name, value in (logs or {}).items() if "gradient_" in name}
        if found:
            self.gradients.append({"step": state.global_step, **found})

    def on_train_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Score the taps as exits."""
        self.exits = score_exits(self.held_out, model.decoder, model.bank)

    def _row(self, step: int, model: Any) -> None:
        moved = {
            name: float(
                (value - self._start[name]).norm() / self._start[name].norm().clamp_min(1e-9)
            )
            for name, value in model.bank.state_dict().items()
            if name.endswith("weight")
        }
        taps = score_exits(self.some, model.decoder, model.bank)
        losses = {tap: found["label_loss"] for tap, found in taps.items()}
        self.rows.append({"step": step, "moved": moved, "label_loss": losses})
