"""What a launcher's environment asks for: what can be had, and one line for what cannot."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final, Literal

import torch
from accelerate import PartialState

from vlsi_cache.errors import RecipeError
from vlsi_cache.models import uses_autocast
from vlsi_cache.recipe import Recipe
from vlsi_cache.training.sharding import ASKED, FsdpOptions

__all__ = ["asked_sharding", "validate_launch", "validate_precision"]

logger = logging.getLogger(__name__)

_LAUNCH: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BY_MPI: Final = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PRECISION: Final = "ACCELERATE_MIXED_PRECISION"
"""Every ``accelerate launch`` sets it."""
_OTHER_ENGINES: Final = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism_config",
}
_USE_FSDP: Final = "Use FSDP2 instead: docs/scale.md has the configuration to copy"


def validate_launch() -> None:
    """Refuse an environment that asks for what cannot be had, before anything is loaded.

    Raises:
        RecipeError: variables of a launch are missing beside others. Several processes were meant,
            and one was started. Or an engine is asked for that is not supported.
    """
    given = [name for name in _LAUNCH if name in os.environ]
    launched = "LOCAL_RANK" in given or os.environ.get("WORLD_SIZE", "1") != "1"
    missing = [name for name in _LAUNCH if name not in given]
    if launched and missing:
        raise RecipeError(
            "the environment is half a launcher's",
            where="environment",
            expected=", ".join(_LAUNCH),
            found=f"only {', '.join(given)}",
            mend="Start the command with torchrun or accelerate launch, or unset these variables",
        )
    alone = not launched and not any(name in os.environ for name in _BY_MPI)
    by_scheduler = "SLURM_JOB_ID" in os.environ  # whose scripts name an address themselves
    if alone and not by_scheduler and _PRECISION in os.environ and "MASTER_ADDR" in given:
        raise RecipeError(
            "accelerate launch was to start several processes, and has started one: on a CPU it "
            "starts others by MPI alone",
            where="environment",
            mend="Start the command with torchrun --nproc_per_node N, or with num_processes: 1",
        )
    for name, engine in _OTHER_ENGINES.items():
        if _is_set(os.environ, name):
            raise RecipeError(
                f"{engine} is asked for, and is not supported", where=name, mend=_USE_FSDP
            )


def validate_precision(
    recipe: Recipe, role: Literal["teacher", "student"], device: torch.device
) -> None:
    """Refuse a launcher's mixed precision that is not the recipe's.

    ``no`` is what ``accelerate launch`` says where nobody has asked, so it asks for nothing.

    Raises:
        RecipeError: they differ.
    """
    asked = os.environ.get(_PRECISION, "no").lower()
    section = recipe.teacher if role == "teacher" else recipe.student
    if asked == "no" or (asked == "bf16" and uses_autocast(section.dtype, device)):
        return
    mend = (
        "Set mixed_precision: 'no' in the configuration of accelerate, and leave it to the recipe"
    )
    if asked == "bf16":
        mend += f", or set {role}.dtype: bfloat16"
    raise RecipeError(
        f"accelerate is to train in {asked}, and the recipe is not",
        where=f"{role}.dtype",
        expected="mixed_precision: 'no'",
        found=f"mixed_precision: {asked}, {role}.dtype: {section.dtype} on {device.type}",
        mend=mend,
    )


def asked_sharding(
    recipe: Recipe, role: Literal["teacher", "student"], device: torch.device
) -> FsdpOptions | None:
    """Return how the launcher asks for weights to be sharded, or None.

    Args:
        recipe: description of the run.
        role: the model that the command works on.
        device: this process's device.

    Raises:
        RecipeError: FSDP is asked for in a way that cannot be had.
    """
    given = os.environ
    if not _is_set(given, ASKED):
        return None
    problem = _problem(given, role) or _recomputation(given, recipe)
    if problem is not None:
        raise problem
    sharding = FsdpOptions(
        reshard=given.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0"),
        offload=_is_set(given, "FSDP_OFFLOAD_PARAMS") and device.type != "cpu",
    )
    if PartialState().is_main_process:
        _say(given, sharding, device)
    return sharding


def _problem(given: Mapping[str, str], role: str) -> RecipeError | None:
    """Return what cannot be had of the way in which FSDP is asked for."""
    if role == "teacher":
        return RecipeError(
            "FSDP is for students, and dump-teacher does not train its model",
            where=ASKED,
            mend="Start dump-teacher without FSDP. docs/scale.md says how to divide a teacher",
        )
    if given.get("FSDP_VERSION", "1") != "2":
        return RecipeError(
            "FSDP of version 1 is not supported",
            where="fsdp_config",
            expected="fsdp_version: 2",
            found=f"fsdp_version: {given.get('FSDP_VERSION', '1')}",
            mend=_USE_FSDP,
        )
    if not torch.distributed.is_initialized():
        return RecipeError(
            "FSDP is asked for, and no launcher has started the processes",
            where=ASKED,
            mend="Start the command with accelerate launch or torchrun, or unset the variable",
        )
    refused = {
        "FSDP_AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "fsdp_auto_wrap_policy"),
        "FSDP_IGNORED_MODULES": (None, "fsdp_ignored_modules"),
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", "fsdp_activation_checkpointing_offload"),
    }
    for name, (only, key) in refused.items():
        if name in given and given[name].lower() != (only or "").lower():
            return RecipeError(
                f"{key} is not supported",
                where="fsdp_config",
                expected=f"{key}: {only}, or none" if only else f"no {key}",
                found=given[name],
                mend="The decoder's blocks are found and sharded without it",
            )
    return None


def _recomputation(given: Mapping[str, str], recipe: Recipe) -> RecipeError | None:
    """Refuse FSDP's activation checkpointing where the recipe does not ask for its own."""
    if not _is_set(given, "FSDP_ACTIVATION_CHECKPOINTING"):
        return None
    sections = {"interaction": recipe.interaction, "finetuning": recipe.finetuning}
    without = [
        name
        for name, section in sections.items()
        if name in recipe.stages and not section.gradient_checkpointing
    ]
    if not without:
        return None
    keys = " and ".join(f"{name}.gradient_checkpointing: true" for name in without)
    return RecipeError(
        "fsdp_activation_checkpointing is set, and the recipe decides this",
        where="fsdp_config",
        mend=f"Set {keys} in the recipe, and leave fsdp_activation_checkpointing out",
    )


def _say(given: Mapping[str, str], sharding: FsdpOptions, device: torch.device) -> None:
    logger.info(
        "FSDP2: %d processes share the student's weights%s",
        PartialState().num_processes,
        ", in the host's memory" if sharding.offload else "",
    )
    if _is_set(given, "FSDP_OFFLOAD_PARAMS") and device.type == "cpu":
        logger.warning("fsdp_offload_params has no effect: the weights lie in the host's memory")
    if given.get("FSDP_STATE_DICT_TYPE", "").upper() == "SHARDED_STATE_DICT":
        logger.warning(
            "fsdp_state_dict_type: SHARDED_STATE_DICT is not used: checkpoints are whole, so that "
            "any number of processes can go on from them"
        )


def _is_set(given: Mapping[str, str], name: str) -> bool:
    return given.get(name, "false").lower() in ("1", "true", "yes", "on")
