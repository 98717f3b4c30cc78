"""The teacher pass: what it records is the model's own distribution, byte for byte again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from support.runs import make_recipe, with_section
from vlsi_cache.data import BatchEncoder, load_conversations, model_inputs
from vlsi_cache.distribution import ENTROPY_STEP, LABEL_STEP
from vlsi_cache.errors import CacheMismatchError, ModelError, RecipeError, StageError
from vlsi_cache.models import load_processor
from vlsi_cache.recipe import Recipe
from vlsi_cache.recipe.partition import Partition
from vlsi_cache.store import open_cache
from vlsi_cache.teacher import dump_teacher, passes
from vlsi_cache.teacher.filling import DumpProgress
from vlsi_cache.teacher.publishing import Publisher
from vlsi_cache.teacher.reading import record_uniforms


def _dump(recipe: Recipe) -> list[DumpProgress]:
    seen: list[DumpProgress] = []
    dump_teacher(recipe, seen.append)
    return seen


def _shard_bytes(cache: Path) -> dict[str, str]:
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((cache / "shards").rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=[False, True], ids=["text", "images"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = make_recipe(tmp_path_factory.mktemp("dump"), images=request.param)
    made = with_section(made, "cache", k=4, m=4, drawn_from="rest")
    _dump(made)
    return made


def test_the_final_output_recorded_is_the_models_own(recipe: Recipe) -> None:
    cache = open_cache(recipe.cache_path)
    assert (cache.is_complete, cache.manifest.taps) == (True, (1, 3, 5, -1))
    conversations = load_conversations(str(recipe.data.path))
    name = str(recipe.teacher.model)
    processor = load_processor(name)
    images = any(conversation.images for conversation in conversations)
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model: Any = loader.from_pretrained(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    encode = BatchEncoder(processor, max_length=None)
    for index, conversation in enumerate(conversations):
        batch = encode([conversation])
        mask = batch["response_mask"][0]
        with torch.no_grad():
            logits = model(**model_inputs(batch)).logits[0, :, : len(tokenizer)]
        log_p = torch.log_softmax(logits[mask.nonzero()[:, 0] - 1], -1)
        labels = batch["input_ids"][0][mask]
        record = cache[index]
        assert record.sample_id == conversation.sample_id
        np.testing.assert_array_equal(record.response_ids, labels)
        output = record.distribution[:, -1]
        np.testing.assert_allclose(output.top_log_probs, log_p.topk(4).values, atol=5e-3)
        label_log_prob, entropy = (
            log_p.gather(1, labels[:, None])[:, 0],
            -(log_p.exp() * log_p).sum(-1),
        )
        np.testing.assert_allclose(output.label_log_prob, label_log_prob, atol=LABEL_STEP + 5e-3)
        np.testing.assert_allclose(output.entropy, entropy, atol=ENTROPY_STEP + 5e-3)
        assert record.distribution.token_ids.max() < len(tokenizer)  # no padded row is ever drawn


def test_a_rerun_writes_only_what_is_missing_with_the_same_bytes(recipe: Recipe) -> None:
    cache = recipe.cache_path
    before = _shard_bytes(cache)
    (cache / "shards" / "00001.zarr.zip").unlink()
    seen = _dump(recipe)
    assert _shard_bytes(cache) == before
    assert [(step.num_samples, step.total_samples) for step in seen] == [(2, 5), (4, 5), (5, 5)]
    assert _dump(recipe) == []  # nothing is left to do


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_batches_that_are_begun_ahead_are_all_recorded(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ahead: int
) -> None:
    """An accelerator begins the next batch before it gives the records of the last."""
    monkeypatch.setattr(passes, "num_batches_ahead", lambda _: num_ahead)
    again = with_section(recipe, "cache", path=str(tmp_path / "ahead"))
    seen = _dump(again)
    assert seen[-1].num_samples == seen[-1].total_samples
    assert open_cache(again.cache_path).is_complete
    assert _shard_bytes(Path(again.cache_path)) == _shard_bytes(Path(recipe.cache_path))


@pytest.mark.parametrize("partition", [None, Partition(1, 2)], ids=["whole", "partition"])
def test_a_shard_that_is_not_written_is_no_success(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: Partition | None
) -> None:
    again = with_section(recipe, "cache", path=str(tmp_path / "lost"))
    submit = Publisher.submit

    def lose_the_first(publisher: Publisher, shard: int, records: Any) -> None:
        if shard:
            submit(publisher, shard, records)

    monkeypatch.setattr(Publisher, "submit", lose_the_first)
    with pytest.raises(StageError, match="found 1 missing, the first of them 0"):
        dump_teacher(again, partition=partition)


def test_draws_follow_from_seed_and_content_alone() -> None:
    assert (record_uniforms(0, "a", 5, 3) == record_uniforms(0, "a", 9, 3)[:5]).all()
    assert (record_uniforms(0, "a", 5, 3) != record_uniforms(1, "a", 5, 3)).all()
    assert (record_uniforms(0, "a", 5, 3) != record_uniforms(0, "b", 5, 3)).all()


def test_other_settings_do_not_go_on_in_the_same_cache(recipe: Recipe) -> None:
    with pytest.raises(CacheMismatchError, match=r"sampling\.k is 4, asked for 3"):
        _dump(with_section(recipe, "cache", k=3))


def test_a_tap_that_is_named_twice_goes_on_with_the_same_cache(recipe: Recipe) -> None:
    taps = [*open_cache(recipe.cache_path).manifest.taps[:-1], 1]
    assert _dump(with_section(recipe, "teacher", taps=taps)) == []


def test_the_cache_of_another_teacher_is_refused_before_verbalizers_train(
    recipe: Recipe, tmp_path: Path
) -> None:
    model = tmp_path / "other"
    shutil.copytree(str(recipe.teacher.model), model)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    weights[name] = weights[name] * 2
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    other = with_section(recipe, "teacher", model=str(model))
    other = with_section(other, "cache", path=str(recipe.cache_path))
    other = other.model_copy(update={"output": tmp_path / "new"})
    with pytest.raises(CacheMismatchError, match=r"the teacher has other weights") as caught:
        _dump(other)
    assert "verbalizers" not in str(caught.value)
    assert not other.teacher_verbalizers_path.exists()


def test_k_beyond_the_vocabulary_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cache\.k \+ cache\.m is larger than the vocabulary"):
        _dump(with_section(recipe, "cache", k=100_000, path=tmp_path / "new"))


def test_a_distribution_that_is_not_finite_names_tap_and_sample(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=3)
    _dump(recipe)
    weights = recipe.teacher_verbalizers_path / "verbalizers.safetensors"
    state = load_file(weights)
    state["layers.3.0.down.weight"].fill_(float("nan"))
    save_file(state, weights)
    again = with_section(recipe, "cache", path=tmp_path / "other")
    with pytest.raises(StageError, match=r"sample 's0': .*not finite at tap 3\."):
        _dump(again)


def test_a_teacher_with_broken_weights_is_refused_when_it_is_bound(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, num_samples=3)
    weights = tmp_path / "teacher" / "model.safetensors"
    state = load_file(weights)
    state["model.layers.4.mlp.down_proj.weight"].fill_(float("nan"))
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="hidden states are not finite"):
        _dump(recipe)
