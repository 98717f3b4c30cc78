"""Scores on held-out images: accuracy by generation, divergence to the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_conversations
from vlsi_cache.demo.dataset import Question
from vlsi_cache.models import load_backbone, run_backbone
from vlsi_cache.objectives import dense_divergence
from vlsi_cache.recipe import DataSection, ModelSection

__all__ = ["count_right_answers", "held_out_divergence"]

logger = logging.getLogger(__name__)

_BATCH = 128
_LONGEST_ANSWER = 4


@torch.no_grad()
def count_right_answers(model_folder: Path, questions: Sequence[Question]) -> int:
    """Count the questions that a model answers rightly by greedy generation, one turn each.

    Args:
        model_folder: Ordinary checkpoint with its processor, loaded with plain
            ``from_pretrained``.
        questions: Questions with their images.
    """
    processor: Any = AutoProcessor.from_pretrained(model_folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(model_folder).eval()
    processor.tokenizer.padding_side = "left"
    right = 0
    for start in range(0, len(questions), _BATCH):
        asked = questions[start : start + _BATCH]
        inputs = processor.apply_chat_template(
            [_prompt(question) for question in asked],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        )
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=_LONGEST_ANSWER)
        answers = processor.batch_decode(
            generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            answer.strip() == question.answer
            for answer, question in zip(answers, asked, strict=True)
        )
    return right


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


def _prompt(question: Question) -> list[dict[str, Any]]:
    with Image.open(question.image) as image:
        picture = image.convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question.text}]
    return [{"role": "user", "content": content}]
