"""Training the demo's models from scratch, with an optimizer fast enough for a few minutes.

From random weights AdamW stays at chance on shapes for most of the demo's time; Muon learns them
in a fraction of it. The three commands keep to AdamW.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_conversations
from vlsi_cache.demo.muon import MuonWithAdamW
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import FinetuningSection, ModelSection, Recipe, Schedule
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.training import Run, Stage, Training, run_stage, save_model

__all__ = ["train_from_scratch"]

_LEARNING_RATE = 1e-3


def train_from_scratch(
    untrained: Path, data: Path, folder: Path, *, steps: int, batch_size: int, seed: int
) -> Path:
    """Train every parameter of a randomly initialised model, unless that is done already.

    Args:
        untrained: checkpoint to start from.
        data: conversations.
        folder: folder of the checkpoints and the result.
        steps: optimizer steps.
        batch_size: conversations per step.
        seed: seed of the data order.

    Returns:
        Folder of the trained checkpoint.
    """
    run = Run(Recipe(seed=seed), torch.device("cpu"), load_conversations(data))
    result = folder / "model"

    stage = Stage(
        name=folder.name,
        folder=folder,
        result=result,
        schedule=_schedule(steps, batch_size),
        settings={
            "untrained": str(untrained),
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
        },
        start=lambda: _start(run, untrained),
        save=lambda module: save_model(module.model, ModelSection(model=str(untrained)), result),
    )
    return run_stage(run, stage)


def _start(run: Run, untrained: Path) -> Training[Finetuning]:
    section = ModelSection(model=str(untrained))
    model = load_backbone(section, "model", run.device, trains=True)
    module = Finetuning(model, FinetuningSection())
    return Training(
        module=module,
        dataset=IndexedConversations(run.data),
        collate=TokenBatches(encoder_for(model, run.recipe.data)),
        optimizer=MuonWithAdamW(module, learning_rate=_LEARNING_RATE),
    )


def _schedule(steps: int, batch_size: int) -> Schedule:
    return Schedule(
        steps=steps,
        batch_size=batch_size,
        learning_rate=_LEARNING_RATE,
        final_learning_rate=0.02 * _LEARNING_RATE,
        warmup_steps=min(50, steps // 3),
        log_every=50,
        save_every=100,
    )
