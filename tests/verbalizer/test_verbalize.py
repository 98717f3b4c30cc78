"""Stage one warns about verbalizers that learnt nothing from their layer."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from support.runs import make_recipe
from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.student import train_student
from vlsi_cache.verbalizer import Verbalization, build_verbalizers


def _verbalized(folder: Path, **schedule: Any) -> Recipe:
    recipe = make_recipe(folder, stages=["verbalization"])
    raw = recipe.model_dump(mode="json")
    raw["student"]["verbalization"] |= schedule
    recipe = recipe_from_mapping(raw, where="test")
    train_student(recipe)
    return recipe


def test_verbalizers_no_better_than_frequencies_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = _verbalized(tmp_path, learning_rate=1e-6, final_learning_rate=1e-6)
    assert f"{recipe.student_verbalizers_path}: verbalizers end no better" in caplog.text
    for tap in recipe.student.taps or ():
        assert f"{tap} (" in caplog.text
    assert "student.verbalization.steps" in caplog.text


@pytest.mark.parametrize(
    "schedule", [{"steps": 150, "log_every": 10}, {"steps": 1, "target": "final"}]
)
def test_trained_ones_and_those_of_another_target_are_not(
    schedule: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _verbalized(tmp_path, **schedule)
    assert "no better" not in caplog.text


def test_frequencies_are_those_of_the_batches_before(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    student = load_backbone(recipe.student, "student", torch.device("cpu"))
    bank = build_verbalizers(student.decoder, (1,), recipe.student.verbalizer, seed=0)
    module = Verbalization(student.decoder, bank, student.vocab_size, "label")
    data = IndexedConversations(load_data(recipe.data))
    collate = TokenBatches(encoder_for(student, recipe.data))
    seen: Counter[int] = Counter()
    for index in range(len(data)):
        batch = collate([data[index]])
        module(**batch)
        total, count = module.collect()["frequencies"]
        kinds, number = max(len(seen), 1), seen.total()
        nats = [
            -math.log((seen[label] + kinds / student.vocab_size) / (number + kinds))
            for label in batch["labels"].tolist()
        ]
        assert count == 1
        assert total.item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)
        seen.update(batch["labels"].tolist())
