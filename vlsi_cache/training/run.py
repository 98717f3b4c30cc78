"""``Run``: what all stages of one command share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from vlsi_cache.data import ConversationDataset, load_data
from vlsi_cache.recipe import Recipe, idle_settings
from vlsi_cache.training.processes import resolve_device

__all__ = ["Run", "begin_run"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """What all stages of one command share."""

    recipe: Recipe
    """The validated description of the whole run."""
    device: torch.device
    """This process's device."""
    data: ConversationDataset
    """The conversations that every stage reads."""
    callbacks: Sequence[TrainerCallback] = ()
    """The caller's own callbacks, for each stage's Trainer."""

    def settings(self) -> dict[str, Any]:
        """Return what every stage's result depends on, as JSON values."""
        return {
            "data": self.data.fingerprint(),
            "max_length": self.recipe.data.max_length,
            "seed": self.recipe.seed,
        }


def begin_run(
    recipe: Recipe,
    role: Literal["teacher", "student"],
    callbacks: Sequence[TrainerCallback] = (),
) -> Run:
    """Join the launched processes, and open and validate the data.

    Settings that the recipe gives and nothing reads are warned of.

    Args:
        recipe: description of the run.
        role: the model that the command is about.
        callbacks: the caller's own, for each stage's Trainer.

    Raises:
        RecipeError: no data is named, or the device is not this process's.
        DataError: the data cannot be read, or a row is not a conversation.
    """
    for setting in idle_settings(recipe, role):
        logger.warning("%s", setting)
    device = resolve_device(recipe.device)
    data = load_data(recipe.data)
    data.validate()
    return Run(recipe, device, data, callbacks)
