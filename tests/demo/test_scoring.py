"""Scores on held-out images, against slower ways to the same figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlsi_cache.data import (
    BatchEncoder,
    load_conversations,
    model_inputs,
    response_positions,
)
from vlsi_cache.demo.dataset import DemoData, Question
from vlsi_cache.demo.scores.scoring import count_right_answers, held_out_divergence
from vlsi_cache.demo.training import train_from_scratch


def _answer(model: Any, processor: Any, question: Question) -> str:
    """What the model says to one question by itself: nothing is padded."""
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    with Image.open(question.image) as image:
        inputs = processor(text=text, images=image.convert("RGB"), return_tensors="pt")
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    written = generated[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(written, skip_special_tokens=True)).strip()


def test_answers_in_a_batch_are_those_given_one_by_one(
    untrained: tuple[Path, Path],
    demo_data: DemoData,
    questions: list[Question],
    tmp_path: Path,
) -> None:
    # so little training makes it answer, if not rightly: an untrained model says nothing at all
    taught = train_from_scratch(
        untrained[0], demo_data.train, tmp_path, steps=40, batch_size=8, seed=0
    )
    model = AutoModelForImageTextToText.from_pretrained(taught).eval()
    processor = AutoProcessor.from_pretrained(taught)
    asked = questions[:12]
    assert len({len(one.text.split()) for one in asked}) > 1  # shorter prompts are padded
    answered = [replace(one, answer=_answer(model, processor, one)) for one in asked]
    answered = [one for one in answered if one.answer]
    assert len({one.answer for one in answered}) > 1
    assert count_right_answers(taught, answered) == len(answered)
    answered[3] = replace(answered[3], answer="something else")
    assert count_right_answers(taught, answered) == len(answered) - 1


def test_a_model_does_not_diverge_from_itself(
    untrained: tuple[Path, Path], demo_data: DemoData
) -> None:
    divergence = held_out_divergence(untrained[0], untrained[0], demo_data.heldout, limit=8)
    assert divergence == pytest.approx(0, abs=1e-6)


def test_divergence_is_that_of_the_models_whole_distributions(
    untrained: tuple[Path, Path], demo_data: DemoData
) -> None:
    processor: Any = AutoProcessor.from_pretrained(untrained[0])
    conversations = list(load_conversations(demo_data.heldout, limit=6))
    batch = BatchEncoder(processor, max_length=None)(conversations)
    positions = response_positions(batch["response_mask"])
    log_probs = []
    for folder in untrained:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = model(**model_inputs(batch)).logits.flatten(0, 1)[positions]
        log_probs.append(F.log_softmax(logits[:, : len(processor.tokenizer)], dim=-1))
    teacher, student = log_probs
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean().item()
    found = held_out_divergence(untrained[0], untrained[1], demo_data.heldout, limit=6)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 0.01
