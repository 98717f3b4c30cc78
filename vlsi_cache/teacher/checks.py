"""Whether a dump can begin, by what is known before the data is read and the teacher loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from accelerate import PartialState

from vlsi_cache.errors import ModelError, RecipeError, VlsiCacheError
from vlsi_cache.manifest import (
    MAX_POOL,
    MAX_TOP,
    OUTPUT_TAP,
    HiddenIdentity,
    Sampling,
    format_version_of,
    rotation_width,
)
from vlsi_cache.models import load_config_of, preview_model
from vlsi_cache.phases import speaks_for_all
from vlsi_cache.recipe import Recipe, validate_trackers
from vlsi_cache.store import is_begun, validate_beginnable
from vlsi_cache.verbalizer import preview_taps

__all__ = ["dump_checks", "hidden_identity", "sampling_of", "settings_checks", "validate_entries"]

logger = logging.getLogger(__name__)


def dump_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """Return the cheap checks of a dump, each of which raises what is wrong."""
    return [lambda: _validate_launch(recipe), *settings_checks(recipe)]


def settings_checks(recipe: Recipe) -> list[Callable[[], object]]:
    """Return those checks of a dump that do not ask how it was launched."""
    return [
        lambda: _validate_teacher(recipe),
        lambda: _validate_cache_settings(recipe),
        lambda: validate_trackers(recipe),
    ]


def sampling_of(recipe: Recipe) -> Sampling:
    """Return what a recipe keeps of each distribution, as a manifest says it."""
    settings = recipe.cache
    return Sampling(k=settings.k, m=settings.m, seed=recipe.seed, drawn_from=settings.drawn_from)


def hidden_identity(recipe: Recipe, num_blocks: int, hidden_size: int) -> HiddenIdentity | None:
    """Return what a recipe keeps of a hidden state, as a manifest says it.

    Args:
        recipe: the recipe.
        num_blocks: the teacher's decoder blocks.
        hidden_size: the teacher's hidden size, D.

    Raises:
        ModelError: ``cache.hidden.block`` is not a block.
        RecipeError: ``cache.hidden.bits`` is too large.
    """
    settings = recipe.cache.hidden
    if settings is None:
        return None
    block = max(num_blocks - 3, 0) if settings.block is None else settings.block
    if block >= num_blocks:
        raise ModelError(
            "the teacher has no such block whose hidden state could be recorded",
            where="cache.hidden.block",
            expected=f"a block from 0 to {num_blocks - 1}",
            found=block,
            mend="Name one of them, or leave it out for two before the last",
        )
    most = rotation_width(hidden_size)
    bits = settings.num_bits(most)
    if bits > most:
        raise RecipeError(
            "more signs of a hidden state than its rotation has",
            where="cache.hidden.bits",
            expected=f"at most {most}, for the teacher's hidden size of {hidden_size}",
            found=bits,
            mend=f"Set cache.hidden.bits: {most}",
        )
    return HiddenIdentity(block=block, num_blocks=num_blocks, width=hidden_size, bits=bits)


def validate_entries(recipe: Recipe, where: str, *, vocab_size: int, num_taps: int) -> None:
    """Refuse more entries per token than the vocabulary or the format has room for.

    Args:
        recipe: the recipe.
        where: name of the teacher, for errors.
        vocab_size: size of its vocabulary.
        num_taps: number of taps, the output included.

    Raises:
        RecipeError: ``cache.k`` or ``cache.m`` is too large.
    """
    k = recipe.cache.k
    m = recipe.cache.m
    if k + m > vocab_size:
        raise RecipeError(
            "cache.k + cache.m is larger than the vocabulary",
            where=where,
            expected=f"at most {vocab_size}",
            found=f"{k} + {m}",
            mend="Lower cache.k or cache.m",
        )
    bounds = [("m", m, MAX_POOL), ("k", k, MAX_TOP)]
    if recipe.cache.drawn_from == "whole":
        bounds.append(("k + cache.m", k + m, MAX_POOL))
    for name, each, most in bounds:
        if each * num_taps > most:
            raise RecipeError(
                "more entries per token, at all taps together, than the format holds",
                where=where,
                expected=f"at most {most}",
                found=f"cache.{name} {each} at {num_taps} taps",
                mend=f"Lower cache.{name}, or name fewer teacher.taps",
            )


def _validate_launch(recipe: Recipe) -> None:
    """Refuse another number of processes than the teacher is meant for."""
    found, wanted = PartialState().num_processes, recipe.teacher.tensor_parallel
    if recipe.teacher.device_map is not None and found > 1:
        raise RecipeError(
            "a device map spreads the teacher over the devices of one process",
            where="teacher.device_map",
            found=f"{found} processes",
            mend="Start one process. Or start torchrun, with teacher.tensor_parallel in its place",
        )
    if wanted > 1 and found != wanted:
        raise RecipeError(
            "another number of processes was started than holds the teacher together",
            where="teacher.tensor_parallel",
            expected=f"{wanted} processes",
            found=found,
            mend=f"Start torchrun --nproc-per-node {wanted}. For more at once, start several jobs, "
            "each with its own --partition I/N",
        )
    if wanted > 1 and PartialState().device.type != _accelerator():
        raise RecipeError(
            "tensor parallelism runs on the accelerator, where there is one",
            where="device",
            expected=f"auto or {_accelerator()}",
            found=recipe.device,
            mend="Leave the device out, or hide the accelerator",
        )


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def _validate_teacher(recipe: Recipe) -> None:
    preview = preview_model(recipe.teacher, "teacher")
    num_taps = len(preview_taps(recipe, "teacher", preview) or ()) + 1
    if preview.num_blocks is not None and preview.hidden_size is not None:
        hidden_identity(recipe, preview.num_blocks, preview.hidden_size)
        _advise_hidden(recipe, preview.hidden_size)
    validate_entries(recipe, preview.name, vocab_size=preview.vocab_size, num_taps=num_taps)


def _advise_hidden(recipe: Recipe, hidden_size: int) -> None:
    """Say that a hidden state could be recorded too, where the student could learn it."""
    named = recipe.student.model is not None and recipe.cache.hidden is None
    if not named or not speaks_for_all() or is_begun(recipe.cache_path):
        return
    try:
        config = load_config_of(recipe.student)
    except VlsiCacheError:
        return  # the student's own command says what is wrong
    if getattr(config.get_text_config(decoder=True), "hidden_size", None) == hidden_size:
        logger.info(
            "teacher and student have the same hidden size. With cache.hidden: {} and "
            "interaction.hidden: {} the student would learn a hidden state too, for 64 bytes a "
            "token (docs/method.md)"
        )


def _validate_cache_settings(recipe: Recipe) -> None:
    if recipe.interaction.hidden is not None and recipe.cache.hidden is None:
        raise RecipeError(
            "interaction.hidden learns a hidden state, and this dump would record none",
            where="cache.hidden",
            expected="{}, or its block and bits",
            found="null",
            mend="Set cache.hidden: {}, or interaction.hidden: null",
        )
    sampling, hidden = sampling_of(recipe), recipe.cache.hidden
    known: dict[str, object] = {
        "sampling": sampling,
        "samples_per_shard": recipe.cache.samples_per_shard,
        "processor_options": recipe.teacher.processor,
    }
    known["format_version"] = format_version_of(sampling, has_hidden=hidden is not None)
    if hidden is None:
        known["hidden"] = None
    if recipe.teacher.taps is not None:
        known["taps"] = (*sorted(set(recipe.teacher.taps)), OUTPUT_TAP)
    validate_beginnable(recipe.cache_path, known)
