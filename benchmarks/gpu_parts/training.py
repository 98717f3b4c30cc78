"""Steps of the student's stages and of stage one, beside plain cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_parts.clock import measured, released
from gpu_parts.shapes import ModelShape, Shapes, build_backbone
from vlsi_cache.models import Backbone, default_taps, run_backbone
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import FinetuningSection, InteractionSection, VerbalizerSection
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.verbalizer import Verbalization, build_verbalizers

__all__ = ["measure_students", "measure_verbalization"]

Step = Callable[[], object]

SETTINGS = InteractionSection()
OUTPUT_ONLY = SETTINGS.model_copy(update={"inner": "none"})
TEACHER_TAPS = tuple(range(2, 82, 4))
"""The paper's: 20 of 80 blocks."""


def measure_students(shapes: Shapes, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure the steps of every student."""
    rows = []
    for shape in shapes.students:
        taps = default_taps(shape.blocks)
        with_taps = partial(_interaction, shape, shapes, device)
        plain = partial(_plain, shape, shapes, device)
        pairs = {
            f"{shape.name}, output only": (lambda make=with_taps: make((), OUTPUT_ONLY), plain),
            f"{shape.name}, {len(taps)} taps": (
                lambda make=with_taps, taps=taps: make(taps, SETTINGS),
                plain,
            ),
            f"{shape.name}, fine-tuning": (
                partial(_finetuning, shape, shapes, device),
                partial(_plain_whole, shape, shapes, device),
            ),
        }
        for name, (ours, other) in pairs.items():
            rows.append({"name": name, **_compare(ours, other, rounds, device)})
    return {"student_step": rows}


def measure_verbalization(shapes: Shapes, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure a step of stage one on the teacher's shape beside its frozen forward."""
    backbone = build_backbone(shapes.teacher, device)
    taps = default_taps(shapes.teacher.blocks)
    bank = build_verbalizers(backbone.decoder, taps, VerbalizerSection(), seed=0)
    module = Verbalization(backbone.decoder, bank, backbone.vocab_size, "label")
    batch = _batch(shapes, backbone)

    @torch.no_grad()
    def forward() -> None:
        run_backbone(backbone.decoder, taps, batch["inputs"], batch["positions"])

    step = _step(module, backbone, lambda: module(**batch)["loss"])
    found = measured({"forward": forward, "step": step}, rounds, device)
    seconds = {name: one["seconds"] for name, one in found.items()}
    return {
        "verbalization": {
            "name": shapes.teacher.name,
            "taps": len(taps),
            "over_forward": seconds["step"] / seconds["forward"],
            "seconds": seconds,
            "seconds_per_tap": (seconds["step"] - seconds["forward"]) / len(taps),
            "peak_bytes": found["step"]["peak_bytes"],
        }
    }


def _compare(
    ours: Callable[[], Step], other: Callable[[], Step], rounds: int, device: torch.device
) -> dict[str, Any]:
    """Measure both in turns. Their peaks come first, each alone on the device."""
    peaks = []
    for make in (ours, other):
        step = make()
        peaks.append(measured({"alone": step}, 1, device)["alone"]["peak_bytes"])
        del step
        released(device)
    steps = {"step": ours(), "cross_entropy": other()}
    seconds = {name: one["seconds"] for name, one in measured(steps, rounds, device).items()}
    steps.clear()
    released(device)
    return {
        "over_cross_entropy": seconds["step"] / seconds["cross_entropy"],
        "peak_bytes": peaks[0],
        "cross_entropy_peak_bytes": peaks[1],
        "seconds": seconds,
    }


def _interaction(
    shape: ModelShape,
    shapes: Shapes,
    device: torch.device,
    taps: tuple[int, ...],
    settings: InteractionSection,
) -> Step:
    """Stage two, as train-student runs it."""
    student = build_backbone(shape, device)
    bank = build_verbalizers(student.decoder, taps, VerbalizerSection(), seed=0)
    module = Interaction(student, bank, settings, teacher_taps=TEACHER_TAPS, seed=0)
    batch = _batch(shapes, student)
    count = len(batch["labels"])
    size = (count, len(TEACHER_TAPS) + 1, shapes.entries)
    targets = SparseTargets(
        torch.randint(shape.real_vocabulary, size, device=device),
        torch.full(size, 1 / shapes.entries, device=device),
        torch.zeros(size[:2], device=device),
    )
    return _step(module, student, lambda: module(**batch, targets=targets)["loss"])


def _plain(shape: ModelShape, shapes: Shapes, device: torch.device) -> Step:
    """The same adapters with cross-entropy, as any trainer computes it from the model's logits."""
    student = build_backbone(shape, device)
    bank = build_verbalizers(student.decoder, (), VerbalizerSection(), seed=0)
    module = Interaction(student, bank, OUTPUT_ONLY, teacher_taps=TEACHER_TAPS, seed=0)
    return _step(module, student, partial(_plain_loss, student, _batch(shapes, student)))


def _finetuning(shape: ModelShape, shapes: Shapes, device: torch.device) -> Step:
    """Stage three, as train-student runs it."""
    student = build_backbone(shape, device, trains=True)
    module = Finetuning(student, FinetuningSection())
    batch = _batch(shapes, student)
    return _step(module, student, lambda: module(**batch)["loss"])


def _plain_whole(shape: ModelShape, shapes: Shapes, device: torch.device) -> Step:
    """The same weights with cross-entropy from the model's logits."""
    student = build_backbone(shape, device, trains=True)
    student.decoder.model.requires_grad_(True)
    loss = partial(_plain_loss, student, _batch(shapes, student))
    return _step(student.decoder.model, student, loss)


def _plain_loss(student: Backbone, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = student.decoder.model(**batch["inputs"], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1)[batch["positions"]].float(), batch["labels"])


def _step(module: nn.Module, backbone: Backbone, loss: Callable[[], Tensor]) -> Step:
    """A whole optimizer step in the autocast that a run has."""
    module.train()
    device = backbone.device
    trained = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=backbone.autocast):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batch(shapes: Shapes, backbone: Backbone) -> dict[str, Any]:
    """A batch as TokenBatches makes it, whose responses end every sample."""
    device = backbone.device
    generator = torch.Generator(device=device).manual_seed(1)
    size = (shapes.batch, shapes.length)
    ids = torch.randint(backbone.vocab_size, size, device=device, generator=generator)
    ends = torch.arange(shapes.length - shapes.responses, shapes.length, device=device)
    rows = torch.arange(shapes.batch, device=device)
    return {
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "positions": (rows[:, None] * shapes.length + ends - 1).flatten(),
        "labels": ids[:, ends].flatten(),
        "token_samples": rows.repeat_interleave(shapes.responses),
    }
