"""One step of each stage, by the stages' own modules, on a batch of made-up tokens.

Shapes: B samples, T positions, N response tokens, L taps, S entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlsi_cache.hidden import HiddenSigns, HiddenTap
from vlsi_cache.manifest import rotation_width
from vlsi_cache.models import Backbone, resolve_taps
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import (
    HiddenLearningSection,
    HiddenRecordSection,
    InteractionSection,
    Recipe,
    Schedule,
)
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.student.hidden_state import HiddenTarget, learns_map
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.teacher.checks import hidden_identity
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import StageModule
from vlsi_cache.verbalizer import Verbalization, VerbalizerBank, build_verbalizers

__all__ = ["STAGES", "Batch", "PlannedStageName", "StageStep", "make_step", "schedule_of"]

PlannedStageName = Literal[
    "teacher-verbalization", "teacher-pass", "student-verbalization", "interaction", "finetuning"
]
STAGES: Final[tuple[PlannedStageName, ...]] = (
    "teacher-verbalization",
    "teacher-pass",
    "student-verbalization",
    "interaction",
    "finetuning",
)
"""All stages of a whole run, in order."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The size of a batch."""

    num_samples: int
    """B."""
    length: int
    """T, tokens of the longest sample, to which all are padded."""
    num_responses: int
    """N, response tokens of all samples."""

    def tensors(self, device: torch.device) -> dict[str, Any]:
        """Make the tensors that ``TokenBatches`` makes, of one token."""
        ids = torch.zeros(self.num_samples, self.length, dtype=torch.long, device=device)
        positions = torch.arange(self.num_responses, device=device)
        spread = torch.arange(self.num_responses, device=device) * self.num_samples
        return {
            "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            "positions": positions % (self.num_samples * self.length),
            "labels": torch.zeros_like(positions),
            "token_samples": spread // max(self.num_responses, 1),
        }


@dataclass(frozen=True, slots=True)
class StageStep:
    """What one step of a stage runs."""

    run: Callable[[Batch], None]
    """Runs forward, and backward if anything trains."""
    module: StageModule | None
    """What trains. None for the teacher's pass."""
    rest: Callable[[], None] = lambda: None
    """Lets what does not run to the stage's end rest."""
    share: float = 1.0
    """Part of the stage's steps before that."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that train. Those of a sharded module are this process's slices."""
        if self.module is None:
            return []
        return [value for value in self.module.parameters() if value.requires_grad]


def schedule_of(recipe: Recipe, stage: PlannedStageName) -> Schedule | None:
    """Return the schedule of a stage. The teacher pass has none."""
    if stage == "teacher-pass":
        return None
    return {
        "teacher-verbalization": recipe.teacher.verbalization,
        "student-verbalization": recipe.student.verbalization,
        "interaction": recipe.interaction,
        "finetuning": recipe.finetuning,
    }[stage]


def make_step(
    recipe: Recipe,
    stage: PlannedStageName,
    backbone: Backbone,
    num_teacher_taps: int,
    teacher_size: int | None = None,
) -> StageStep:
    """Build what a stage runs, as the stage itself does.

    Args:
        recipe: the whole run.
        stage: name of the stage.
        backbone: the teacher or the student, in the dtype that the stage gives it.
        num_teacher_taps: taps of the teacher, without the output.
        teacher_size: the teacher's hidden size; the backbone's own where it is not known.
    """
    if stage == "finetuning":
        return _finetuning(recipe, backbone, num_teacher_taps)
    if stage == "teacher-pass":
        return _teacher_pass(recipe, backbone)
    if stage == "interaction":
        return _interaction(recipe, backbone, num_teacher_taps, teacher_size)
    role: Literal["teacher", "student"] = "teacher" if "teacher" in stage else "student"
    bank = _bank(recipe, role, backbone)
    target = getattr(recipe, role).verbalization.target
    return _trained(Verbalization(backbone.decoder, bank, backbone.vocab_size, target), backbone)


def _bank(
    recipe: Recipe, role: Literal["teacher", "student"], backbone: Backbone
) -> VerbalizerBank:
    section = getattr(recipe, role)
    blocks = backbone.decoder.num_blocks
    taps = section.taps
    if taps is not None:  # a probe's model is shorter
        taps = [tap for tap in taps if tap < blocks] or [blocks - 1]
    taps = resolve_taps(taps, blocks, where=backbone.name)
    return build_verbalizers(backbone.decoder, taps, section.verbalizer, seed=0)


def _teacher_pass(recipe: Recipe, backbone: Backbone) -> StageStep:
    bank = _bank(recipe, "teacher", backbone).requires_grad_(False)
    head = backbone.head
    settings = recipe.cache
    order = torch.arange(head.num_rows, device=head.weight.device)  # any order takes as much
    recorder = TapRecorder(
        head, k=settings.k, m=settings.m, drawn_from=settings.drawn_from, order=order
    )
    decoder = backbone.decoder
    kept = hidden_identity(recipe, decoder.num_blocks, decoder.hidden_size)
    hidden = None if kept is None else HiddenTap(kept.block, _signs(kept.width, kept.bits))
    reader = TeacherPass(backbone, bank, recorder, recipe.seed, hidden)

    def run(batch: Batch) -> None:
        shape = batch.num_responses, len(bank.taps) + 1, recorder.num_uniforms
        uniforms = np.full(shape, 0.5)
        try:
            rotations = np.zeros(batch.num_responses, np.int64)
            reader.begin(batch.tensors(head.weight.device), uniforms, rotations)()
        except RuntimeError as error:
            # A rehearsal ends where the record leaves torch: it has no numbers to give.
            if ".numpy()" not in str(error):
                raise

    return StageStep(run, None)


