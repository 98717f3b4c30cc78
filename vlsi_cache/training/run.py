"""``Run``: what all stages of one command share."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import TrainerCallback

from vlsi_cache.data import ConversationDataset, DataFindings, load_data
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Recipe, report_settings, validate_together
from vlsi_cache.training.advice import advising
from vlsi_cache.training.launch import asked_sharding, validate_launch, validate_precision
from vlsi_cache.training.preflight import validate_output
from vlsi_cache.training.processes import from_main_process, on_main_process, resolve_device
from vlsi_cache.training.sharding import FsdpOptions

__all__ = ["LeftOut", "Run", "begin_run", "prepare_data"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The samples that every stage leaves out."""

    failed: Mapping[int, str] = field(default_factory=dict)
    """Index → reason, where the cache records a failure."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Index → reason, where the command's own model cannot read the sample."""
    unchosen: Sequence[int] = ()
    """Indices of the samples that ``data.select`` does not choose."""
    held_out: frozenset[int] = frozenset()
    """Samples that a student is measured on."""

    @property
    def indices(self) -> list[int]:
        """All of them, ascending."""
        return sorted({*self.failed, *self.unknown_to_cache})

    @property
    def unknown_to_cache(self) -> list[int]:
        """Those that are no failures of the cache, ascending."""
        return sorted({*self.unreadable, *self.held_out, *self.unchosen})

    def reasons(self, role: str) -> str:
        """Return how many failed where, with the first reason. Each sample counts once.

        Args:
            role: the model that the command works on.
        """
        clauses = []
        unreadable = {*self.unreadable} - {*self.failed}
        held_out = self.held_out - {*self.failed} - unreadable
        unchosen = {*self.unchosen} - {*self.failed} - unreadable - held_out
        if self.failed:
            clauses.append(f"{len(self.failed)} failed when the teacher was dumped")
        if unreadable:
            reason = self.unreadable[min(unreadable)]
            clauses.append(f"{len(unreadable)} cannot be read by the {role}: {reason}")
        if held_out:
            clauses.append(f"{len(held_out)} are held out")
        if unchosen:
            clauses.append(f"{len(unchosen)} are not chosen by data.select")
        return ", and ".join(clauses)


@dataclass(frozen=True, slots=True)
class Run:
    """What all stages of one command share."""

    recipe: Recipe
    """The validated description of the whole run."""
    device: torch.device
    """This process's device."""
    data: ConversationDataset
    """The conversations that every stage reads."""
    callbacks: Sequence[TrainerCallback] = ()
    """The caller's own callbacks, for the Trainer of each stage that takes them."""
    role: Literal["teacher", "student"] = "student"
    """The model that the command works on."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """The samples that no stage learns from."""
    sharding: FsdpOptions | None = None
    """How weights are sharded over the processes; each process holds all of them if None."""
    reminders: list[str] = field(default_factory=list)
    """Warnings that the command repeats at its end, where they are not scrolled away."""
    selection: Mapping[str, Any] = field(default_factory=dict)
    """What ``data.select`` asks for and what it has chosen, as JSON values; empty without it."""
    figures: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Name of each stage that has trained here → its last metrics. The main process has them."""
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    """About how many tokens each sample has, once ``sample_lengths`` has measured it."""

    @property
    def place(self) -> torch.device:
        """Where models are loaded: one that is to be sharded may be too large for the device."""
        return self.device if self.sharding is None else torch.device("cpu")

    def holding_out(self, indices: Iterable[int]) -> Run:
        """Return the run with samples that no stage learns from."""
        return replace(self, left_out=replace(self.left_out, held_out=frozenset(indices)))

    def report_left_out(self, stage: str) -> None:
        """Log how many samples a stage leaves out, on the main process."""
        left_out = self.left_out
        if left_out.indices and PartialState().is_main_process:
            logger.warning(
                "%s leaves out %d of %d samples, of which %s",
                stage,
                len(left_out.indices),
                len(self.data),
                left_out.reasons(self.role),
            )

    def remind(self) -> None:
        """Log the reminders, on the main process."""
        if PartialState().is_main_process:
            for reminder in self.reminders:
                logger.warning("%s", reminder)

    def fingerprint(self) -> str:
        """Return the identity of the data. With ``skip``, it covers unsound rows too."""
        return self.data.fingerprint(skip=self.recipe.skips_failures)

    def settings(self) -> dict[str, Any]:
        """Return what every stage's result depends on, as JSON values."""
        return {
            "data": self.fingerprint(),
            "max_length": self.recipe.data.max_length,
            "seed": self.recipe.seed,
            **({"select": dict(self.selection)} if self.selection else {}),
            **self._held_out_settings(),
        }

    def _held_out_settings(self) -> dict[str, Any]:
        """Return which samples are held out, if any are."""
        held_out = sorted(self.left_out.held_out)
        if not held_out:
            return {}
        digest = hashlib.sha256(json.dumps(held_out).encode()).hexdigest()
        return {"held_out": {"num_samples": len(held_out), "samples": digest[:16]}}


def begin_run(
    recipe: Recipe,
    role: Literal["teacher", "student"],
    callbacks: Sequence[TrainerCallback] = (),
    checks: Sequence[Callable[[], object]] = (),
) -> Run:
    """Join the launched processes, and open and validate the data.

    Args:
        recipe: description of the run.
        role: the model that the command works on.
        callbacks: the caller's own, for the Trainer of each stage that takes them.
        checks: cheap checks of the command, which run before any row is read.

    Raises:
        RecipeError: no data is named, or the device is not this process's.
        DataError: the data cannot be read, or a row is not a conversation and not to be skipped.
        VlsiCacheError: a check has failed. One error has the problems of all.
    """
    report_settings(recipe, role)
    validate_launch()
    joined: list[tuple[torch.device, FsdpOptions | None]] = []
    opened: list[ConversationDataset] = []

    def join() -> None:
        device = resolve_device(recipe.device)
        validate_precision(recipe, role, device)
        joined.append((device, asked_sharding(recipe, role, device)))

    with phase("checking settings, folders and models"):
        checks = [lambda: validate_output(recipe.output), *checks]
        validate_together([join, lambda: opened.append(load_data(recipe.data)), *checks])
    (device, sharding), data = joined[0], opened[0]
    prepare_data(data, skip=recipe.skips_failures)
    return Run(recipe, device, data, callbacks, role, sharding=sharding)


def prepare_data(data: ConversationDataset, *, skip: bool) -> None:
    """Validate the data in the main process, for all of them.

    Args:
        data: what was opened.
        skip: whether rows that are not sound are left out later.

    Raises:
        DataError: a row is not a conversation and not to be skipped.
    """
    # with skip, a row that is not sound fails later, like one that cannot be encoded
    found: list[DataFindings | None] = [None]
    with advising():
        on_main_process(lambda: found.insert(0, data.prepare(skip=skip)))
    shared = from_main_process(found[0])
    assert shared is not None  # or the main process has raised, and so have all
    data.adopt(shared)
