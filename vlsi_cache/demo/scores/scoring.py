"""Scores on held-out images: accuracy by generation, divergence to the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlsi_cache.data import (
    Conversation,
    ImagePart,
    ImageRef,
    IndexedConversations,
    Message,
    TextPart,
    TokenBatches,
    encoder_for,
    load_conversations,
)
from vlsi_cache.demo.dataset import Question
from vlsi_cache.evaluation.answers import Answerer, is_right
from vlsi_cache.models import load_backbone, run_backbone
from vlsi_cache.objectives import dense_divergence
from vlsi_cache.recipe import DataSection, ModelSection

__all__ = ["count_right_answers", "held_out_divergence"]

logger = logging.getLogger(__name__)

_BATCH = 128
_LONGEST_ANSWER = 4


def count_right_answers(model_folder: Path, questions: Sequence[Question]) -> int:
    """Count the questions that a model answers rightly by greedy generation, one turn each.

    These are the answers, and the comparison, of ``vlsi-cache evaluate --generate``.

    Args:
        model_folder: Ordinary checkpoint with its processor.
        questions: Questions with their images.
    """
    section = ModelSection(model=str(model_folder))
    model = load_backbone(section, "student", torch.device("cpu"))
    answerer = Answerer(model, encoder_for(model, DataSection()), _LONGEST_ANSWER)
    asked = [_conversation(number, question) for number, question in enumerate(questions)]
    starts = range(0, len(asked), _BATCH)
    answers = [one for start in starts for one in answerer(asked[start : start + _BATCH])]
    return sum(map(is_right, answers))


def _conversation(number: int, question: Question) -> Conversation:
    image = ImagePart(ImageRef(path=question.image))
    messages = (
        Message("user", (image, TextPart(question.text))),
        Message("assistant", (TextPart(question.answer),)),
    )
    return Conversation(str(number), messages, origin=f"question {number}")


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
