"""The divergence on held-out images, against a slower way to the same figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlsi_cache.data import (
    BatchEncoder,
    load_conversations,
    model_inputs,
    response_positions,
)
from vlsi_cache.demo.dataset import DemoData
from vlsi_cache.demo.scores.divergence import held_out_divergence


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
