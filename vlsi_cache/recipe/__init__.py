"""The recipe: one validated description of a whole run."""

from vlsi_cache.recipe.idle import idle_settings, warn_idle_settings
from vlsi_cache.recipe.learning import (
    Comparison,
    FinetuningSection,
    InteractionSection,
    LoraSection,
    MatchingSection,
    MatchingStrategy,
)
from vlsi_cache.recipe.load import apply_overrides, load_recipe, recipe_from_mapping
from vlsi_cache.recipe.models import (
    AUTOMATIC,
    ModelSection,
    TeacherSection,
    VerbalizationSection,
    VerbalizerSection,
)
from vlsi_cache.recipe.recipe import Recipe, StageName
from vlsi_cache.recipe.schedule import Schedule
from vlsi_cache.recipe.section import Section
from vlsi_cache.recipe.sources import CacheSection, DataSection, SourceSection

__all__ = [
    "AUTOMATIC",
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
    "SourceSection",
    "StageName",
    "TeacherSection",
    "VerbalizationSection",
    "VerbalizerSection",
    "apply_overrides",
    "idle_settings",
    "load_recipe",
    "recipe_from_mapping",
    "warn_idle_settings",
]
