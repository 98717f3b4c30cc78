"""``Schedule``, the settings that every stage has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vlsi_cache.recipe.section import Contradiction, NonNegative, Positive, Section

__all__ = ["Schedule"]


class Schedule(Section):
    """How long and how fast one stage trains."""

    steps: Positive | None = None
    """Optimizer steps. Excludes `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data. Excludes `steps`. One pass if neither is given."""
    batch_size: Positive = 8
    """Samples per device and micro-batch. An optimizer step takes `gradient_accumulation` of them
    from every process."""
    batch_tokens: Positive | None = None
    """Most tokens of one forward pass, padding included. A larger micro-batch passes in pieces, and
    a sample that is longer passes alone. Samples of like length then share a micro-batch. Null:
    every micro-batch is one pass."""
    gradient_accumulation: Positive = 1
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of AdamW. By default it follows the size of what trains, and the batch
    (docs/decisions/learning-rates.md)."""
    final_learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Learning rate at the end of the cosine. A hundredth of the peak by default, as in the paper:
    1e-4 to 1e-6."""
    warmup_steps: NonNegative | None = None
    """Steps of linear warm-up before the cosine. By default a tenth of all steps, rounded up, as is
    usual in fine-tuning."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm. 0 turns clipping off."""
    log_every: Positive = 10
    """Steps between two lines of metrics."""
    save_every: Positive = 500
    """Steps between two checkpoints. An interrupted stage goes on from the last one."""
    save_every_minutes: Annotated[float, Field(gt=0)] | None = 15.0
    """Longest time between two checkpoints, however slow the steps are. An interruption without a
    warning then costs a quarter of an hour at most. `null`: by `save_every` alone."""
    workers: NonNegative = 0
    """Processes that prepare batches, for each training process."""
    gradient_checkpointing: bool = False
    """Compute the backbone's activations again in the backward pass, to save memory."""

    def decisive(self) -> dict[str, object]:
        """The settings that decide the trained weights, as JSON values.

        Of the bound on a pass its presence decides, since it orders the samples. Its value decides
        rounding alone, unless ``bound_decides``, so that it may be lowered.
        """
        found = self.model_dump(mode="json", exclude=self._indecisive() | {"batch_tokens"})
        return found if self.batch_tokens is None else {**found, "batch_tokens": "given"}

    @property
    def bound_decides(self) -> bool:
        """Whether another bound on a pass gives another result, beyond rounding."""
        return False

    def _indecisive(self) -> set[str]:
        saving = {"save_every", "save_every_minutes"}
        return {"log_every", "workers", "gradient_checkpointing"} | saving

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find fields that exclude one another, as (path, problem)."""
        found = []
        if self.steps is not None and self.epochs is not None:
            problem = (
                f"contradicts {path}.steps: give one of the two "
                f"(--set {path}.epochs=null leaves this one out)"
            )
            found.append((f"{path}.epochs", problem))
        if self.steps is not None and (self.warmup_steps or 0) > self.steps:
            found.append((f"{path}.warmup_steps", f"is above {path}.steps ({self.steps})"))
        peak, final = self.learning_rate, self.final_learning_rate
        if peak is None and final is not None:
            found.append((f"{path}.final_learning_rate", "needs learning_rate: give both"))
        if peak is not None and final is not None and final > peak:
            found.append((f"{path}.final_learning_rate", f"is above learning_rate ({peak:g})"))
        return found
