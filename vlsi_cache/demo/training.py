"""Training the demo's models from scratch, with an optimizer fast enough for a few minutes.

From random weights AdamW stays at chance on shapes for most of the demo's time; Muon (Jordan,
2024), which torch ships, learns them in a fraction of it. The three commands keep to AdamW.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlsi_cache.data import EncodedDataset, load_conversations
from vlsi_cache.recipe import DataSection, FinetuningSection, ModelSection, Schedule
from vlsi_cache.stages.backbone import load_backbone, save_checkpoint
from vlsi_cache.stages.batches import TokenBatches
from vlsi_cache.stages.finetune import Finetuning
from vlsi_cache.stages.ledger import StageFolder
from vlsi_cache.stages.training import discard_checkpoints, run_training

__all__ = ["MuonWithAdamW", "train_from_scratch"]

_LEARNING_RATE = 1e-3
_MUON_FACTOR = 20.0
_WEIGHT_DECAY = 0.05


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
        EncodedDataset(load_conversations(data)),
        TokenBatches(model.encoder(DataSection())),
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
    save_checkpoint(model.decoder.model, model.processor, result)
    stage.finish()
    discard_checkpoints(folder)
    return result


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the model, AdamW for embeddings, norms and the rest.

    One optimizer to its callers: schedules set the learning rate of its two groups, and its state
    holds both parts' states.

    Args:
        module: what trains.
        learning_rate: AdamW's; Muon's is 20 times as large.
    """

    def __init__(self, module: nn.Module, *, learning_rate: float) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            inner = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            (matrices if inner else rest).append(parameter)
        groups = [
            {"params": matrices, "lr": _MUON_FACTOR * learning_rate},
            {"params": rest, "lr": learning_rate},
        ]
        super().__init__(groups, {"lr": learning_rate})
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=_WEIGHT_DECAY, momentum=0.95),
            torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98)),
        ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both parts at the learning rates that the groups hold now."""
        for group, part in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The groups, and both parts' states."""
        return {**super().state_dict(), "parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
