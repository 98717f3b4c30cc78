"""Training from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlsi_cache.demo.dataset import DemoData
from vlsi_cache.demo.training import train_from_scratch
from vlsi_cache.errors import StageError


def test_training_from_scratch_gives_an_ordinary_checkpoint_once(
    untrained: tuple[Path, Path], demo_data: DemoData, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2, "seed": 0}
    result = train_from_scratch(untrained[0], demo_data.train, tmp_path / "teacher", **settings)
    AutoModelForImageTextToText.from_pretrained(result)
    AutoProcessor.from_pretrained(result)
    weights = result / "model.safetensors"
    start = load_file(untrained[0] / "model.safetensors")
    trained = load_file(weights)
    assert start.keys() == trained.keys()
    assert not any(torch.equal(trained[name], weight) for name, weight in start.items())
    assert not list((tmp_path / "teacher").glob("checkpoint-*"))

    written = weights.stat().st_mtime_ns
    again = train_from_scratch(untrained[0], demo_data.train, tmp_path / "teacher", **settings)
    assert again == result
    assert weights.stat().st_mtime_ns == written

    with pytest.raises(StageError, match="steps"):
        train_from_scratch(
            untrained[0], demo_data.train, tmp_path / "teacher", **{**settings, "steps": 3}
        )
