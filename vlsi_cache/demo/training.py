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
from vlsi_cache.recipe import DataSection, FinetuningSection, ModelSection, Schedule
from vlsi_cache.student.finetuning import Finetuning
from vlsi_cache.training.checkpoint import save_checkpoint
from vlsi_cache.training.folder import StageFolder
from vlsi_cache.training.trainer import discard_checkpoints, run_training

__all__ = ["train_from_scratch"]

_LEARNING_RATE = 1e-3


def train_from_scratch(
    untrained: Path, data: Path, folder: Path, *, steps: int, batch_size: int, seed: int
) -> Path:
    """Train every parameter of a randomly initialised model; resumes, and keeps what is finished.

    Args:
        untrained: checkpoint to start from.
        data: conversations.
        folder: for checkpoints and the result.
        steps: optimizer steps.
        batch_size: conversations per step.
        seed: of the data order.

    Returns:
        Folder of the trained checkpoint.
    """
    result = folder / "model"
    settings = {"untrained": str(untrained), "steps": steps, "batch_size": batch_size, "seed": seed}
    stage = StageFolder(folder, settings)
    if not stage.begin(result / "config.json"):
        return result
    device = torch.device("cpu")
    model = load_backbone(ModelSection(model=str(untrained)), "model", device, "float32")
    module = Finetuning(model, FinetuningSection())
    run_training(
        folder.name,
        module,
        IndexedConversations(load_conversations(data)),
        TokenBatches(encoder_for(model, DataSection())),
        Schedule(
            steps=steps,
            batch_size=batch_size,
            learning_rate=_LEARNING_RATE,
            final_learning_rate=0.02 * _LEARNING_RATE,
            warmup_steps=min(50, steps // 3),
            log_every=50,
            save_every=100,
        ),
        folder,
        device=device,
        autocast=False,
        seed=seed,
        optimizer=MuonWithAdamW(module, learning_rate=_LEARNING_RATE),
    )
    save_checkpoint(model.decoder.model, model.name, result)
    stage.finish()
    discard_checkpoints(folder)
    return result
