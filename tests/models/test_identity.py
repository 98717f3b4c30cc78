"""Identity: a hash changes if and only if its source changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from support.families import tiny_model
from vlsi_cache.errors import ModelError
from vlsi_cache.models import (
    chat_template_hash,
    config_hash,
    load_model,
    tokenizer_of,
    vocabulary_hash,
    vocabulary_size,
    weights_fingerprint,
)

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(*words: str, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])), unk_token=words[0]
    )
    made.chat_template = template
    return made


def test_the_fingerprint_survives_saving_and_half_precision(tmp_path: Path) -> None:
    model = tiny_model("qwen2_vl")
    model.save_pretrained(tmp_path)
    expected = weights_fingerprint(model)
    assert weights_fingerprint(load_model(str(tmp_path))) == expected
    assert weights_fingerprint(load_model(str(tmp_path), dtype="bfloat16")) == expected


def test_the_fingerprint_sees_other_weights_and_other_depths() -> None:
    prints = {
        weights_fingerprint(tiny_model("llama")),
        weights_fingerprint(tiny_model("llama", seed=1)),
        weights_fingerprint(tiny_model("llama", num_layers=3)),
    }
    assert len(prints) == 3


def test_the_fingerprint_does_not_depend_on_memory_layout() -> None:
    model = tiny_model("llama")
    expected = weights_fingerprint(model)
    weight = model.lm_head.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert weights_fingerprint(model) == expected


def test_the_sample_reaches_every_column_of_a_large_matrix() -> None:
    model = tiny_model("llama", vocab_size=4096)
    assert model.lm_head.weight.numel() > 64 * 1024
    expected = weights_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[:, 13] += 1.0
    assert weights_fingerprint(model) != expected


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_the_config_hash_survives_saving_and_whatever_decides_no_number(
    family: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    expected = config_hash(model.config)
    model.save_pretrained(tmp_path)
    assert config_hash(load_model(str(tmp_path)).config) == expected
    assert config_hash(load_model(str(tmp_path), dtype="bfloat16").config) == expected
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text("utf-8"))
    tree |= {"architectures": None, "use_cache": False, "transformers.js_config": {"a": 1}}
    tree |= {"id2label": {"0": "yes"}, "torch_dtype": "float16", "_name_or_path": "/elsewhere"}
    tree |= {"pad_token_id": 7, "initializer_range": 0.5, "attention_dropout": 0.5, "more": None}
    path.write_text(json.dumps(tree), "utf-8")
    assert config_hash(load_model(str(tmp_path)).config) == expected


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 37.0, "rope_type": "default"}}),
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"hidden_act": "gelu"}),
        ("qwen2_vl", {"text_config": {"rms_norm_eps": 0.1}}),
        ("qwen2_vl", {"vision_config": {"hidden_act": "gelu"}}),
        ("qwen2_vl", {"image_token_id": 9}),
    ],
)
def test_the_config_hash_sees_what_the_weights_do_not(
    family: str, change: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    before = weights_fingerprint(model), config_hash(model.config)
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text("utf-8"))
    for key, value in change.items():
        tree[key] = tree[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(tree), "utf-8")
    loaded = load_model(str(tmp_path))
    assert weights_fingerprint(loaded) == before[0]
    assert config_hash(loaded.config) != before[1]


def test_the_vocabulary_hash_sees_order_and_added_tokens() -> None:
    grown = tokenizer("a", "b", "c")
    grown.add_tokens([AddedToken("d")])
    hashes = [
        vocabulary_hash(made)
        for made in (
            tokenizer("a", "b", "c"),
            tokenizer("a", "c", "b"),
            grown,
            tokenizer("a", "b", "c", "d"),
        )
    ]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


def test_the_vocabulary_reaches_to_the_highest_id() -> None:
    assert vocabulary_size(tokenizer("a", "b", "c")) == 3
    gapped = Tokenizer(WordLevel({"a": 0, "b": 6}, unk_token="a"))
    assert vocabulary_size(PreTrainedTokenizerFast(tokenizer_object=gapped)) == 7


def test_the_template_hash_sees_the_template_only() -> None:
    expected = chat_template_hash(tokenizer("a"))
    assert chat_template_hash(tokenizer("a", "b")) == expected
    assert chat_template_hash(tokenizer("a", template=TEMPLATE + "!")) != expected
    assert chat_template_hash(tokenizer("a", template=None)) != expected


def test_a_processors_own_template_is_the_one_that_counts() -> None:
    # Older checkpoints keep the template with the tokenizer, newer ones with the processor.
    inner = tokenizer("<image>", "a")
    pixels = CLIPImageProcessor()
    without = LlavaProcessor(pixels, inner, patch_size=8)
    own = LlavaProcessor(pixels, inner, patch_size=8, chat_template="other")
    assert tokenizer_of(own) is inner
    assert chat_template_hash(without) == chat_template_hash(inner)
    assert chat_template_hash(own) != chat_template_hash(inner)


def test_a_processor_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"CLIPImageProcessor.*: the processor has no tokenizer"):
        tokenizer_of(CLIPImageProcessor())  # type: ignore[arg-type]


def test_the_template_hash_sees_what_the_template_reads() -> None:
    def hashed(template: str, begin: str) -> str:
        made = tokenizer("a", "b", "c", template=template)
        made.bos_token = begin
        return chat_template_hash(made)

    assert hashed(TEMPLATE, "b") == hashed(TEMPLATE, "c") == chat_template_hash(tokenizer("a"))
    begun = "{{ bos_token }}" + TEMPLATE
    assert hashed(begun, "b") != hashed(begun, "c")
    named = {"default": TEMPLATE, "tool_use": begun}
    assert hashed(named, "b") != hashed(named, "c")  # type: ignore[arg-type]


def test_hashes_of_templates_that_read_nothing_else_are_as_they_were() -> None:
    text = json.dumps(TEMPLATE, ensure_ascii=True)
    assert chat_template_hash(tokenizer("a")) == hashlib.sha256(text.encode()).hexdigest()
    assert chat_template_hash(tokenizer("a", template="{{ strftime_now('%Y') }}")) != (
        hashlib.sha256(b"\"{{ strftime_now('%Y') }}\"").hexdigest()
    )
