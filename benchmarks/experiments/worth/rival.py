"""The rival without verbalizers: a hidden state of the student comes near one of the teacher.

It is the best recipe of Minitron (arXiv 2407.14679) for a student of the same width: the cosine
between the states two blocks before the last, weighted so that it counts as much as the output's
loss. The teacher is in memory. All else is the product's: the loop, the output's loss, the record.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache.models import Backbone, run_backbone

__all__ = ["HiddenCosine"]


class HiddenCosine(TrainerCallback):
    """Adds 1 − cos(student's state, teacher's state) to the loss of stage two.

    Args:
        teacher: the teacher, in memory.
        blocks: for each block of the student the teacher's block that it was cut from.
    """

    def __init__(self, teacher: Backbone, blocks: tuple[int, ...]) -> None:
        self.teacher = teacher
        self.own = len(blocks) - 3
        self.theirs = blocks[self.own]
        self._hidden: Tensor | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Listen to the student's block, and to the module's loss."""
        model.decoder.blocks[self.own].register_forward_hook(self._keep)
        model.register_forward_hook(self._add, with_kwargs=True)

    def _keep(self, block: Any, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    def _add(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> dict[str, Tensor]:
        assert self._hidden is not None  # the student's forward has run
        positions = given["positions"]
        with torch.no_grad():
            decoder = self.teacher.decoder
            states, _ = run_backbone(decoder, (self.theirs,), given["inputs"], positions)
            wanted = states[self.theirs].at(positions)
        found = self._hidden.flatten(0, 1)[positions]
        distance = 1 - F.cosine_similarity(found, wanted, dim=-1).mean()
        module.observe("hidden_cosine", 1 - distance)
        loss = output["loss"]
        return {"loss": loss + loss.detach() / distance.detach() * distance}
