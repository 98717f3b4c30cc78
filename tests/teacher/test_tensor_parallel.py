"""Processes that hold one teacher together, on real gloo: one process's cache, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from support.families import tiny_model
from support.processors import MODEL_CHANGES, image_processor_for, text_tokenizer
from support.ranks import RankServer
from support.runs import changed, make_recipe
from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.manifest import find_manifest_differences
from vlsi_cache.recipe import Recipe
from vlsi_cache.store import Cache, open_cache
from vlsi_cache.teacher import dump_teacher

HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "head_dim": 8}


def _task(recipe: Recipe, folder: Path, num_processes: int, **teacher: Any) -> dict[str, Any]:
    raw = recipe.model_dump(mode="json")
    raw["teacher"] |= {"tensor_parallel": num_processes, **teacher}
    raw["output"], raw["cache"]["path"] = str(folder), None
    folder.mkdir(exist_ok=True)
    return {"folder": folder, "num_ranks": num_processes, "num_samples": 0, "dump": raw}


def _agree(cache: Cache, alone: Cache) -> None:
    """The same tokens and uniforms, and numbers that differ by rounding alone."""
    assert not find_manifest_differences(cache.manifest, alone.manifest)
    same = total = 0
    turned = bits = 0
    for index in range(alone.manifest.dataset.num_samples):
        found, wanted = cache[index], alone[index]
        assert (found.sample_id, found.key) == (wanted.sample_id, wanted.key)
        np.testing.assert_array_equal(found.response_ids, wanted.response_ids)
        mine, other = found.distribution, wanted.distribution
        # both are rounded to steps by the same uniforms, so they differ by one step at most
        np.testing.assert_allclose(mine.entropy, other.entropy, rtol=0, atol=1.01 * ENTROPY_STEP)
        np.testing.assert_allclose(
            mine.label_log_prob, other.label_log_prob, rtol=0, atol=1.01 * LABEL_STEP
        )
        if wanted.hidden_signs is not None:
            assert found.hidden_signs is not None
            differing = np.bitwise_count(found.hidden_signs ^ wanted.hidden_signs)
            turned += int(differing.sum())
            bits += 8 * differing.size
        same += int((mine.token_ids == other.token_ids).sum())
        total += mine.token_ids.size
    # a pointer that falls on the edge between two tokens may draw the neighbour
    assert same >= 0.99 * total
    assert turned <= 0.01 * bits


def test_two_processes_train_and_record_what_one_does(server: RankServer, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=11, cache={"k": 2, "m": 3})
    dump_teacher(recipe)
    assert server.run(**_task(recipe, tmp_path / "two", 2)) == [0, 0]
    trained = _trained(tmp_path / "two")
    for name, weights in _trained(recipe.output).items():
        # AdamW divides by the gradient's own size, which magnifies the rounding of small gradients
        np.testing.assert_allclose(trained[name], weights, rtol=0, atol=1e-5)
    given = {"verbalizers": str(recipe.teacher_verbalizers_path), "taps": None}
    assert server.run(**_task(recipe, tmp_path / "again", 2, **given)) == [0, 0]
    _agree(open_cache(tmp_path / "again" / "cache"), open_cache(recipe.cache_path))


def _trained(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(run / "teacher-verbalizers" / "verbalizers.safetensors")


def test_processes_share_the_state_of_the_optimizer_and_any_number_goes_on(
    server: RankServer, tmp_path: Path
) -> None:
    schedule = {"steps": 4, "save_every": 2, "taps_at_once": 1}
    recipe = make_recipe(tmp_path, num_samples=11)
    recipe = changed(recipe, teacher={"verbalization": schedule, "verbalizer": {"depth": 2}})
    assert server.run(**_task(recipe, tmp_path / "alone", 1)) == [0]
    run = tmp_path / "two"
    codes = server.run(**_task(recipe, run, 2), killed_in_training=[1, 7])
    assert codes[1] < 0
    assert 0 not in codes
    alone = int((tmp_path / "alone/state-0.txt").read_text())
    for rank in range(2):
        own = int((run / f"state-{rank}.txt").read_text())
        assert 0.49 * alone < own < 0.52 * alone
    assert server.run(**_task(recipe, run, 1)) == [0]
    for name, weights in _trained(tmp_path / "alone").items():
        np.testing.assert_allclose(_trained(run)[name], weights, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A Qwen2-VL of three key-value heads with tied embeddings, recorded by one process."""
    folder = tmp_path_factory.mktemp("images")
    settings = {"samples_per_shard": 3, "hidden": {}}
    recipe = make_recipe(folder, num_samples=9, images=True, cache=settings)
    processor: Any = image_processor_for("qwen2_vl")
    tokenizer = processor.tokenizer
    changes = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in MODEL_CHANGES["qwen2_vl"].items()
    }
    model = tiny_model("qwen2_vl", vocab_size=len(tokenizer) + 7, num_layers=6, changes=changes)
    config = model.config
    for name, value in HEADS.items():
        setattr(config.text_config, name, value)
    config.vision_config.hidden_size = HEADS["hidden_size"]
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(1)
    type(model)(config).save_pretrained(folder / "teacher")
    dump_teacher(recipe)
    return recipe


