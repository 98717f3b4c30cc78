"""What is worth a warning among the files of a model that can be loaded. Weights are not read."""

from __future__ import annotations

from vlsi_cache.check.subjects import Subject
from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading.adapters import warn_of_adapter_files
from vlsi_cache.models.loading.completeness import warn_of_unread
from vlsi_cache.models.loading.loading import preview_weights
from vlsi_cache.models.loading.sources import base_of, find_folder
from vlsi_cache.models.loading.stored import warn_of_two_copies, warn_of_unread_code

__all__ = ["warn_of_model_files"]


def warn_of_model_files(subject: Subject) -> None:
    """Warn of files and weights that are not read, as loading does. What it refuses is passed over.

    Args:
        subject: the model.
    """
    section, config = subject.section, subject.config
    try:
        name, revision = base_of(section.model or "", section.revision)
        folder = find_folder(name, revision)
        if folder is None:  # the files of a name on the hub are downloaded
            return
        report = preview_weights(section.model or "", config, revision=section.revision)
    except ModelError:
        return
    warn_of_adapter_files(folder)
    if report is not None:
        warn_of_unread(report, name)
    warn_of_two_copies(folder, name)
    warn_of_unread_code(config, name)
