"""What the headers of a checkpoint say against its configuration, before a value is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.families import tiny_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_config, load_model
from vlsi_cache.models.loading.loading import preview_weights

WEIGHTS = "model.safetensors"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama", num_layers=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _change(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _configure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _preview(folder: Path) -> str:
    """The refusal of the headers."""
    with pytest.raises(ModelError) as caught:
        preview_weights(str(folder), load_config(str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 weight is missing .*found model.norm.weight"),
        (
            lambda w: [w.pop(key) for key in list(w) if ".layers.1." in key],
            r"9 weights are missing from the checkpoint; found model.layers.1.*, .*, .* …",
        ),
        (lambda w: w.update({"model.norm.weight": torch.ones(7)}), "1 weight is of another shape"),
        (
            lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:-9].clone()}),
            r"found lm_head.weight \[151, 32\] in place of \[160, 32\]",
        ),
        (
            lambda w: [w.update({f"module.{key}": w.pop(key)}) for key in list(w)],
            "The checkpoint has them under names that begin with 'module.': take that out",
        ),
    ],
)
def test_headers_say_what_loading_would_say(
    change: Callable[[Weights], object], words: str, folder: Path
) -> None:
    _change(folder, change)
    line = _preview(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(folder))
    assert str(caught.value) == line


def test_a_configuration_of_more_blocks_than_there_are_is_found(folder: Path) -> None:
    _configure(folder, num_hidden_layers=3)
    assert "9 weights are missing from the checkpoint; found model.layers.2." in _preview(folder)


def test_weights_that_the_model_does_not_have_are_reported(folder: Path) -> None:
    _change(folder, lambda weights: weights.update({"extra.weight": torch.ones(2)}))
    report = preview_weights(str(folder), load_config(str(folder)))
    assert report is not None
    assert report.unread == ("extra.weight",)


def test_a_tied_head_with_values_of_its_own_is_found_without_the_rest(folder: Path) -> None:
    _configure(folder, tie_word_embeddings=True)
    assert "the head and the embedding differ" in _preview(folder)
    with pytest.raises(ModelError, match="the head and the embedding differ"):
        load_model(str(folder))
    _change(
        folder,
        lambda weights: weights.update(
            {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        ),
    )
    preview_weights(str(folder), load_config(str(folder)))
    load_model(str(folder))


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_a_head_that_is_stored_below_its_part_is_compared_too(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    rows = load_file(tmp_path / WEIGHTS)
    (embedding,) = (key for key in rows if key.endswith("embed_tokens.weight"))
    _change(
        tmp_path,
        lambda weights: weights.update({"language_model.lm_head.weight": weights[embedding] + 1}),
    )
    _change(tmp_path, lambda weights: weights.pop("lm_head.weight", None))
    _configure(tmp_path, tie_word_embeddings=True)
    assert "the head and the embedding differ" in _preview(tmp_path)
    with pytest.raises(ModelError, match="the head and the embedding differ"):
        load_model(str(tmp_path))


def test_an_untied_head_that_is_not_stored_says_how_to_tie_it(folder: Path) -> None:
    _change(folder, lambda weights: weights.pop("lm_head.weight"))
    assert "Set tie_word_embeddings: true in config.json" in _preview(folder)
    _configure(folder, tie_word_embeddings=True)
    preview_weights(str(folder), load_config(str(folder)))


def _small(weights: Weights) -> None:
    for key in list(weights):
        if "_proj" in key:
            weights[key] = weights[key].to(torch.float8_e4m3fn)


def test_weights_of_fp8_without_their_scales_are_refused(folder: Path) -> None:
    _change(folder, _small)
    _configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    line = _preview(folder)
    assert "the weights are FP8, and their scales are missing from the checkpoint" in line
    assert "since quant_method is fp8" in line
    _change(
        folder,
        lambda weights: weights.update(
            {f"{key}_scale_inv": torch.ones(2, 2) for key in list(weights) if "_proj" in key}
        ),
    )
    assert preview_weights(str(folder), load_config(str(folder))) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_without_a_configuration_are_refused(
    dtype: torch.dtype, folder: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _change(
        folder,
        lambda weights: weights.update(
            {name: weights[name].to(dtype), f"{name}_scale_inv": torch.ones(1)}
        ),
    )
    assert "the weights are quantised, and config.json names no quantization" in _preview(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_floating_dtype_are_whole(dtype: torch.dtype, folder: Path) -> None:
    _change(folder, lambda weights: weights.update({k: w.to(dtype) for k, w in weights.items()}))
    report = preview_weights(str(folder), load_config(str(folder)))
    assert report is not None
    assert report.missing == report.mismatched == report.unread == ()


def test_weights_under_names_that_are_not_read_are_listed(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")
    line = _preview(folder)
    assert "names that transformers does not read" in line
    assert "found consolidated.safetensors. Copy the index too" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "index.json: the index of the weights names no files"),
        ('{"weight_map": []}', "index.json: the index of the weights names no files"),
        ('{"weight_map": {"a": 1}}', "index.json: the index of the weights names no files"),
        ("[]", "index.json: the file holds no JSON object"),
        ("", "index.json: the file is not JSON, but an empty file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "the index of the weights has no metadata"),
        (
            '{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}',
            "1 shard of the weights is missing",
        ),
    ],
)
def test_an_index_that_names_nothing_is_refused(text: str, words: str, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(text)
    assert words in _preview(folder)