def test_three_processes_go_on_after_a_kill_and_after_a_stop(
    server: RankServer, images: Recipe, tmp_path: Path
) -> None:
    """One of them is killed in the second shard, and another is asked to stop in the third."""
    given = {"verbalizers": str(images.teacher_verbalizers_path), "taps": None}
    task = _task(images, tmp_path, 3, **given)
    codes = server.run(**task, killed=1, after=4)
    assert codes[1] < 0
    assert 0 not in codes
    assert [path.name for path in (tmp_path / "cache/shards").glob("*.zip")] == ["00000.zarr.zip"]
    assert 0 not in server.run(**task, stopped=2, after=4)
    said = {path.read_text() for path in tmp_path.glob("error-*.txt")}
    assert len(said) == 1
    assert "interrupted at sample 5 of 6, of which whole shards keep 3" in said.pop()
    assert server.run(**task) == [0, 0, 0]
    _agree(open_cache(tmp_path / "cache"), open_cache(images.cache_path))


def test_a_cache_that_one_process_began_is_finished_by_three(
    server: RankServer, images: Recipe, tmp_path: Path
) -> None:
    given = {"verbalizers": str(images.teacher_verbalizers_path), "taps": None}
    alone = _task(images, tmp_path, 1, **given)
    assert server.run(**alone, killed=0, after=4) == [-9]
    assert server.run(**_task(images, tmp_path, 3, **given)) == [0, 0, 0]
    _agree(open_cache(tmp_path / "cache"), open_cache(images.cache_path))


def _said(server: RankServer, task: dict[str, Any]) -> str:
    for path in task["folder"].glob("error-*.txt"):
        path.unlink()
    assert 0 not in server.run(**task)
    said = {path.read_text() for path in task["folder"].glob("error-*.txt")}
    assert len(said) == 1
    return said.pop()


def test_what_the_processes_cannot_have_is_said_in_one_line(
    server: RankServer, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path, num_samples=2)
    tokenizer = text_tokenizer("chatml")
    tiny_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.write_bytes(b"")  # nothing is loaded before it is said
    run = tmp_path / "run"
    odd = _said(server, _task(recipe, run, 3))
    assert "attention heads cannot be divided among the processes" in odd
    assert "num_attention_heads 4, num_key_value_heads 2" in odd
    planless = _said(server, _task(recipe, run, 2, model=str(tmp_path / "gpt2")))
    assert "the model has no plan for tensor parallelism" in planless
    one = _said(server, _task(recipe, run, 2) | {"num_ranks": 1})
    assert "expected 2 processes; found 1. Start torchrun --nproc-per-node 2" in one
    four = _said(server, _task(recipe, run, 2) | {"num_ranks": 4})
    assert "several jobs, each with its own --partition I/N" in four
    mapped = _task(recipe, run, 1, device_map="auto") | {"num_ranks": 2}
    assert "over the devices of one process; found 2 processes" in _said(server, mapped)


def test_a_quantised_teacher_is_another_one_in_two_processes(
    server: RankServer, tmp_path: Path
) -> None:
    """Each quantises its own part of a matrix, with scales of its own."""
    recipe = make_recipe(tmp_path, num_samples=3)
    int8 = {"quantization": {"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig"}}
    task = _task(recipe, tmp_path / "two", 2, **int8)
    assert server.run(**task) == [0, 0]
    assert server.run(**task) == [0, 0]
    manifest = open_cache(tmp_path / "two" / "cache").manifest
    assert manifest.teacher.loading["quantization"]["quant_method"] == "torchao"
    alone = _said(server, _task(recipe, tmp_path / "two", 1, **int8))
    assert "the teacher has other weights" in alone
