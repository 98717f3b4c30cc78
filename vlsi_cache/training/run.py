"""``Run``: what all stages of one command share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from vlsi_cache.data import ConversationDataset, load_data
from vlsi_cache.recipe import Recipe, warn_idle_settings
from vlsi_cache.training.processes import resolve_device

__all__ = ["Run", "begin_run"]


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
    """The caller's own callbacks, for the Trainer of each stage that takes them."""
    role: Literal["teacher", "student"] = "student"
    """The model that the command works on."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Index → reason of the samples that the cache records as failed. Every stage leaves them
    out."""

    def fingerprint(self) -> str:
        """Return the identity of the data. With ``skip``, it covers unsound rows too."""
        return self.data.fingerprint(skip=self.recipe.skips_failures)

    def settings(self) -> dict[str, Any]:
        """Return what every stage's result depends on, as JSON values."""
        return {
            "data": self.fingerprint(),
            "max_length": self.recipe.data.max_length,
            "seed": self.recipe.seed,
        }


def begin_run(
    recipe: Recipe, role: Literal["teacher", "student"], callbacks: Sequence[TrainerCallback] = ()
) -> Run:
    """Join the launched processes, and open and validate the data.

    Args:
        recipe: description of the run.
        role: the model that the command works on.
        callbacks: the caller's own, for the Trainer of each stage that takes them.

    Raises:
        RecipeError: no data is named, or the device is not this process's.
        DataError: the data cannot be read, or a row is not a conversation and not to be skipped.
    """
    warn_idle_settings(recipe, role)
    device = resolve_device(recipe.device)
    data = load_data(recipe.data)
    if not recipe.skips_failures:  # a row that is not sound fails like one that cannot be encoded
        data.validate()
    return Run(recipe, device, data, callbacks, role)
