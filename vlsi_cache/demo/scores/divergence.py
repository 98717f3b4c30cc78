"""The exact divergence from the teacher on held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_conversations
from vlsi_cache.models import load_backbone, run_backbone
from vlsi_cache.objectives import dense_divergence
from vlsi_cache.recipe import DataSection, ModelSection

__all__ = ["held_out_divergence"]

_BATCH = 128


@torch.no_grad()
def held_out_divergence(
    teacher_folder: Path, student_folder: Path, data: Path, *, limit: int
) -> float:
    """Return the mean KL(teacher ‖ student) at the output, in nats per response token.

    It is exact: both models give whole distributions.
    """
    device = torch.device("cpu")
    teacher, student = (
        load_backbone(ModelSection(model=str(folder)), role, device)
        for role, folder in (("teacher", teacher_folder), ("student", student_folder))
    )
    section = DataSection(path=str(data), limit=limit)
    loader: DataLoader[Any] = DataLoader(
        IndexedConversations(load_conversations(data, limit=limit)),
        batch_size=_BATCH,
        collate_fn=TokenBatches(encoder_for(teacher, section)),
    )
    total = 0.0
    num_tokens = 0
    for batch in loader:
        features = [
            run_backbone(backbone.decoder, (), batch["inputs"], batch["positions"])[1]
            for backbone in (student, teacher)
        ]
        # Both heads may have padding of their own: the teacher's vocabulary counts.
        student_head = student.decoder.head.real_rows(teacher.vocab_size)
        divergence = dense_divergence(features[0], student_head, features[1], teacher.head)
        total += divergence.sum().item()
        num_tokens += len(divergence)
    return total / num_tokens
