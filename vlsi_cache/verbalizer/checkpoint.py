"""Verbalizers on disk: safetensors beside a JSON config that names their backbone."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from vlsi_cache.errors import ModelError
from vlsi_cache.files import read_file, share_weights, write_whole
from vlsi_cache.models import Backbone, Decoder, resolve_taps
from vlsi_cache.recipe import VerbalizerSection
from vlsi_cache.verbalizer.bank import VerbalizerBank, build_verbalizers

__all__ = [
    "OWNER",
    "VERBALIZERS_FILE",
    "WEIGHTS_FILE",
    "VerbalizerConfig",
    "load_verbalizers",
    "read_config",
    "save_verbalizers",
    "validate_weights",
    "verbalizers_fingerprint",
    "write_config",
]

logger = logging.getLogger(__name__)

VERBALIZERS_FILE = "verbalizers.json"
WEIGHTS_FILE = "verbalizers.safetensors"
OWNER: Final = ".."
"""Name of the backbone in whose own folder the verbalizers lie: it may be moved and shared."""


class VerbalizerConfig(BaseModel):
    """Describes the weights beside it, and names their backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: str
    """`from_pretrained` name or folder of the model they were trained on. `..` is the folder above,
    where they lie inside their model's own."""
    backbone_fingerprint: str
    """SHA-256 over the backbone's weights (`models.weights_fingerprint`)."""
    hidden_size: int
    """D, width of the hidden states."""
    taps: list[int]
    """0-based decoder block indices, ascending."""
    verbalizer: VerbalizerSection
    """Structure."""
    stale: bool = False
    """Whether the backbone was trained on after its verbalizers, which read what it was before."""

    @field_validator("verbalizer", mode="before")
    @classmethod
    def _start_of_before(cls, value: object) -> object:
        """Verbalizers that name no start were made when there was one alone."""
        return {"start": "logit_lens", **value} if isinstance(value, dict) else value


def save_verbalizers(bank: VerbalizerBank, folder: Path, backbone: Backbone) -> None:
    """Write the bank's weights, then its config: a folder with a config is whole.

    Args:
        bank: the verbalizers.
        folder: where they go.
        backbone: the model they were trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous().cpu() for name, value in bank.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    share_weights(folder)
    config = VerbalizerConfig(
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        hidden_size=backbone.decoder.hidden_size,
        taps=list(bank.taps),
        verbalizer=bank.settings,
    )
    write_config(config, folder)


def write_config(config: VerbalizerConfig, folder: Path) -> None:
    """Write what a folder of verbalizers says of itself.

    What is not asked for is left out, so that the file stays readable for versions that know
    nothing of it.
    """
    unnamed: dict[str, Any] = {} if config.stale else {"stale": True}
    if config.verbalizer.start == "logit_lens":
        unnamed["verbalizer"] = {"start": True}
    write_whole(folder / VERBALIZERS_FILE, config.model_dump_json(indent=2, exclude=unnamed) + "\n")


def load_verbalizers(folder: Path, decoder: Decoder, *, fingerprint: str) -> VerbalizerBank:
    """Read verbalizers that belong to this backbone.

    Args:
        folder: a folder that ``save_verbalizers`` wrote.
        decoder: the backbone.
        fingerprint: the backbone's ``weights_fingerprint``.

    Raises:
        ModelError: the folder lacks a file, a file is damaged, or they belong to another backbone.
    """
    config = read_config(folder)
    if config.backbone_fingerprint != fingerprint:
        raise ModelError(
            "verbalizers belong to another backbone",
            where=folder,
            expected=f"weights {fingerprint[:12]}",
            found=f"weights {config.backbone_fingerprint[:12]} ({config.backbone})",
            mend="Train verbalizers for this model, or name the model they were trained on",
        )
    if config.stale:
        logger.warning(
            "%s: these verbalizers are older than their model, which was trained on after them. "
            "New ones read it better (docs/exits.md)",
            folder,
        )
    taps = resolve_taps(config.taps, decoder.num_blocks, where=str(folder / VERBALIZERS_FILE))
    bank = build_verbalizers(decoder, taps, config.verbalizer, seed=0)
    weights = folder / WEIGHTS_FILE
    try:
        if weights.exists() and not weights.is_file():  # whoever opens a pipe waits
            raise OSError("it is not a file")
        # on no device, they become views of the file: the block beside them has no weights here
        bank.load_state_dict(load_file(weights), assign=decoder.is_empty)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unusable(folder, error) from error
    return bank


def validate_weights(folder: Path) -> None:
    """Refuse verbalizers whose weights are missing or cut off. Their values are not read.

    Raises:
        ModelError: they are.
    """
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"verbalizer weights cannot be used ({error})",
        where=folder / WEIGHTS_FILE,
        mend="Delete the folder to train them again",
    )


def verbalizers_fingerprint(bank: VerbalizerBank) -> str:
    """Return SHA-256 over every weight in float32, in the order of their names.

    Verbalizers without weights are known by their taps.
    """
    digest = hashlib.sha256()
    if not bank.settings.trains:
        digest.update(f"{bank.settings.structure} {bank.taps}".encode())
    for name, value in sorted(bank.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> VerbalizerConfig:
    """Read what a folder of verbalizers says of itself.

    Raises:
        ModelError: there is no config, or it is damaged.
    """
    path = folder / VERBALIZERS_FILE
    try:
        config = VerbalizerConfig.model_validate_json(read_file(path))
        if config.backbone != OWNER:
            return config
        return config.model_copy(update={"backbone": str(folder.parent)})
    except FileNotFoundError:
        raise ModelError(
            "no trained verbalizers here",
            where=folder,
            expected=f"a folder with {VERBALIZERS_FILE} and {WEIGHTS_FILE}",
            mend="Leave teacher.verbalizers (or student.verbalizers) out to train them",
        ) from None
    except OSError as error:
        raise ModelError(
            f"verbalizer config cannot be read ({error.strerror})",
            where=path,
            mend="Make it readable, or delete the folder to train them again",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"verbalizer config is damaged ({': '.join([*map(str, first['loc']), first['msg']])})",
            where=path,
            mend="Delete the folder to train them again",
        ) from error
