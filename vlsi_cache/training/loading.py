"""``load_student``: the student for a run; where it will be sharded, one process alone reads it."""

from __future__ import annotations

import logging
from typing import Any

from vlsi_cache.errors import ModelError, first_line
from vlsi_cache.models import (
    Backbone,
    Outline,
    load_backbone,
    load_config_of,
    outline_of,
    outlined_backbone,
)
from vlsi_cache.models.binding.skeleton import make_skeleton
from vlsi_cache.models.loading.kinds import loader_of
from vlsi_cache.recipe import ModelSection
from vlsi_cache.training.processes import found_by_main_process
from vlsi_cache.training.run import Run

__all__ = ["load_student", "preview_savable"]

logger = logging.getLogger(__name__)


def load_student(run: Run, section: ModelSection, *, trains: bool) -> Backbone:
    """Load the student and bind it. All processes must call it.

    Where weights are to be sharded, the main process reads and proves them. The others hold the
    model without weights until ``shard`` gives each its slice. So a host holds one whole copy.

    Args:
        run: what all stages share.
        section: the student, or one that an earlier stage has made of it.
        trains: whether the model's own weights will train, which decides their dtype.

    Raises:
        RecipeError, ModelError: no model is named, or it cannot be loaded, bound or saved again.
    """

    def load() -> Backbone:
        student = load_backbone(section, "student", run.device, trains=trains, place=run.place)
        _validate_savable(student.decoder.model.config, section)
        return student

    if run.sharding is None:
        return load()
    loaded: list[Backbone] = []

    def load_for_all() -> Outline:
        loaded.append(load())
        return outline_of(loaded[0])

    outline = found_by_main_process(load_for_all)
    if loaded:
        return loaded[0]
    return outlined_backbone(section, outline) or load()


def preview_savable(section: ModelSection) -> None:
    """Refuse a student that could not be saved, before its weights are loaded.

    Raises:
        ModelError: transformers would not write its configuration.
    """
    config = load_config_of(section)
    if not getattr(config, "output_attentions", False):
        return
    try:
        skeleton = make_skeleton(config, loader_of(config, section.model or ""), section)
    except Exception as error:  # a family's own code, which loading will run with values
        logger.debug("%s: whether it can be saved is not known (%s)", section.model, error)
        return
    _validate_savable(skeleton.config, section)


def _validate_savable(config: Any, section: ModelSection) -> None:
    """Refuse a configuration that transformers reads and would not write.

    It would say so only when a stage saves the student that it has trained.
    """
    validate = getattr(config, "validate", None)  # what saving calls, where a family has it
    if validate is None:
        return
    try:
        validate()
    except Exception as error:
        raise ModelError(
            "transformers would not save a student with this configuration",
            where=f"{section.model}/config.json",
            found=first_line(error),
            mend="Take the setting out of the config.json. output_attentions may stay with "
            "student.attn_implementation: eager",
        ) from error
