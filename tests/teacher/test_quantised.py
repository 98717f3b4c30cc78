"""Quantised teachers: quantised on loading or as checkpoints, and what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.runs import make_recipe
from vlsi_cache.errors import VlsiCacheError
from vlsi_cache.recipe import Recipe, recipe_from_mapping
from vlsi_cache.store import open_cache
from vlsi_cache.teacher import dump_teacher

INT8 = {"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def _with(recipe: Recipe, **teacher: Any) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw["teacher"] |= teacher
    return recipe_from_mapping(raw, where="test")


def _loading(recipe: Recipe) -> dict[str, Any]:
    return open_cache(recipe.cache_path).manifest.teacher.loading


def test_a_teacher_is_quantised_on_loading_and_the_manifest_says_so(tmp_path: Path) -> None:
    plain = make_recipe(tmp_path / "plain", num_samples=6)
    dump_teacher(plain)
    assert _loading(plain) == {}
    int8 = make_recipe(tmp_path / "int8", num_samples=6)
    quantised = _with(int8, quantization=INT8)
    dump_teacher(quantised)
    named = _loading(quantised)["quantization"]
    assert named["quant_method"] == "torchao"
    assert named["quant_type"]["default"]["_type"] == "Int8WeightOnlyConfig"
    manifests = [open_cache(one.cache_path).manifest for one in (plain, quantised)]
    fingerprints = {manifest.teacher.weights_fingerprint for manifest in manifests}
    assert len(fingerprints) == 2
    first, second = (open_cache(one.cache_path) for one in (plain, quantised))
    records = [(first[index].distribution, second[index].distribution) for index in range(6)]
    assert any((one.token_ids != other.token_ids).any() for one, other in records)
    # int8 rows keep the model's output close: entropies are stored in steps of an eighth
    assert all(abs(one.entropy - other.entropy)[:, -1].max() <= 0.25 for one, other in records)
    with pytest.raises(VlsiCacheError, match=r"made with other settings|teacher\.loading"):
        dump_teacher(_with(int8, quantization={}))


def test_a_checkpoint_of_int8_weights_is_the_teacher_that_was_quantised_on_loading(
    tmp_path: Path,
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    recipe = make_recipe(tmp_path, num_samples=3)
    dump_teacher(_with(recipe, quantization=INT8))
    folder = tmp_path / "teacher"
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    model.save_pretrained(folder)
    again = recipe.model_copy(update={"output": tmp_path / "again"})
    dump_teacher(again)
    manifests = [open_cache(one.cache_path).manifest for one in (recipe, again)]
    assert manifests[0].teacher == manifests[1].teacher


def _in_fp8(folder: Path) -> None:
    """Write the blocks' weights as fine-grained FP8 checkpoints have them: with scales of tiles."""
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "_proj.weight" in name]:
        weight = state[name]
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        state[name] = (weight / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": FP8}))


def test_an_fp8_checkpoint_is_read(tmp_path: Path) -> None:
    """Without a GPU transformers turns it into bfloat16, and says so."""
    recipe = make_recipe(tmp_path, num_samples=3)
    _in_fp8(tmp_path / "teacher")
    dump_teacher(recipe)
    assert _loading(recipe)["quantization"]["quant_method"] == "fp8"


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"load_in_4bit": True}, r"bitsandbytes.*\. pip install bitsandbytes"),
        ({"quant_method": "hqq"}, r"quantisation hqq: .*\. pip install hqq"),
        ({"quant_method": "nothing"}, "Unknown quantization type, got nothing"),
        ({"bits": 4}, "no `quant_method`"),
        ({"load_in_8bit": True, "load_in_8bits": True}, "unknown options.*found load_in_8bits"),
        ({**INT8, "quant_type": "Int9"}, "quantisation torchao: .*Int9"),
        ({**INT8, "quant_type": {"Int8WeightOnlyConfig": {"groups": 2}}}, "torchao: .*groups"),
        ({**INT8, "modules": []}, "unknown options.*found modules"),
    ],
    ids=str,
)
def test_a_quantisation_that_cannot_be_had_is_refused_in_one_line(
    quantization: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recipe = _with(make_recipe(tmp_path, num_samples=2), quantization=quantization)
    for weights in (tmp_path / "teacher").glob("*.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(VlsiCacheError, match=said):
        dump_teacher(recipe)


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, r"quantisation awq: .*\. pip install gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, r"\. pip install optimum gptqmodel"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            r"\. pip install compressed-tensors",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_whose_package_is_absent_is_refused_in_one_line(
    checkpoint: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    path = tmp_path / "teacher" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": checkpoint}))
    with pytest.raises(VlsiCacheError, match=said):
        dump_teacher(recipe)
    with pytest.raises(VlsiCacheError, match="the checkpoint is quantised already"):
        dump_teacher(_with(recipe, quantization={"load_in_4bit": True}))
