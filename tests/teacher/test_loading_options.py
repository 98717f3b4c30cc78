"""Options that go to `from_pretrained` by name, and those that change a teacher's numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from support.runs import make_recipe, save_text_model
from vlsi_cache.errors import CacheMismatchError, VlsiCacheError
from vlsi_cache.models import load_backbone
from vlsi_cache.recipe import ModelSection, Recipe, TeacherSection, recipe_from_mapping
from vlsi_cache.store import open_cache
from vlsi_cache.teacher import dump_teacher
from vlsi_cache.verbalizer import load_verbalizers, verbalizers_fingerprint

CPU = torch.device("cpu")

REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def _with(recipe: Recipe, **teacher: Any) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw["teacher"] |= teacher
    return recipe_from_mapping(raw, where="test")


def test_the_kernel_of_the_attention_is_the_asked_one_and_the_manifest_names_it(
    tmp_path: Path,
) -> None:
    recipe = _with(make_recipe(tmp_path, num_samples=3), attn_implementation="eager")
    teacher = load_backbone(recipe.teacher, "teacher", CPU)
    assert teacher.decoder.model.config._attn_implementation == "eager"
    dump_teacher(recipe)
    assert open_cache(recipe.cache_path).manifest.teacher.loading == {
        "attn_implementation": "eager"
    }
    other = _with(recipe, attn_implementation=None, taps=None)
    given = _with(other, verbalizers=str(recipe.teacher_verbalizers_path))
    with pytest.raises(CacheMismatchError, match=r"loading\.attn_implementation is \"eager\""):
        dump_teacher(given)


def test_a_student_takes_the_kernel_too(tmp_path: Path) -> None:
    section = ModelSection(model=str(save_text_model(tmp_path)), attn_implementation="eager")
    student = load_backbone(section, "student", CPU, trains=True)
    assert student.decoder.model.config._attn_implementation == "eager"
    assert student.identity()["loading"] == {"attn_implementation": "eager"}


def test_compiled_blocks_read_what_plain_ones_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The taps' hooks are set after the compilation, and must be called all the same."""
    folder = str(save_text_model(tmp_path, num_layers=3))
    compiled: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(str(graph.graph))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=record))
    teacher = load_backbone(TeacherSection(model=folder, compile=True), "teacher", CPU)
    assert compiled
    assert teacher.loading == {"compile": True}
    plain = load_backbone(TeacherSection(model=folder), "teacher", CPU)
    assert teacher.fingerprint == plain.fingerprint


def test_a_teacher_in_bfloat16_reads_its_verbalizers_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names the float32 weights, from which another dtype would begin."""
    recipe = _with(make_recipe(tmp_path, num_samples=3), dtype="bfloat16")
    dtypes = set()
    from vlsi_cache.verbalizer import VerbalizerBank

    forward = VerbalizerBank.forward

    def watched(bank: VerbalizerBank, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            dtypes.update(weight.dtype for weight in bank.parameters())
        return forward(bank, *args)

    monkeypatch.setattr(VerbalizerBank, "forward", watched)
    dump_teacher(recipe)
    assert dtypes == {torch.bfloat16}
    teacher = load_backbone(recipe.teacher, "teacher", CPU)
    folder, fingerprint = recipe.teacher_verbalizers_path, teacher.fingerprint
    bank = load_verbalizers(folder, teacher.decoder, fingerprint=fingerprint)
    manifest = open_cache(recipe.cache_path).manifest
    assert manifest.verbalizers_fingerprint == verbalizers_fingerprint(bank)


def _own_code(folder: Path) -> Path:
    """A model whose code lies beside its weights."""
    save_text_model(folder)
    (folder / "own.py").write_text(REMOTE)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps(config))
    return folder


def test_code_beside_the_weights_runs_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    recipe = make_recipe(tmp_path, num_samples=3)
    shutil.rmtree(tmp_path / "teacher")
    _own_code(tmp_path / "teacher")
    with pytest.raises(VlsiCacheError, match="the model's configuration cannot be read"):
        dump_teacher(recipe)
    trusting = _with(recipe, trust_remote_code=True)
    dump_teacher(trusting)
    assert open_cache(trusting.cache_path).manifest.teacher.model_type == "own"
