"""Folders that hold a peft adapter, alone or beside its base."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralForCausalLM

from support.families import tiny_model
from support.lostfiles import LFS_POINTER
from support.processors import image_processor_for, text_tokenizer
from support.shrinking import shrunken_config
from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_config, load_model, load_processor

TOKENS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A base, an adapter and both together, and the logits of the adapted model."""
    root = tmp_path_factory.mktemp("adapters")
    model = tiny_model("llama")
    model.save_pretrained(root / "base")
    text_tokenizer("chatml").save_pretrained(root / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    adapted = peft.get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
    adapted.save_pretrained(root / "adapter")
    change(root / "adapter", base_model_name_or_path="../base")
    shutil.copytree(root / "base", root / "both")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(root / "adapter" / file, root / "both" / file)
    with torch.no_grad():
        return root, adapted(TOKENS).logits


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def adapter(folders: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoiled."""
    shutil.copytree(folders[0] / "base", tmp_path / "base")
    return Path(shutil.copytree(folders[0] / "adapter", tmp_path / "adapter"))


def change(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("kind", ["adapter", "both"])
def test_an_adapter_is_merged_into_its_base(
    kind: str, folders: tuple[Path, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    root, logits = folders
    with caplog.at_level(logging.INFO, logger="vlsi_cache"):
        model = load_model(str(root / kind))
    assert f"merged the adapter in {root / kind} into its base" in caplog.text
    assert "not read" not in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, logits, atol=1e-4, rtol=1e-4)
    assert model.state_dict().keys() == tiny_model("llama").state_dict().keys()
    assert not hasattr(model, "peft_config")
    assert load_config(str(root / kind)).model_type == "llama"
    processor = load_processor(str(root / kind))
    assert processor.get_vocab() == text_tokenizer("chatml").get_vocab()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "is not there; found base_model_n"),
        ({"target_modules": ["q_proj", "up_proj", "down_proj"]}, "does not fit its base"),
        ({"target_modules": ["nothing"]}, "does not fit its base"),
        ({"r": 8}, "for PeftModel: size mismatch for base_model"),
        ({"peft_type": "UNHEARD_OF"}, "no such kind of adapter; found peft_type UNHEARD_OF"),
        ({"base_model_name_or_path": "../gone"}, "base_model_name_or_path ../gone, and there is"),
        ({"base_model_name_or_path": "C:\\base"}, "C:\\base, and this is a path of Windows"),
        ({"base_model_name_or_path": "hf://a/b"}, "hf://a/b, and a model on the hub is given by"),
        ({"base_model_name_or_path": "owner/gone"}, "owner/gone, and there is no such folder"),
        ({"base_model_name_or_path": "../adapter"}, "the base of the adapter is the adapter its"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    fields: dict[str, Any], problem: str, adapter: Path
) -> None:
    change(adapter, **fields)
    assert problem in refusal(adapter)


def test_what_peft_passes_over_is_named(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(adapter, future_option=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.visual.blocks.0.lora_A.weight"] = torch.ones(4, 8)
    save_file(tensors, adapter / "adapter_model.safetensors")
    load_model(str(adapter))
    assert "1 setting of the adapter is not read: future_option" in caplog.text
    tensor = "base_model.model.visual.blocks.0.lora_A.weight"
    assert f"1 tensor of the adapter is not read: {tensor}" in caplog.text


def test_an_adapter_without_safetensors_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickled ones are not opened; expected adapter_model.safetensors" in refusal(adapter)


def test_damaged_adapters_are_refused(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    assert "adapter_model.safetensors: the file is cut off; expected 12,208" in refusal(adapter)
    (adapter / "adapter_config.json").write_text("{broken")
    assert "adapter_config.json: the file is not JSON" in refusal(adapter)
    (adapter / "adapter_config.json").write_bytes(LFS_POINTER)
    assert "adapter_config.json: the file is not JSON, but a git-lfs pointer" in refusal(adapter)


def test_an_adapter_of_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "second")
    change(tmp_path / "second", base_model_name_or_path=str(adapter))
    assert "the base of the adapter is an adapter, too" in refusal(tmp_path / "second")


def test_an_adapter_beside_a_bare_configuration_has_the_base_that_it_names(
    adapter: Path, folders: tuple[Path, Tensor]
) -> None:
    shutil.copy(folders[0] / "base" / "config.json", adapter)
    with torch.no_grad():
        logits = load_model(str(adapter))(TOKENS).logits
    torch.testing.assert_close(logits, folders[1])
    change(adapter, base_model_name_or_path="/moved/elsewhere")
    assert "/moved/elsewhere, and there is no such model folder" in refusal(adapter)


def test_an_adapter_beside_whole_weights_is_named(
    adapter: Path, folders: tuple[Path, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    load_model(str(folders[0] / "both"))
    assert "holds a model and an adapter, which is merged into it" in caplog.text
    caplog.clear()
    both = adapter.with_name("orphan")
    shutil.copytree(folders[0] / "both", both)
    (both / "adapter_config.json").unlink()
    load_model(str(both))
    assert "the weights of an adapter are not read without adapter_config.json" in caplog.text
    caplog.clear()
    load_model(str(adapter))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_adapter_that_changes_no_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "prompt")
    change(tmp_path / "prompt", base_model_name_or_path=str(tmp_path / "base"))
    assert "an adapter of kind PROMPT_TUNING cannot be merged" in refusal(tmp_path / "prompt")


def test_the_processor_of_an_image_model_is_its_bases_where_an_adapter_has_a_tokenizer_alone(
    tmp_path: Path,
) -> None:
    base = tiny_model("qwen2_vl")
    base.save_pretrained(tmp_path / "base")
    processor: Any = image_processor_for("qwen2_vl")
    processor.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["down_proj"])
    adapted = peft.get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    processor.tokenizer.save_pretrained(tmp_path / "adapter")
    found = load_processor(str(tmp_path / "adapter"))
    assert isinstance(found, type(processor))
    processor.save_pretrained(tmp_path / "adapter")
    assert isinstance(load_processor(str(tmp_path / "adapter")), type(processor))


@pytest.mark.parametrize("family", ["llava", "gemma3_vision", "internvl"])
def test_tensors_that_peft_renames_are_read_and_not_warned_of(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_model(family)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False
    )
    adapted = peft.get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = adapted(TOKENS).logits
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {
        name.replace(".model.model.language_model.", ".model.language_model.model."): tensor
        for name, tensor in load_file(file).items()
    }
    assert not any(".model.model.language_model." in name for name in tensors)
    save_file(tensors, file)
    with torch.no_grad():
        found = load_model(str(tmp_path / "adapter"))(TOKENS).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert "not read" not in caplog.text
    tensors["base_model.model.language_model.model.layers.9.self_attn.q_proj.lora_A.weight"] = (
        torch.ones(2, 32)
    )
    save_file(tensors, file)
    load_model(str(tmp_path / "adapter"))
    assert "1 tensor of the adapter is not read: " in caplog.text
    assert "layers.9.self_attn.q_proj.lora_A.weight" in caplog.text


def test_an_adapter_of_experts_apart_is_read_where_they_are_stacked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = MixtralForCausalLM(shrunken_config("mixtral")).eval()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["w1", "w2", "w3"])
    config.base_model_name_or_path = str(tmp_path / "base")
    config.save_pretrained(tmp_path / "adapter")
    own, tensors = base.config, {}
    widths = {"w1": own.intermediate_size, "w2": own.hidden_size, "w3": own.intermediate_size}
    for layer in range(own.num_hidden_layers):
        for expert in range(own.num_local_experts):
            for name, rows in widths.items():
                columns = own.hidden_size + own.intermediate_size - rows
                place = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}"
                tensors[f"{place}.{name}.lora_A.weight"] = torch.randn(2, columns)
                tensors[f"{place}.{name}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with caplog.at_level(logging.INFO, logger="vlsi_cache"):
        merged = load_model(str(tmp_path / "adapter"))
    assert "merged the adapter" in caplog.text
    assert "not read" not in caplog.text
    place = "base_model.model.model.layers.0.block_sparse_moe.experts.1.w2"
    change = tensors[f"{place}.lora_B.weight"] @ tensors[f"{place}.lora_A.weight"]
    name = "model.layers.0.mlp.experts.down_proj"
    found = merged.state_dict()[name][1] - base.state_dict()[name][1]
    torch.testing.assert_close(found, change, atol=1e-4, rtol=1e-4)
