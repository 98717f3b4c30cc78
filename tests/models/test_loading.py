"""Loading: the files that a folder must hold, and the line that says what is wrong with it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from support.families import tiny_model
from support.processors import image_processor_for, text_tokenizer
from vlsi_cache.errors import ModelError
from vlsi_cache.models import (
    bind_decoder,
    context_length,
    load_backbone,
    load_config,
    load_model,
    load_processor,
    saved_dtype,
    short_length,
    text_config,
)
from vlsi_cache.recipe import ModelSection

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(folder: Path | str, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith((f"{folder}: ", f"{folder}/"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("family", "class_name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("gemma3", "Gemma3ForCausalLM"),
        ("gemma3_vision", "Gemma3ForConditionalGeneration"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    ],
)
def test_the_class_follows_the_configuration(family: str, class_name: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded).__name__ == class_name
    assert not loaded.training
    assert text_config(loaded).num_hidden_layers == 4
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_the_checkpoints_own_dtype_is_kept_unless_another_is_named(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.bfloat16
    assert load_model(str(tmp_path), dtype="float32").dtype == torch.float32


def test_a_good_folder_loads_without_a_warning(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        load_model(str(saved))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_is_not_a_folder_is_refused_without_asking_the_hub(name: str) -> None:
    assert "there is no such model folder" in refusal(name)


def test_a_file_is_not_a_folder(saved: Path) -> None:
    assert f"this is a file. Give its folder: {saved}." in refusal(saved / "config.json")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "holds no model; expected config.json" in refusal(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_processor])
def test_an_unreachable_hub_name_is_refused_in_one_line(
    load: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Offline mode is the hub client's own switch; it makes the answer the same with a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"^nobody/nothing: .* and HF_HUB_OFFLINE forb") as e:
        load("nobody/nothing")  # type: ignore[operator]
    assert "\n" not in str(e.value)


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    for dtype in ("float33", "int8", "nn"):
        assert f"unknown dtype; expected auto, float32, bfloat16 or float16; found {dtype}" in (
            refusal(saved, dtype=dtype)
        )


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{WEIGHTS}: the file is cut off; expected 193,536 bytes; found 193,436" in (
        refusal(folder)
    )


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert "no safetensors weights" in refusal(folder)
    assert "found pytorch_model.bin" in refusal(folder)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.norm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "1 weight is missing from the checkpoint; found model.norm.weight" in refusal(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS) | {"model.norm.weight": torch.ones(7)}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "1 weight is of another shape; found model.norm.weight" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(tmp_path)


def test_weights_that_the_model_does_not_have_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(folder / WEIGHTS) | {"model.extra.weight": torch.ones(7)}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    load_model(str(folder))
    assert "1 weight is not part of the model: model.extra.weight" in caplog.text


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_tied_head_with_values_of_its_own_is_refused(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    assert "the head and the embedding differ" in refusal(folder)


def test_a_tied_head_that_is_not_stored_is_the_embedding(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model: Any = load_model(str(folder))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_untied_head_that_is_not_stored_is_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "missing from the checkpoint; found lm_head.weight" in refusal(folder)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_model_that_returns_tuples_is_bound_all_the_same(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    change_config(tmp_path, return_dict=False)
    assert bind_decoder(load_model(str(tmp_path))).num_blocks == 4


@pytest.mark.parametrize("name", ["model.gguf", "owner/name-GGUF/model-Q4_K_M.gguf"])
def test_a_gguf_file_is_refused_with_what_to_do(name: str) -> None:
    assert "GGUF files are not read" in refusal(name)
    assert "gguf_file='model" in refusal(name)


def test_a_folder_of_gguf_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert "found tiny.gguf" in refusal(tmp_path)
    assert "found tiny.gguf" in refusal(tmp_path / "tiny.gguf")


def test_a_quantised_student_is_refused_and_its_teacher_is_not(folder: Path) -> None:
    text_tokenizer("chatml").save_pretrained(folder)
    change_config(folder, quantization_config={"quant_method": "fp8"})
    section = ModelSection(model=str(folder))
    with pytest.raises(ModelError, match=r"a quantised student cannot be trained; .*method fp8"):
        load_backbone(section, "student", torch.device("cpu"))
    assert load_backbone(section, "teacher", torch.device("cpu")).decoder.num_blocks == 4


@pytest.mark.parametrize(
    ("dtype", "autocast", "stored"),
    [
        ("auto", False, torch.float32),
        ("float32", False, torch.float32),
        ("bfloat16", True, torch.bfloat16),
    ],
)
def test_weights_that_train_are_float32(
    dtype: Literal["auto", "float32", "bfloat16"],
    autocast: bool,
    stored: torch.dtype,
    folder: Path,
) -> None:
    text_tokenizer("chatml").save_pretrained(folder)
    section = ModelSection(model=str(folder), dtype=dtype)
    student = load_backbone(section, "student", torch.device("cpu"), trains=True)
    assert {weight.dtype for weight in student.decoder.model.parameters()} == {torch.float32}
    assert student.autocast is autocast
    assert saved_dtype(dtype, load_config(str(folder)).dtype) == stored


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "linear", "factor": 8.0}, 512),
    ],
)
def test_scaled_positions_lengthen_the_context(scaling: dict[str, Any] | None, length: int) -> None:
    rope = None if scaling is None else {"rope_theta": 10000.0, **scaling}
    model = tiny_model("llama", num_layers=1, changes={"rope_parameters": rope} if rope else None)
    assert context_length(text_config(model)) == length


def test_the_length_of_short_positions_is_known() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    trained = {"original_max_position_embeddings": 64}
    changes = {"rope_parameters": {**rope, **factors, **trained}}
    assert short_length(text_config(tiny_model("llama", num_layers=1, changes=changes))) == 64
    assert short_length(text_config(tiny_model("llama", num_layers=1))) is None


def test_a_broken_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")
    assert "config.json: the file is not JSON (Expecting property name" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"hidden_size": 33}, r"33\) is not a multiple of the number of attention heads"),
        ({"dtype": "nonsense"}, "has no attribute 'nonsense'"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"rope_scaling": {"rope_type": "nonsense"}}, "'nonsense'"),
        ({"hidden_act": "swish9"}, "'swish9', which transformers does not know"),
        (
            {"quantization_config": {"quant_method": "torchao", "quant_type": "int8"}},
            "Expected only one key",
        ),
    ],
)
def test_a_configuration_of_bad_values_is_refused_in_one_line(
    fields: dict[str, Any], problem: str, folder: Path
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert re.search(problem, refusal(folder))


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="logits are not numbers"):
        bind_decoder(load_model(str(folder)))


def test_code_inside_a_model_folder_is_not_run(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert "custom code" in refusal(folder)


def test_code_that_transformers_own_takes_the_place_of_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    (folder / "modeling_own.py").write_text("raise SystemExit('ran')")
    load_model(str(folder))
    assert "own code (modeling_own.OwnForCausalLM) is not run; transformers' llama" in caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_without_a_quantisation_are_refused(
    folder: Path, dtype: torch.dtype
) -> None:
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    weights[f"{name}_scale_inv"] = torch.ones(1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "the weights are quantised, and config.json names no quant" in refusal(folder)


def test_weights_that_lie_there_twice_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    load_model(str(folder))
    assert "model.safetensors is read, and the shards of model.saf" in caplog.text


def test_a_processor_or_a_tokenizer_is_loaded(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"<image>": 0, "a": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a")
    tokenizer.save_pretrained(tmp_path / "text")
    LlavaProcessor(CLIPImageProcessor(), tokenizer, patch_size=8).save_pretrained(tmp_path / "both")
    assert isinstance(load_processor(str(tmp_path / "text")), PreTrainedTokenizerFast)
    assert isinstance(load_processor(str(tmp_path / "both")), LlavaProcessor)


def test_a_folder_without_a_processor_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="processor cannot be loaded"):
        load_processor(str(saved))
    CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="processor"):
        load_processor(str(tmp_path))


def test_options_of_a_processor_take_the_place_of_the_saved_ones(tmp_path: Path) -> None:
    image_processor_for("qwen2_vl").save_pretrained(tmp_path / "qwen")
    tiny_model("qwen2_vl").config.save_pretrained(tmp_path / "qwen")
    options = {"max_pixels": 900, "min_pixels": 64}
    processor: Any = load_processor(str(tmp_path / "qwen"), options=options)
    assert dict(processor.image_processor.size) == {"shortest_edge": 64, "longest_edge": 900}
    image_processor_for("smolvlm").save_pretrained(tmp_path / "smol")
    tiny_model("smolvlm").config.save_pretrained(tmp_path / "smol")
    splits: Any = load_processor(str(tmp_path / "smol"), options={"do_image_splitting": False})
    assert splits.image_processor.do_image_splitting is False


@pytest.mark.parametrize(
    ("family", "option", "near"),
    [
        ("qwen2_vl", "max_pixel", "max_pixels"),
        ("qwen2_vl", "do_image_splitting", "do_"),
        ("llava", "min_pixels", "size"),
        ("smolvlm", "device", "size"),
    ],
)
def test_an_option_that_the_processor_does_not_know_is_refused(
    family: str, option: str, near: str, tmp_path: Path
) -> None:
    image_processor_for(family).save_pretrained(tmp_path)
    tiny_model(family).config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"does not know these options.*found {option}") as caught:
        load_processor(str(tmp_path), options={option: 1})
    assert near in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": "many"},
        {"max_pixels": -5},
        {"min_pixels": 0},
        {"min_pixels": True},
        {"min_pixels": 900, "max_pixels": 64},
    ],
    ids=str,
)
def test_bounds_of_pixels_that_no_picture_has_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    image_processor_for("qwen2_vl").save_pretrained(tmp_path)
    tiny_model("qwen2_vl").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot have these bounds of pixels.*found "):
        load_processor(str(tmp_path), options=options)


def test_a_tokenizer_takes_no_options_of_images(tmp_path: Path) -> None:
    text_tokenizer("chatml").save_pretrained(tmp_path)
    tiny_model("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not know these options"):
        load_processor(str(tmp_path), options={"max_pixels": 900})


@pytest.mark.parametrize("load", [load_model, load_processor, load_config])
def test_a_folder_has_no_revisions(load: Any, saved: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder has no revisions; found revision v2"):
        load(str(saved), revision="v2")


def _spoil(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        for key in [key for key in weights if "up_proj" in key]:
            weights[key] = weights[key].to(torch.int8)
        save_file(weights, file, metadata={"format": "pt"})


def test_quantised_shards_are_refused_by_the_name_of_the_model(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    for file in tmp_path.glob("model-*.safetensors"):
        file.rename(file.with_name(file.name.replace("model-", "part_")))
    index.write_text(index.read_text().replace("model-", "part_"))
    load_model(str(tmp_path))
    _spoil(tmp_path)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: the weights are quantised, and config.json names no")


def test_quantised_weights_beside_an_adapter_are_refused_by_their_folder(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(tiny_model("llama"), config).save_pretrained(folder)
    _spoil(folder)
    assert refusal(folder).startswith(f"{folder}: the weights are quantised")


def test_quantised_weights_in_the_hubs_local_copy_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models--some--model"
    snapshot = Path(shutil.copytree(saved, copy / "snapshots" / ("a" * 40)))
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_model("some/model")
    _spoil(snapshot)
    for revision in (None, "main", "a" * 40):
        message = refusal("some/model", **({"revision": revision} if revision else {}))
        assert message.startswith("some/model: the weights are quantised, and config.json names no")
