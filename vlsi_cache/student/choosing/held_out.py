"""``HeldOutSamples``: what a student is measured on while it trains, as its stages read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlsi_cache.data import ConversationDataset, IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.models import Backbone
from vlsi_cache.recipe import HeldOutSection, Recipe
from vlsi_cache.store import Cache
from vlsi_cache.student.cached import CachedBatches, validate_model
from vlsi_cache.training import HeldOut

__all__ = ["HeldOutSamples", "chosen_by", "held_out_of"]


@dataclass(frozen=True, slots=True)
class HeldOutSamples:
    """The samples on which a student is measured."""

    settings: HeldOutSection
    """How often, and what follows from the figures."""
    data: ConversationDataset
    """The data that they are part of."""
    fingerprint: str
    """Identity of this data."""
    measured: Sequence[int]
    """Their indices in it, ascending."""
    cache: Cache | None
    """The teacher's record of this data, if there is one."""
    left_out: frozenset[int]
    """Indices of the run's own samples that are held out."""

    def divided(self) -> tuple[list[int], list[int]]:
        """Return the indices of the samples that have a record by now, and of the others."""
        cache = self.cache
        if cache is None:
            return [], list(self.measured)
        failed = cache.failures()
        recorded = {index for index in self.measured if index in cache and index not in failed}
        return sorted(recorded), [index for index in self.measured if index not in recorded]

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        return self.data.identify(index)[0]


def chosen_by(held_out: HeldOutSamples | None) -> dict[str, Any]:
    """Return the settings of a stage whose weights held-out figures choose, or none."""
    chosen = {} if held_out is None else held_out.settings.chosen_by()
    if held_out is None or not chosen:
        return {}
    measured = hashlib.sha256(json.dumps([*held_out.measured]).encode()).hexdigest()
    best = {**chosen, "data": held_out.fingerprint, "samples": measured[:16]}
    if held_out.cache is not None and held_out.settings.metric == "divergence":
        best["record"] = held_out.cache.manifest.model_dump(mode="json")
    return {"best": best}


def held_out_of(
    held_out: HeldOutSamples | None, student: Backbone, recipe: Recipe
) -> HeldOut | None:
    """Return how a stage reads the samples, with the student's own encoder.

    Raises:
        CacheMismatchError: their record is of another vocabulary.
    """
    if held_out is None:
        return None
    encoder = encoder_for(student, recipe.data)
    labels = TokenBatches(encoder)
    collate: TokenBatches | CachedBatches = labels
    start_method = None
    if held_out.cache is not None:
        validate_model(held_out.cache, student)
        collate = CachedBatches(encoder, held_out.cache, "sample")
        start_method = collate.start_method
    return HeldOut(
        settings=held_out.settings,
        dataset=IndexedConversations(held_out.data),
        divided=held_out.divided,
        collate=collate,
        collate_labels=labels,
        name=held_out.name,
        skips=recipe.skips_failures,
        start_method=start_method,
    )
