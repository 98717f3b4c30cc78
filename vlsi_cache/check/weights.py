"""Whether a model's files are those of a model that can be loaded. Weights are not read."""

from __future__ import annotations

import logging

from transformers import PreTrainedConfig

from vlsi_cache.models.loading.adapters import warn_of_adapter_files
from vlsi_cache.models.loading.completeness import warn_of_unread
from vlsi_cache.models.loading.kinds import loader_of
from vlsi_cache.models.loading.loading import preview_weights
from vlsi_cache.models.loading.sources import base_of, find_folder
from vlsi_cache.models.loading.stored import warn_of_two_copies, warn_of_unread_code
from vlsi_cache.models.loading.weightfiles import has_weights
from vlsi_cache.recipe import ModelSection

__all__ = ["validate_model_files"]

logger = logging.getLogger(__name__)


def validate_model_files(section: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse another kind of model, and weights that are pickled, damaged, or not the model's.

    A folder without any weights passes with a warning: data can be checked where weights are not.

    Args:
        section: the recipe's ``teacher`` or ``student``.
        config: the model's configuration.

    Raises:
        ModelError: the model cannot be loaded.
    """
    name, revision = base_of(section.model or "", section.revision)
    loader_of(config, name)
    folder = find_folder(name, revision)
    if folder is None or not has_weights(folder):
        if folder is not None:  # those of a name on the hub are downloaded
            logger.warning("%s holds no weights. A run would need them, this check does not", name)
        return
    report = preview_weights(section.model or "", config, revision=section.revision)
    warn_of_adapter_files(folder)
    if report is not None:
        warn_of_unread(report, name)
    warn_of_two_copies(folder, name)
    warn_of_unread_code(config, name)
