"""Loading configurations."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading.adapters import base_errors, find_adapter
from vlsi_cache.models.loading.smallfiles import (
    CONFIG_FILE,
    explain_config,
    validate_config_files,
)
from vlsi_cache.models.loading.sources import (
    base_of,
    find_folder,
    local_copy,
    model_errors,
    no_model,
)
from vlsi_cache.recipe import ModelSection

__all__ = ["load_config", "load_config_of", "text_config"]


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's language side. For a text model, it is the whole one."""
    return model.config.get_text_config(decoder=True)


def load_config(name: str, *, revision: str | None = None, trust: bool = False) -> PreTrainedConfig:
    """Load a model's configuration. An adapter has that of its base.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        trust: whether code that comes with the model is run.

    Raises:
        ModelError: there is no such folder or name, or no configuration in it.
    """
    adapter = find_adapter(find_folder(name, revision))
    base, revision = base_of(name, revision)
    with base_errors(adapter):
        folder = find_folder(base, revision)
    if folder is not None and not (folder / CONFIG_FILE).exists():
        raise no_model(folder, base)
    if (copy := local_copy(base, revision)) is not None:
        validate_config_files(copy)
    try:
        with model_errors(base, "the model's configuration cannot be read"):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                base, trust_remote_code=trust, revision=revision
            )
    except ModelError:
        _explain(base, revision)
        raise
    return config


def _explain(base: str, revision: str | None) -> None:
    """Refuse the file for which a configuration could not be read, if it lies here by now."""
    copy = local_copy(base, revision)
    if copy is not None:
        validate_config_files(copy)
        explain_config(copy)


def load_config_of(section: ModelSection) -> PreTrainedConfig:
    """Load the configuration of the model that a recipe's ``teacher`` or ``student`` names.

    Raises:
        ModelError: as `load_config`.
    """
    trust = section.trust_remote_code
    return load_config(section.model or "", revision=section.revision, trust=trust)
