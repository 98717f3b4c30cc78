"""The recipe: one validated description of a whole run."""

from vlsi_cache.recipe.completion import (
    find_completion,
    find_weight_completion,
    report_completions,
    report_settings,
)
from vlsi_cache.recipe.existing import (
    DATA_FORMS,
    Role,
    expand_pattern,
    model_name,
    named_models,
    validate_data_name,
    validate_data_named,
    validate_named,
    validate_together,
    validate_trackers,
)
from vlsi_cache.recipe.heldout import HeldOutSection
from vlsi_cache.recipe.idle import idle_settings
from vlsi_cache.recipe.learning import (
    TAP_WEIGHT_KEYS,
    Comparison,
    FinetuningSection,
    HiddenLearningSection,
    InteractionSection,
    LoraSection,
    MatchingSection,
    MatchingStrategy,
)
from vlsi_cache.recipe.load import (
    RecipeProblemsError,
    apply_overrides,
    keys_named,
    load_recipe,
    recipe_from_mapping,
)
from vlsi_cache.recipe.modelnames import is_there, validate_model_folder
from vlsi_cache.recipe.models import (
    AUTOMATIC,
    ModelSection,
    TeacherSection,
    VerbalizationSection,
    VerbalizerSection,
)
from vlsi_cache.recipe.recipe import Recipe, StageName
from vlsi_cache.recipe.schedule import Schedule
from vlsi_cache.recipe.section import Section, at_home
from vlsi_cache.recipe.sources import (
    CacheSection,
    DataSection,
    HiddenRecordSection,
    SelectSection,
    SourceSection,
)

__all__ = [
    "AUTOMATIC",
    "DATA_FORMS",
    "TAP_WEIGHT_KEYS",
    "CacheSection",
    "Comparison",
    "DataSection",
    "FinetuningSection",
    "HeldOutSection",
    "HiddenLearningSection",
    "HiddenRecordSection",
    "InteractionSection",
    "LoraSection",
    "MatchingSection",
    "MatchingStrategy",
    "ModelSection",
    "Recipe",
    "RecipeProblemsError",
    "Role",
    "Schedule",
    "Section",
    "SelectSection",
    "SourceSection",
    "StageName",
    "TeacherSection",
    "VerbalizationSection",
    "VerbalizerSection",
    "apply_overrides",
    "at_home",
    "expand_pattern",
    "find_completion",
    "find_weight_completion",
    "idle_settings",
    "is_there",
    "keys_named",
    "load_recipe",
    "model_name",
    "named_models",
    "recipe_from_mapping",
    "report_completions",
    "report_settings",
    "validate_data_name",
    "validate_data_named",
    "validate_model_folder",
    "validate_named",
    "validate_together",
    "validate_trackers",
]
