"""Verbalizers: every structure, on every kind of block; what is saved knows its backbone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
import torch

from support.families import tiny_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import (
    Backbone,
    Decoder,
    TapState,
    bind_decoder,
    capture_taps,
    weights_fingerprint,
)
from vlsi_cache.recipe import VerbalizerSection
from vlsi_cache.verbalizer import (
    VerbalizerBank,
    build_verbalizers,
    load_verbalizers,
    save_verbalizers,
    verbalizers_fingerprint,
)

STRUCTURES = get_args(VerbalizerSection.model_fields["structure"].annotation)
LEARNING = tuple(name for name in STRUCTURES if name != "logit_lens")
TAPS = (0, 2)


@pytest.fixture(scope="module")
def llama() -> Decoder:
    model = tiny_model("llama")
    model.requires_grad_(False)
    return bind_decoder(model)


def _states(decoder: Decoder) -> dict[int, TapState]:
    ids = torch.arange(3, 17).view(2, 7)
    with torch.no_grad(), capture_taps(decoder, TAPS) as recorder:
        decoder.backbone(input_ids=ids, use_cache=False)
    return dict(recorder.states)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_untrained_verbalizer_is_the_logit_lens(
    llama: Decoder, structure: str, depth: int
) -> None:
    bank = build_verbalizers(
        llama,
        TAPS,
        VerbalizerSection(structure=structure, depth=depth),
        seed=0,  # type: ignore[arg-type]
    )
    states, positions = _states(llama), torch.tensor([0, 5, 9])
    for tap, read in bank(states, positions).items():
        torch.testing.assert_close(read, states[tap].hidden.flatten(0, 1)[positions])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("structure", LEARNING)
@pytest.mark.parametrize("residual", [True, False])
def test_every_weight_of_a_structure_can_learn(
    llama: Decoder, structure: str, depth: int, residual: bool
) -> None:
    section = VerbalizerSection(structure=structure, depth=depth, residual=residual)  # type: ignore[arg-type]
    bank = build_verbalizers(llama, TAPS, section, seed=0)
    with torch.no_grad():
        for name, parameter in bank.named_parameters():
            # leave the zero start, at which inner maps have no gradient yet
            parameter.copy_(
                torch.ones(())
                if name.endswith(".gate") and not parameter.ndim
                else torch.randn_like(parameter) * 0.1
            )
    reads = bank(_states(llama), torch.arange(14))
    sum(read.square().mean() for read in reads.values()).backward()  # type: ignore[union-attr]
    still = [
        name
        for name, parameter in bank.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert still == ([] if residual else [n for n in still if n.endswith(".gate")])


@pytest.mark.parametrize("family", ["gpt2", "mamba", "gemma2", "qwen2_vl"])
@pytest.mark.parametrize("structure", ["ffn", "decoder"])
def test_structures_fit_families_of_other_blocks(family: str, structure: str) -> None:
    decoder = bind_decoder(tiny_model(family))
    bank = build_verbalizers(decoder, TAPS, VerbalizerSection(structure=structure), seed=0)  # type: ignore[arg-type]
    reads = bank(_states(decoder), torch.tensor([1, 2]))
    assert {tap: read.shape for tap, read in reads.items()} == dict.fromkeys(
        TAPS, (2, decoder.hidden_size)
    )


def test_a_bfloat16_backbone_is_read_by_float32_verbalizers() -> None:
    decoder = bind_decoder(tiny_model("llama").bfloat16())
    for structure in LEARNING:
        bank = build_verbalizers(decoder, TAPS, VerbalizerSection(structure=structure), seed=0)
        assert {parameter.dtype for parameter in bank.parameters()} == {torch.float32}
        assert {read.dtype for read in bank(_states(decoder), torch.tensor([0])).values()} == {
            torch.bfloat16
        }


def _saved(bank: VerbalizerBank, decoder: Decoder, folder: Path) -> str:
    backbone = Backbone("tiny", None, decoder, 0, weights_fingerprint(decoder.model))
    save_verbalizers(bank, folder, backbone)
    return backbone.fingerprint


@pytest.mark.parametrize("structure", STRUCTURES)
def test_saved_verbalizers_come_back_equal(llama: Decoder, structure: str, tmp_path: Path) -> None:
    bank = build_verbalizers(llama, TAPS, VerbalizerSection(structure=structure), seed=3)  # type: ignore[arg-type]
    fingerprint = _saved(bank, llama, tmp_path)
    loaded = load_verbalizers(tmp_path, llama, fingerprint=fingerprint)
    assert verbalizers_fingerprint(loaded) == verbalizers_fingerprint(bank)
    assert (loaded.taps, loaded.settings) == (bank.taps, bank.settings)


def test_verbalizers_of_another_backbone_are_refused(llama: Decoder, tmp_path: Path) -> None:
    bank = build_verbalizers(llama, TAPS, VerbalizerSection(), seed=0)
    _saved(bank, llama, tmp_path)
    with pytest.raises(ModelError, match="belong to another backbone"):
        load_verbalizers(tmp_path, llama, fingerprint="0" * 64)


def test_damaged_verbalizers_are_named(llama: Decoder, tmp_path: Path) -> None:
    bank = build_verbalizers(llama, TAPS, VerbalizerSection(), seed=0)
    fingerprint = _saved(bank, llama, tmp_path)
    weights = tmp_path / "verbalizers.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"verbalizers\.safetensors: .*cannot be used"):
        load_verbalizers(tmp_path, llama, fingerprint=fingerprint)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ModelError, match=r"verbalizers\.safetensors: .*it is not a file"):
        load_verbalizers(tmp_path, llama, fingerprint=fingerprint)
    (tmp_path / "verbalizers.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"verbalizers\.json: .*damaged \(backbone: "):
        load_verbalizers(tmp_path, llama, fingerprint=fingerprint)
    (tmp_path / "verbalizers.json").write_text("\0", encoding="utf-8")
    with pytest.raises(ModelError, match=r"verbalizers\.json: .*damaged \(Invalid JSON: "):
        load_verbalizers(tmp_path, llama, fingerprint=fingerprint)
    with pytest.raises(ModelError, match="no trained verbalizers here"):
        load_verbalizers(tmp_path / "absent", llama, fingerprint=fingerprint)
