"""``HeldOut``: the samples on which a stage is measured, and what follows from the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlsi_cache.recipe import HeldOutSection
from vlsi_cache.training.samples.loader import SizedDataset

__all__ = ["HeldOut"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The samples on which a stage is measured, and how."""

    settings: HeldOutSection
    """How often, and what follows from the figures."""
    dataset: SizedDataset
    """The samples, and others that are not measured."""
    divided: Callable[[], tuple[list[int], list[int]]]
    """Returns the indices of the measured samples: those with a record so far, and the others."""
    collate: Callable[[list[Any]], dict[str, Any]]
    """Samples with a record → a batch with ``targets``."""
    collate_labels: Callable[[list[Any]], dict[str, Any]]
    """Samples without a record → a batch."""
    name: Callable[[int], str]
    """Index → the sample's name."""
    skips: bool
    """Whether samples that have no finite figures at the first measurement are left out."""
    start_method: str | None = None
    """How workers start; Python's default if None."""