def _interaction(
    recipe: Recipe, backbone: Backbone, num_teacher_taps: int, teacher_size: int | None
) -> StageStep:
    settings = _without_numbers(recipe.interaction)
    device = backbone.device
    if settings.inner == "none":
        bank = build_verbalizers(backbone.decoder, (), recipe.student.verbalizer, seed=0)
    else:
        bank = _bank(recipe, "student", backbone)
    count = max(num_teacher_taps, len(bank.taps))
    module = Interaction(backbone, bank, settings, teacher_taps=range(count), seed=0)
    if settings.gradient_checkpointing:
        backbone.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    if settings.hidden is not None:
        module.hidden = _hidden_target(recipe, settings.hidden, backbone, teacher_size)
    record = _record(recipe, count, device)
    step = _trained(module, backbone, lambda batch: record(batch) | _hidden(module, batch))
    schedule = settings.inner_schedule
    if schedule is None or schedule.end or settings.inner == "none":
        return step

    def rest() -> None:
        module.progress = 1.0

    return replace(step, rest=rest, share=schedule.until)


class _RehearsedSigns(HiddenSigns):
    """Signs of states without numbers. Flips of any value take as much."""

    def _flips(self, rows: Tensor) -> list[Tensor]:
        return [torch.ones(len(rows), self.padded, device=rows.device)] * 2


def _signs(width: int, bits: int) -> HiddenSigns:
    return _RehearsedSigns(width, bits, seed=0)


def _hidden_target(
    recipe: Recipe, settings: HiddenLearningSection, backbone: Backbone, teacher_size: int | None
) -> HiddenTarget:
    """Make what learns a hidden state, with its map if there is one."""
    size = backbone.decoder.hidden_size
    width = size if teacher_size is None else teacher_size
    # a recipe of the student alone does not say the signs
    recorded = recipe.cache.hidden or HiddenRecordSection()
    signs = _signs(width, recorded.num_bits(rotation_width(width)))
    mapped_from = size if learns_map(settings, size, width) else None
    target = HiddenTarget(0, signs, settings.weight, mapped_from=mapped_from)
    return target.to(backbone.device)


def _hidden(module: Interaction, batch: Batch) -> dict[str, Any]:
    """What a step reads of the recorded hidden state."""
    if module.hidden is None:
        return {}
    device = module.teacher_taps.device
    shape = batch.num_responses, module.hidden.signs.bits // 8
    rotations = torch.zeros(batch.num_responses, dtype=torch.long, device=device)
    signs = torch.zeros(shape, dtype=torch.uint8, device=device)
    return {"hidden_signs": signs, "rotations": rotations}


def _record(
    recipe: Recipe, num_teacher_taps: int, device: torch.device
) -> Callable[[Batch], dict[str, Any]]:
    """What a step reads of the cache, ``[N, L, S]``."""
    k, m = recipe.cache.k, recipe.cache.m
    entries = k + m if recipe.interaction.tail == "sample" else k

    def targets(batch: Batch) -> dict[str, Any]:
        shape = (batch.num_responses, num_teacher_taps + 1, max(entries, 1))
        return {
            "targets": SparseTargets(
                torch.zeros(shape, dtype=torch.long, device=device),
                torch.full(shape, 1 / shape[2], device=device),
                torch.zeros(shape[:2], device=device),
            )
        }

    return targets


def _without_numbers(settings: InteractionSection) -> InteractionSection:
    """Replace what decides by numbers, which fake tensors do not have, by what takes as much.

    Fixed pairs have one teacher tap for a student tap, as drawn ones do.
    """
    update: dict[str, Any] = {}
    if settings.matching.strategy not in ("expected", "shortest"):
        update["matching"] = settings.matching.model_copy(update={"strategy": "uniform"})
    if settings.output_target is not None:
        update["output_target"] = settings.output_target.model_copy(update={"tap": 0})
    return settings.model_copy(update=update)


def _finetuning(recipe: Recipe, backbone: Backbone, num_teacher_taps: int) -> StageStep:
    module = Finetuning(backbone, recipe.finetuning)
    reads = recipe.finetuning.record_weight > 0
    more = _record(recipe, num_teacher_taps, backbone.device) if reads else None
    if recipe.finetuning.gradient_checkpointing:
        backbone.decoder.model.activation_checkpointing_enable({"use_reentrant": False})
    return _trained(module, backbone, more)


def _trained(
    module: StageModule, backbone: Backbone, more: Callable[[Batch], dict[str, Any]] | None = None
) -> StageStep:
    """A step that trains a module."""
    device = backbone.device
    module.train()

    def run(batch: Batch) -> None:
        given = batch.tensors(device) | (more(batch) if more is not None else {})
        with torch.autocast(device.type, torch.bfloat16, enabled=backbone.autocast):
            loss: Tensor = module(**given)["loss"]
        loss.backward()

    return StageStep(run, module)
