"""The recipe: one validated description of a whole run."""

from vlsi_cache.recipe.idle import idle_settings
from vlsi_cache.recipe.load import apply_overrides, load_recipe, recipe_from_mapping
from vlsi_cache.recipe.sections import (
    CacheSection,
    Comparison,
    DataSection,
    FinetuningSection,
    InteractionSection,
    LoraSection,
    MatchingSection,
    MatchingStrategy,
    ModelSection,
    Recipe,
    Schedule,
    Section,
    StageName,
    VerbalizationSection,
    VerbalizerSection,
)

__all__ = [
    "CacheSection",
    "Comparison",
    "DataSection",
    "FinetuningSection",
    "InteractionSection",
    "LoraSection",
    "MatchingSection",
    "MatchingStrategy",
    "ModelSection",
    "Recipe",
    "Schedule",
    "Section",
    "StageName",
    "VerbalizationSection",
    "VerbalizerSection",
    "apply_overrides",
    "idle_settings",
    "load_recipe",
    "recipe_from_mapping",
]
