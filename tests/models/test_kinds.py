"""Models that are no decoders are refused by their kind, and the others are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BartForConditionalGeneration, PreTrainedConfig, ViTConfig

from support.families import FAMILIES, tiny_model
from support.shrinking import shrunken_config, shrunken_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import load_config, load_model
from vlsi_cache.models.loading.kinds import loader_of
from vlsi_cache.models.loading.loading import preview_weights


def _refused(folder: Path) -> str:
    """The line of a preview, which is that of loading."""
    with pytest.raises(ModelError) as early:
        preview_weights(str(folder), load_config(str(folder)))
    with pytest.raises(ModelError) as late:
        load_model(str(folder))
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)
    return str(early.value).removeprefix(f"{folder}: ")


def _saved(name: str, config: PreTrainedConfig, folder: Path) -> Path:
    model_class: Any = getattr(transformers, name)
    model_class(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("llama", "LlamaForSequenceClassification", "a classifier"),
        ("llama", "LlamaForTokenClassification", "a classifier"),
        ("qwen2", "Qwen2ForQuestionAnswering", "a classifier"),
        ("bert", "BertForMaskedLM", "a masked language model"),
        ("bert", "BertModel", "an encoder, which reads later tokens"),
        ("roberta", "RobertaForMaskedLM", "a masked language model"),
        ("xlm-roberta", "XLMRobertaModel", "an encoder, which reads later tokens"),
        ("bart", "BartForConditionalGeneration", "an encoder-decoder"),
        ("bart", "BartModel", "an encoder-decoder"),
        ("t5", "T5ForConditionalGeneration", "an encoder-decoder"),
        ("whisper", "WhisperForConditionalGeneration", "an encoder-decoder"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_another_kind_is_refused_by_its_name(
    family: str, name: str, kind: str, tmp_path: Path
) -> None:
    line = _refused(_saved(name, shrunken_config(family), tmp_path))
    assert line.startswith(f"the model is {kind}")
    assert "; expected a decoder that reads prompt and response; " in line
    assert f"found {name} of model_type {family}. " in line


def test_a_model_of_pictures_alone_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", num_layers=2).save_pretrained(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    line = _refused(tmp_path)
    assert line.startswith("the model is neither an image-text-to-text nor a causal language model")
    assert "found model_type vit" in line


def test_an_encoder_decoder_is_not_read_as_its_decoder(tmp_path: Path) -> None:
    BartForConditionalGeneration(shrunken_config("bart")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": None}))
    # without a class in its configuration, it may be a decoder's half, which loading decides
    assert loader_of(load_config(str(tmp_path)), "bart").__name__ == "AutoModelForCausalLM"


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "mistral"])
def test_a_body_without_a_head_is_refused(family: str, tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": False}
    tiny_model(family, num_layers=2, changes=changes).save_pretrained(tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole")
    body.save_pretrained(tmp_path / "body")
    line = _refused(tmp_path / "body")
    assert line.startswith("the model is a body without the head that gives probabilities")
    assert f"found {type(body).__name__}. " in line


def test_a_body_whose_head_is_its_embedding_is_whole(tmp_path: Path) -> None:
    model = tiny_model("llama", num_layers=2, changes={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "body")
    config = load_config(str(tmp_path / "body"))
    assert config.architectures == ["LlamaModel"]
    preview_weights(str(tmp_path / "body"), config)
    loaded = load_model(str(tmp_path / "body"))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_a_whole_model_whose_configuration_names_its_body_is_whole(tmp_path: Path) -> None:
    tiny_model("llama", num_layers=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    load_model(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_ordinary_family_is_refused(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(family, num_layers=2).save_pretrained(tmp_path, max_shard_size="100KB")
    report = preview_weights(str(tmp_path), load_config(str(tmp_path)))
    assert report is not None
    assert (report.missing, report.mismatched, report.unread) == ((), (), ())
    assert [record.getMessage() for record in caplog.records if record.levelno >= 30] == []


@pytest.mark.parametrize(
    ("family", "sees_images"),
    [
        ("bigbird_pegasus", False),
        ("gpt_neox", False),
        ("mllama", True),
        ("olmoe", False),
        ("opt", False),
        ("qwen2_5_omni_thinker", True),
        ("qwen3_vl_moe", True),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_families_that_tie_and_store_in_their_own_ways_are_whole(
    family: str, sees_images: bool, tmp_path: Path
) -> None:
    shrunken_model(shrunken_config(family), sees_images=sees_images).save_pretrained(tmp_path)
    report = preview_weights(str(tmp_path), load_config(str(tmp_path)))
    assert report is not None
    assert (report.missing, report.mismatched, report.unread) == ((), (), ())
    load_model(str(tmp_path))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3_vl"])
def test_a_family_that_ties_its_head_may_store_it_all_the_same(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, num_layers=2)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    head = model.get_output_embeddings().weight.detach().clone()
    save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    report = preview_weights(str(tmp_path), load_config(str(tmp_path)))
    assert report is not None
    assert report.missing == report.mismatched == ()
    load_model(str(tmp_path))
