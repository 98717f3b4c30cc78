"""Stage three, fine-tuning: every parameter, cross-entropy, an ordinary checkpoint out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, TrainerCallback

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for
from vlsi_cache.models import Backbone, Decoder, run_backbone
from vlsi_cache.objectives import linear_cross_entropy
from vlsi_cache.recipe import FinetuningSection, Recipe
from vlsi_cache.training.checkpoint import save_checkpoint
from vlsi_cache.training.folder import StageFolder
from vlsi_cache.training.processes import on_main_process
from vlsi_cache.training.trainer import StageModule, discard_checkpoints, run_training

__all__ = ["Finetuning", "finetune"]


class Finetuning(StageModule):
    """Cross-entropy of the student's own output.

    Args:
        student: the student.
        settings: which parts train.
    """

    accepts_loss_kwargs = True

    def __init__(self, student: Backbone, settings: FinetuningSection) -> None:
        super().__init__()
        self.model = student.decoder.model
        self.decoder = student.decoder
        self.vocab_size = student.vocab_size
        self.model.requires_grad_(True)
        if not settings.train_vision_tower:
            _freeze_outside_decoder(student.decoder)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        labels: Tensor,
        token_samples: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy over response tokens, nats.

        Args:
            inputs: the student's.
            positions: ``[N]``, flat.
            labels: ``[N]``.
            token_samples: unused, part of every batch.
            num_items_in_batch: response tokens of the whole accumulated batch; N by default.
        """
        decoder = self.decoder
        _, features = run_backbone(decoder, (), inputs, positions)
        count = num_items_in_batch if num_items_in_batch is not None else len(labels)
        loss = linear_cross_entropy(features, decoder.head.real_rows(self.vocab_size), labels)
        return {"loss": loss / count}


def finetune(
    student: Backbone,
    dataset: IndexedConversations,
    recipe: Recipe,
    folder: Path,
    *,
    original: PreTrainedConfig,
    inherited: Mapping[str, Any],
    autocast: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train the whole student and save it under its own architecture.

    Args:
        student: the student, merged after interaction.
        dataset: the conversations.
        recipe: settings.
        folder: of the stage.
        original: config of the untouched student; what is saved has it again, dtype included.
        inherited: settings of everything this stage builds on.
        autocast: bfloat16 autocast.
        callbacks: of the Trainer.

    Returns:
        Folder of the finished student.

    Raises:
        StageError: the folder holds another run's stage.
    """
    settings, result = recipe.finetuning, recipe.student_path
    stage = StageFolder(folder, {**inherited, "finetuning": settings.decisive()})
    if not stage.begin(result / "config.json"):
        return result
    module = Finetuning(student, settings)
    model = student.decoder.model
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    run_training(
        "finetuning",
        module,
        dataset,
        TokenBatches(encoder_for(student, recipe.data)),
        settings,
        folder,
        device=student.device,
        autocast=autocast,
        seed=recipe.seed,
        callbacks=callbacks,
    )
    model.to(dtype=original.dtype or torch.float32)  # type: ignore[call-arg]
    model.config = original
    save_checkpoint(model, student.name, result)
    stage.finish()
    on_main_process(lambda: discard_checkpoints(folder))
    return result


def _freeze_outside_decoder(decoder: Decoder) -> None:
    decoder.model.requires_grad_(False)
    decoder.body.requires_grad_(True)
    decoder.head.weight.requires_grad_(True)
    if decoder.head.bias is not None:
        decoder.head.bias.requires_grad_(True)
