"""A teacher that is spread over devices, or offloaded: the same cache, bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import ModelError, VlsiCacheError
from vlsi_cache.models import device_of, load_backbone
from vlsi_cache.recipe import Recipe, TeacherSection, recipe_from_mapping
from vlsi_cache.teacher import dump_teacher

OFFLOADED = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    **{f"model.layers.{block}": "disk" for block in range(1, 8)},
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
IMAGES = {
    "model.visual": "disk",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers": "disk",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def _files(cache: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(cache).rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def _again(recipe: Recipe, folder: Path, **teacher: Any) -> Recipe:
    """The same dump with other settings of the teacher, into a new folder."""
    raw = recipe.model_dump(mode="json")
    raw["teacher"] |= teacher
    raw["output"], raw["cache"]["path"] = str(folder), None
    return recipe_from_mapping(raw, where="test")


@pytest.fixture(scope="module", params=[False, True], ids=["text", "images"])
def dumped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("plain"), num_samples=7, images=request.param)
    dump_teacher(recipe)
    return recipe


def test_the_cache_of_an_offloaded_teacher_is_that_of_a_plain_one(
    dumped: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The verbalizers are trained beside the offloaded blocks, and the head comes back."""
    images = "visual" in str(_part_names(dumped))
    places = IMAGES if images else OFFLOADED
    with caplog.at_level(logging.INFO):
        dump_teacher(_again(dumped, tmp_path, device_map=places))
    assert _files(tmp_path / "cache") == _files(dumped.cache_path)
    trained = "teacher-verbalizers/verbalizers.safetensors"
    assert (tmp_path / trained).read_bytes() == (dumped.output / trained).read_bytes()
    assert "parts of the model are offloaded, and are fetched for every batch" in caplog.text
    assert ("the head is kept on cpu" in caplog.text) == (not images)


def _part_names(recipe: Recipe) -> set[str]:
    backbone = load_backbone(recipe.teacher, "teacher", torch.device("cpu"))
    return {name for name, _ in backbone.decoder.model.named_modules()}


@pytest.mark.parametrize("places", [{"": "disk"}, {"": "cpu"}, "cpu", "auto"], ids=str)
def test_every_way_to_say_where_parts_lie_reads_the_same_weights(
    places: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path / "plain", num_samples=3, cache={"k": 4, "m": 2})
    plain = load_backbone(recipe.teacher, "teacher", torch.device("cpu"))
    section = recipe.teacher.model_copy(update={"device_map": places})
    spread = load_backbone(section, "teacher", torch.device("cpu"))
    assert spread.fingerprint == plain.fingerprint
    assert spread.identity() == plain.identity()
    assert torch.equal(spread.head.weight, plain.head.weight)
    assert spread.head.weight.data_ptr() == _output(spread).weight.data_ptr()
    assert spread.device == device_of(spread.decoder.blocks[3]) == torch.device("cpu")


def test_a_tied_head_is_brought_back_too(tmp_path: Path) -> None:
    from support.families import tiny_model
    from support.processors import text_tokenizer

    tokenizer = text_tokenizer("chatml")
    tied = {"tie_word_embeddings": True}
    tiny_model("llama", vocab_size=len(tokenizer), changes=tied).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    section = TeacherSection(model=str(tmp_path))
    sections = [section, section.model_copy(update={"device_map": {"": "disk"}})]
    plain, spread = (load_backbone(one, "teacher", torch.device("cpu")) for one in sections)
    assert spread.fingerprint == plain.fingerprint
    assert torch.equal(spread.head.weight, plain.head.weight)


def _output(backbone: Any) -> Any:
    return backbone.decoder.model.get_output_embeddings()


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"device_map": {"model": "cpu"}}, "leaves out parts of the model; found lm_head.weight"),
        (
            {"device_map": {"": "cpu", "head": 0}},
            "there is no such device on this machine; expected .*found 0",
        ),
        ({"device_map": {"": "cpu", "head": "cpu"}}, "names no part of the model; found head"),
        ({"device_map": {"": "cpu", "model": "disk"}}, "found model inside the whole"),
        (
            {"device_map": "cuda:0"},
            "there is no such device on this machine; expected cpu or disk; found cuda:0",
        ),
        ({"device_map": "evenly"}, "there is no such device on this machine; .*found evenly"),
        ({"device_map": "meta"}, "there is no such device on this machine; .*found meta"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "not a size.*found much"),
        ({"device_map": "auto", "max_memory": {"0": 1}}, "max_memory: there is no such device"),
        ({"attn_implementation": "flash_attention_9"}, "cannot be made with these settings"),
        ({"attn_implementation": "kernels-community/x"}, "pip install kernels"),
        ({"use_kernels": True}, "found use_kernels. pip install kernels"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_said_before_anything_is_loaded(
    teacher: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    for weights in (tmp_path / "teacher").glob("*.safetensors"):
        weights.write_bytes(b"")  # loading would fail, and say something else
    with pytest.raises(VlsiCacheError, match=said):
        dump_teacher(_again(recipe, tmp_path / "run", **teacher))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"max_memory": {0: "1GiB"}}, "teacher.max_memory: needs device_map: auto, balanced"),
        ({"max_memory": {0: 5}, "device_map": {"": 0}}, "teacher.max_memory: needs device_map"),
        (
            {"device_map": "auto", "tensor_parallel": 2},
            "device_map: contradicts teacher.tensor_parallel",
        ),
        ({"device_map": -1}, "teacher.device_map"),
        ({"tensor_parallel": 0}, "teacher.tensor_parallel"),
        (
            {"device_map": "auto", "verbalizer": {"structure": "decoder"}},
            "teacher.verbalizer.structure: decoder copies a block",
        ),
        (
            {"verbalization": {"taps_at_once": 2, "max_grad_norm": 1.0}},
            "taps_at_once: needs max_grad_norm: 0",
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_one_another_are_refused(
    teacher: dict[str, Any], said: str
) -> None:
    with pytest.raises(VlsiCacheError, match=said):
        recipe_from_mapping({"teacher": teacher}, where="test")


def test_a_student_is_not_spread_by_a_device_map() -> None:
    with pytest.raises(VlsiCacheError, match=r"student\.device_map"):
        recipe_from_mapping({"student": {"device_map": "auto"}}, where="test")


def test_flags_say_where_parts_lie(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    arguments = ["dump-teacher", "--teacher", str(recipe.teacher.model), "--data"]
    arguments += [str(recipe.data.path), "--output", str(tmp_path / "run"), "--device", "cpu"]
    flags = ["--device-map", "model=cpu,lm_head=9", "--max-memory", "0=1GiB"]
    result = CliRunner().invoke(cli, [*arguments, *flags])
    assert "--max-memory: needs device_map" in result.stderr
    result = CliRunner().invoke(cli, [*arguments, *flags[:2]])
    assert "teacher.device_map: there is no such device" in result.stderr
    result = CliRunner().invoke(cli, [*arguments, "--device-map", "auto", "--max-memory", "0"])
    assert "expected pairs such as 0=70GiB,cpu=200GiB" in result.stderr


def test_an_adapter_is_not_merged_into_weights_that_lie_elsewhere(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from support.runs import save_text_model

    base = save_text_model(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    section = TeacherSection(model=str(tmp_path / "adapter"), device_map={"": "disk"})
    with pytest.raises(ModelError, match=r"merged into whole, unquantised .*merge_and_unload"):
        load_backbone(section, "teacher", torch.device("cpu"))
    there = section.model_copy(update={"device_map": {"": "cpu"}})
    load_backbone(there, "teacher", torch.device("cpu"))
