"""What arms need that the product does not have: losses beside stage two's, and another map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache.models import Backbone, run_backbone
from vlsi_cache.objectives import candidate_divergences, frozen_head, label_targets

__all__ = ["AddedLoss", "HiddenCosine", "KeptChannels", "LabelsToo"]


class AddedLoss(TrainerCallback):
    """Adds a loss that reads one block's state to the loss of stage two."""

    block: ClassVar[int] = -1
    """The student's block, from the end."""
    _hidden: Tensor | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Listen to the student's block, and to the module's loss."""
        model.decoder.blocks[self.block].register_forward_hook(self._keep)
        model.register_forward_hook(self._add, with_kwargs=True)

    def _keep(self, block: Any, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    def _add(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> dict[str, Tensor]:
        assert self._hidden is not None  # the student's forward has run
        states = self._hidden.flatten(0, 1)[given["positions"]]
        loss: Tensor = output["loss"]
        return {"loss": loss + self.added(module, states, given, loss.detach())}

    @abstractmethod
    def added(self, module: Any, states: Tensor, given: Mapping[str, Any], loss: Tensor) -> Tensor:
        """Return what is added, 0-d.

        Args:
            module: stage two's module.
            states: ``[N, D]``, the block's states at N response tokens.
            given: the module's arguments.
            loss: its loss, 0-d.
        """


class HiddenCosine(AddedLoss):
    """1 − cos(student's state, teacher's state): the rival without verbalizers.

    It is the best recipe of Minitron (arXiv 2407.14679) for a student of the same width: the states
    two blocks before the last, weighted so that they count as much as the output's loss. The
    teacher is in memory.

    Args:
        teacher: the teacher.
        blocks: for each block of the student the teacher's block that it was cut from.
    """

    block = -3

    def __init__(self, teacher: Backbone, blocks: tuple[int, ...]) -> None:
        self.teacher = teacher
        self.theirs = blocks[self.block]

    def added(self, module: Any, states: Tensor, given: Mapping[str, Any], loss: Tensor) -> Tensor:
        """Return the distance, scaled to the loss."""
        positions = given["positions"]
        with torch.no_grad():
            decoder = self.teacher.decoder
            wanted, _ = run_backbone(decoder, (self.theirs,), given["inputs"], positions)
        distance = 1 - self.cosine(states, wanted[self.theirs].at(positions)).mean()
        module.observe("hidden_cosine", 1 - distance)
        return loss / distance.detach() * distance

    def cosine(self, states: Tensor, wanted: Tensor) -> Tensor:
        """Return the cosine of each token's states, ``[N]``."""
        return F.cosine_similarity(states, wanted, dim=-1)


class LabelsToo(AddedLoss):
    """The output's cross-entropy to the labels.

    Args:
        weight: its weight over that of the output's own loss.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def added(self, module: Any, states: Tensor, given: Mapping[str, Any], loss: Tensor) -> Tensor:
        """Return the weighted mean over tokens."""
        features = module.decoder.features(states)
        head = frozen_head(module.head, module.vocab_size)
        found = candidate_divergences(features, head, label_targets(given["labels"]))
        entropy = found.matched(torch.zeros_like(given["labels"])).mean()
        module.observe("ce_output", entropy)
        return self.weight * entropy


class KeptChannels(TrainerCallback):
    """Starts a hidden state's map as the one that puts each channel where it was.

    Args:
        kept: the teacher's channel of each of the student's.
    """

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Write the map, in place of its closed form."""
        with torch.no_grad():
            weight = model.hidden.map.weight
            weight.zero_()
            weight[self.kept, torch.arange(len(self.kept))] = 1.0
