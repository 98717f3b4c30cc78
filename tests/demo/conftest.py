"""A handful of easy-VQA's images, and a small untrained model of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2VLProcessor

from vlsi_cache.demo.dataset import DemoData, Question, load_questions, write_data
from vlsi_cache.demo.models import build_processor, save_untrained

NUM_TRAIN = 6
NUM_HELDOUT = 4


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    folder = tmp_path_factory.mktemp("data")
    return write_data(folder, num_train=NUM_TRAIN, num_heldout=NUM_HELDOUT, seed=0)


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    """Questions about the held-out images."""
    return load_questions("test", NUM_HELDOUT)


@pytest.fixture(scope="session")
def processor() -> Qwen2VLProcessor:
    asked = load_questions("train", 500)
    return build_processor(text for one in asked for text in (one.text, one.answer))


@pytest.fixture(scope="session")
def untrained(
    tmp_path_factory: pytest.TempPathFactory, processor: Qwen2VLProcessor
) -> tuple[Path, Path]:
    """Two models of the same shape and other weights."""
    folder = tmp_path_factory.mktemp("untrained")
    first, second = (
        save_untrained(folder / str(seed), processor, num_blocks=2, hidden_size=48, seed=seed)
        for seed in (1, 2)
    )
    return first, second
