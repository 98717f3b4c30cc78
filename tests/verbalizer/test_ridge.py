"""Stage one begins at the closed form: the linear map that is nearest to the last state."""

from __future__ import annotations

import json
import logging
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from support.families import tiny_model
from support.runs import make_recipe
from vlsi_cache import dump_teacher
from vlsi_cache.interruption import Interrupted, ask_to_stop
from vlsi_cache.models import Backbone, bind_decoder, run_backbone
from vlsi_cache.recipe import VerbalizerSection
from vlsi_cache.training.ridge import RidgeMoments
from vlsi_cache.verbalizer import build_verbalizers
from vlsi_cache.verbalizer.checkpoint import VerbalizerConfig
from vlsi_cache.verbalizer.ridge import start_by_ridge

TAPS = (0, 2)
STRUCTURES = ("mlp", "verb_ffn", "ffn", "decoder")


def _reference(state: torch.Tensor, last: torch.Tensor, penalty: float) -> torch.Tensor:
    """The same map by plain least squares: the penalty as rows that ask for 0."""
    size = state.shape[1]
    rows = torch.cat([state, math.sqrt(penalty) * torch.eye(size)]).double()
    asked = torch.cat([last - state, torch.zeros(size, size)]).double()
    return torch.linalg.lstsq(rows, asked).solution.T.float()


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_map_is_the_ridge_regression_whatever_the_batches(
    num_tokens: int, num_batches: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(num_tokens, 6, generator=generator)
    last = torch.randn(num_tokens, 6, generator=generator)
    moments = RidgeMoments(6, torch.device("cpu"))
    for part in torch.arange(num_tokens).chunk(num_batches):
        moments.add(state[part], last[part])
    penalty = 1e-2 * float((state.T @ state).diagonal().mean())
    found = moments.change()
    torch.testing.assert_close(found, _reference(state, last, penalty), rtol=1e-3, atol=1e-3)
    nearer = (state + state @ found.T - last).square().sum()
    assert nearer <= (state - last).square().sum() + 1e-4


def _backbone(name: str = "llama") -> Backbone:
    decoder = bind_decoder(tiny_model(name).eval())
    return Backbone("tiny", None, decoder, len(decoder.head.weight), "0" * 64)


def _collate(indices: list[int]) -> dict[str, Any]:
    ids = torch.stack([(torch.arange(7) * 5 + 11 * index) % 50 + 3 for index in indices])
    positions = torch.arange(ids.numel()).view_as(ids)[:, 2:6].flatten()
    return {
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "positions": positions,
        "labels": ids[:, 3:].flatten(),
        "token_samples": torch.arange(len(ids)).repeat_interleave(4),
    }


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("depth", [1, 2])
def test_every_structure_begins_at_the_same_reading(structure: Any, depth: Any) -> None:
    backbone = _backbone()
    section = VerbalizerSection(structure=structure, depth=depth)
    bank = build_verbalizers(backbone.decoder, TAPS, section, seed=0)
    start_by_ridge(bank, backbone, _collate, np.arange(24), batch_size=5)
    batch = _collate([30, 31])
    last = backbone.decoder.num_blocks - 1
    with torch.no_grad():
        states, _ = run_backbone(
            backbone.decoder, (*TAPS, last), batch["inputs"], batch["positions"]
        )
        read = bank(states, batch["positions"])
    for tap in TAPS:
        hidden = states[tap].hidden.flatten(0, 1)[batch["positions"]]
        change = bank.linear_change(tap)
        assert float(change.detach().abs().max()) > 0
        torch.testing.assert_close(read[tap], hidden + hidden @ change.T, rtol=1e-4, atol=1e-5)


def test_the_map_beside_a_structure_trains(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    dump_teacher(recipe)
    state = load_file(recipe.teacher_verbalizers_path / "verbalizers.safetensors")
    assert {f"linear.{tap}.weight" for tap in (1, 3, 5)} <= set(state)
    config = json.loads((recipe.teacher_verbalizers_path / "verbalizers.json").read_bytes())
    assert config["verbalizer"]["start"] == "ridge"


class _StopAfterFirstStep(logging.Handler):
    """Asks for a stop, as a signal would, when the first step is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("verbalization  step 1 of"):
            ask_to_stop(signal.SIGTERM, "here")


def test_a_resumed_stage_keeps_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for name in ("unbroken", "interrupted"):
        recipe = make_recipe(tmp_path / name)
        if name == "interrupted":
            handler = _StopAfterFirstStep()
            logging.getLogger("vlsi_cache").addHandler(handler)
            with caplog.at_level(logging.INFO, "vlsi_cache"), pytest.raises(Interrupted):
                dump_teacher(recipe)
            logging.getLogger("vlsi_cache").removeHandler(handler)
            assert list(recipe.teacher_verbalizers_path.glob("checkpoint-*"))
            assert "verbalizers begin at the closed form" in caplog.text
            caplog.clear()
        with caplog.at_level(logging.INFO, "vlsi_cache"):
            dump_teacher(recipe)
        found.append(load_file(recipe.teacher_verbalizers_path / "verbalizers.safetensors"))
    assert "verbalizers begin at the closed form" not in caplog.text
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_verbalizers_that_name_no_start_began_as_the_logit_lens() -> None:
    old = {
        "backbone": "tiny",
        "backbone_fingerprint": "0" * 64,
        "hidden_size": 8,
        "taps": [1],
        "verbalizer": {"structure": "mlp", "depth": 1, "residual": True},
    }
    assert VerbalizerConfig.model_validate(old).verbalizer.start == "logit_lens"


def test_without_a_sound_token_the_start_is_the_logit_lens() -> None:
    assert not RidgeMoments(6, torch.device("cpu")).change().any()


def test_without_a_residual_there_is_no_closed_form() -> None:
    section = VerbalizerSection(residual=False)
    assert not section.starts_by_ridge
    assert not build_verbalizers(_backbone().decoder, TAPS, section, seed=0).linear
