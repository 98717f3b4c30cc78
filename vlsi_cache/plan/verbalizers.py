"""The verbalizers of a run: at which taps, and how large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from vlsi_cache.models import default_taps, resolve_taps
from vlsi_cache.plan.rehearsing.sketch import Sketch
from vlsi_cache.plan.rehearsing.world import rehearsing
from vlsi_cache.recipe import Recipe
from vlsi_cache.verbalizer import build_verbalizers, preview_taps
from vlsi_cache.verbalizer.checkpoint import read_config

__all__ = ["count_verbalizers", "planned_taps", "with_planned_verbalizers"]

Role = Literal["teacher", "student"]


def planned_taps(recipe: Recipe, role: Role, sketch: Sketch) -> tuple[int, ...]:
    """Return the taps that will be read.

    Raises:
        ModelError: taps are out of range, or named verbalizers are not there.
        StageError: the folder holds verbalizers made with other settings.
    """
    found = preview_taps(recipe, role, sketch.preview)
    if found is not None:
        return found
    text = sketch.fresh_config().get_text_config(decoder=True)
    return default_taps(text.num_hidden_layers)


def with_planned_verbalizers(recipe: Recipe, sketches: Mapping[str, Sketch]) -> Recipe:
    """Return the recipe with taps and structures as they will be, named verbalizers' included."""
    update: dict[str, object] = {}
    roles: tuple[Role, ...] = ("teacher", "student")
    for role in roles:
        section = recipe.teacher if role == "teacher" else recipe.student
        if role not in sketches:
            continue
        change: dict[str, object] = {"taps": list(planned_taps(recipe, role, sketches[role]))}
        if section.verbalizers is not None:
            change["verbalizer"] = read_config(section.verbalizers).verbalizer
        update[role] = section.model_copy(update=change)
    return recipe.model_copy(update=update)


def count_verbalizers(recipe: Recipe, role: Role, sketch: Sketch) -> int:
    """Count the parameters of a model's verbalizers at all taps."""
    section = recipe.teacher if role == "teacher" else recipe.student
    with rehearsing():
        decoder = sketch.build(torch.device("cpu"), trains=False).decoder
        taps = resolve_taps(section.taps, decoder.num_blocks, where=role)
        bank = build_verbalizers(decoder, taps, section.verbalizer, seed=0)
        return sum(parameter.numel() for parameter in bank.parameters())
