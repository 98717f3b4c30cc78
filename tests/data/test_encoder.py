"""Batches of every family: its model runs on them, and no sample changes another."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerFast

from support import talks
from support.families import tiny_model
from support.processors import (
    IMAGE_PROCESSORS,
    MODEL_CHANGES,
    image_processor_for,
    paligemma_processor,
    text_tokenizer,
)
from vlsi_cache.data import (
    BatchEncoder,
    ConversationDataset,
    encoder_for,
    known_ids,
    load_conversations,
    model_inputs,
    response_ids,
    response_positions,
)
from vlsi_cache.errors import DataError, ModelError
from vlsi_cache.models import Backbone, bind_decoder
from vlsi_cache.recipe import DataSection

# Made by hand: the responses of `mixed_rows`, spelt as the vocabulary does.
_CHATML = [
    ["redĠ4<|im_end|>"],
    ["ItĠisĠred.<|im_end|>", "4Ġblue<|im_end|>"],
    ["TheĠsecond.ĊĊYes<|im_end|>"],
]
_IDEFICS = [
    ["ĠredĠ4<end_of_utterance>"],
    ["ĠItĠisĠred.<end_of_utterance>", "Ġ4Ġblue<end_of_utterance>"],
    ["ĠTheĠsecond.ĊĊYes<end_of_utterance>"],
]
EXPECTED = {
    "qwen2_vl": _CHATML,
    "qwen2_5_vl": _CHATML,
    "qwen3_vl": _CHATML,
    "internvl": _CHATML,
    # Its tags count the line break after the header in.
    "llava_onevision": [[f"Ċ{answer}" for answer in answers] for answers in _CHATML],
    # Its template ends no turn. The space that it writes goes into the next turn's ▁USER.
    "llava": [["▁red▁4▁"], ["▁It▁is▁red.", "▁4▁blue▁"], ["▁The▁second.\n\nYes▁"]],
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "gemma3_vision": [
        ["red▁4<end_of_turn>"],
        ["It▁is▁red.<end_of_turn>", "4▁blue<end_of_turn>"],
        ["The▁second.\n\nYes<end_of_turn>"],
    ],
}


@pytest.fixture
def mixed(write_rows: Any, mixed_rows: Any) -> ConversationDataset:
    return load_conversations(write_rows(mixed_rows))


def spelt(processor: Any, batch: dict[str, torch.Tensor]) -> list[list[str]]:
    """Runs of response tokens of each sample."""
    found = []
    for ids, mask in zip(batch["input_ids"], batch["response_mask"], strict=True):
        runs, previous = [], False
        tokens = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
        for token, inside in zip(tokens, mask.tolist(), strict=True):
            if inside and not previous:
                runs.append("")
            if inside:
                runs[-1] += token
            previous = inside
        found.append(runs)
    return found


@pytest.mark.parametrize("family", IMAGE_PROCESSORS)
def test_a_mixed_batch_runs_and_equals_its_samples_alone(
    family: str, mixed: ConversationDataset
) -> None:
    processor: Any = image_processor_for(family)
    encoder = BatchEncoder(processor, max_length=None)
    batch = encoder(list(mixed))
    assert spelt(processor, batch) == EXPECTED[family]
    assert not batch["response_mask"][:, 0].any()
    ids = {
        name: processor.tokenizer.convert_tokens_to_ids(token)
        for name, token in MODEL_CHANGES[family].items()
    }
    model = tiny_model(family, vocab_size=len(processor.tokenizer), num_layers=2, changes=ids)
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    assert logits.shape[:2] == batch["input_ids"].shape
    for row, conversation in enumerate(mixed):
        alone = encoder([conversation])
        length = alone["input_ids"].shape[1]
        assert torch.equal(alone["input_ids"][0], batch["input_ids"][row, :length])
        assert torch.equal(response_ids(alone), response_ids(_row(batch, row)))
        with torch.no_grad():
            expected = model(**model_inputs(alone)).logits[0]
        torch.testing.assert_close(logits[row, :length], expected, rtol=1e-3, atol=1e-3)


def _row(batch: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: batch[name][row : row + 1] for name in ("input_ids", "response_mask")}


@pytest.mark.parametrize("family", IMAGE_PROCESSORS)
def test_inputs_are_those_of_transformers_own_rendering(
    family: str, mixed: ConversationDataset, as_turns: Callable[..., Any]
) -> None:
    processor: Any = image_processor_for(family)
    encoder = BatchEncoder(processor, max_length=None)
    for conversation in mixed:
        batch = model_inputs(encoder([conversation]))
        expected = processor.apply_chat_template(
            as_turns(conversation, parts=True),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert set(batch) == set(expected)
        for name, value in batch.items():
            assert torch.equal(value, torch.as_tensor(expected[name])), name


def test_a_batch_of_texts_alone_carries_no_pixels(talk: Any) -> None:
    for family in IMAGE_PROCESSORS:
        encoder = BatchEncoder(image_processor_for(family), max_length=None)
        batch = encoder([talk("What?", "red"), talk("Which of the two?", "blue")])
        assert not any("pixel" in name for name in batch)


def test_positions_predict_the_response_tokens(mixed: ConversationDataset) -> None:
    batch = BatchEncoder(image_processor_for("qwen2_vl"), max_length=None)(list(mixed))
    positions = response_positions(batch["response_mask"])
    ids = response_ids(batch)
    assert positions.shape == ids.shape == (batch["response_mask"].sum(),)
    assert torch.equal(batch["input_ids"].flatten()[positions + 1], ids)
    rows = positions // batch["input_ids"].shape[1]
    assert torch.equal(torch.bincount(rows), batch["response_mask"].sum(1))


def test_images_for_a_text_model_are_refused_by_sample(mixed: ConversationDataset) -> None:
    encoder = BatchEncoder(text_tokenizer("chatml"), max_length=None)
    assert encoder([mixed[0]])["input_ids"].shape[0] == 1
    with pytest.raises(DataError, match=r"train.jsonl:2 \(sample '1'\): .*reads text only"):
        encoder(list(mixed))


def test_a_conversation_beyond_the_limit_is_refused_with_both_numbers(
    mixed: ConversationDataset,
) -> None:
    processor = image_processor_for("qwen2_vl")
    length = BatchEncoder(processor, max_length=None)([mixed[1]])["input_ids"].shape[1]
    assert BatchEncoder(processor, max_length=length)([mixed[0], mixed[1]])
    with pytest.raises(
        DataError,
        match=rf"train.jsonl:2 \(sample '1'\): .*at most {length - 1} tokens; found {length} tok",
    ):
        BatchEncoder(processor, max_length=length - 1)([mixed[0], mixed[1]])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "smolvlm", "gemma3_vision", "internvl"])
def test_a_text_that_spells_the_image_placeholder_adds_no_image(
    family: str, write_rows: Any, chat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor: Any = image_processor_for(family)
    token = processor.image_token
    part = [{"type": "image", "path": "red.png"}, {"type": "text", "text": f"Why {token}?"}]
    rows = [
        chat(part, f"Say {token}{token} here."),
        chat([part[0], {"type": "text", "text": "Why?"}], "Say here."),
    ]
    dataset = load_conversations(write_rows(rows))
    encoder = BatchEncoder(processor, max_length=None)
    with caplog.at_level(logging.WARNING):
        batch = encoder(list(dataset))
        encoder(list(dataset))
    spelt = [record for record in caplog.records if "spells the control" in record.message]
    assert len(spelt) == 1
    expanded = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert expanded[0] == expanded[1]


def test_special_tokens_that_only_data_writes_are_left_alone(talk: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text_tokenizer("chatml").backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|box_start|>"]})
    tokenizer.chat_template = text_tokenizer("chatml").chat_template
    batch = BatchEncoder(tokenizer, max_length=None)([talk("Where?", "<|box_start|>1 2")])
    assert response_ids(batch)[0] == tokenizer.convert_tokens_to_ids("<|box_start|>")


def test_a_tokenizer_without_padding_pads_a_copy_with_its_end(talk: Any) -> None:
    tokenizer = text_tokenizer("llama2")
    assert tokenizer.pad_token is None
    batch = BatchEncoder(tokenizer, max_length=None)([talk("a", "b"), talk("a b c", "d e f")])
    assert tokenizer.pad_token is None
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert set(padding.tolist()) == {tokenizer.eos_token_id}
    assert not batch["response_mask"][batch["attention_mask"] == 0].any()


def test_a_beginning_is_written_once(mixed: ConversationDataset, talk: Any) -> None:
    for kind in ("llama2", "llama3", "gemma"):
        tokenizer = text_tokenizer(kind)
        batch = BatchEncoder(tokenizer, max_length=None)([talk("a", "b")])
        assert (batch["input_ids"] == tokenizer.bos_token_id).sum() == 1
    for family in ("llava", "gemma3_vision"):
        processor: Any = image_processor_for(family)
        batch = BatchEncoder(processor, max_length=None)(list(mixed))
        begins = batch["input_ids"] == processor.tokenizer.bos_token_id
        assert begins[:, 0].all()
        assert begins.sum() == len(mixed)


def test_an_image_that_the_processor_refuses_is_named_by_sample(
    write_rows: Any, chat: Any, folder: Path
) -> None:
    Image.new("RGB", (2000, 4)).save(folder / "thread.png")
    rows = [{**chat("<image>a", "b"), "image": name} for name in ("red.png", "thread.png")]
    dataset = load_conversations(write_rows(rows))
    encoder = BatchEncoder(image_processor_for("qwen2_vl"), max_length=None)
    with pytest.raises(DataError, match=r"train.jsonl:2 .*processor refuses.*aspect ratio"):
        encoder(list(dataset))


def test_a_corrupt_image_is_named_by_sample(write_rows: Any, chat: Any, folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    row = {**chat("<image>a", "b"), "image": "bad.png"}
    dataset = load_conversations(write_rows([row]))
    encoder = BatchEncoder(image_processor_for("qwen2_vl"), max_length=None)
    with pytest.raises(DataError, match=r"train.jsonl:1 .*bad\.png: image cannot be decoded"):
        encoder(list(dataset))


def test_a_template_that_writes_no_placeholders_is_refused(mixed: ConversationDataset) -> None:
    processor: Any = copy.deepcopy(image_processor_for("qwen2_vl"))
    processor.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(DataError, match=r"train.jsonl:2 .*expected 1 times .*; found 0"):
        BatchEncoder(processor, max_length=None)(list(mixed))


def test_a_template_of_strings_takes_images_too(mixed: ConversationDataset) -> None:
    processor: Any = copy.deepcopy(image_processor_for("qwen2_vl"))
    processor.chat_template = text_tokenizer("chatml").chat_template
    batch = BatchEncoder(processor, max_length=None)(list(mixed))
    assert spelt(processor, batch) == _CHATML
    assert len(batch["image_grid_thw"]) == 3


def test_a_processor_that_rewrites_the_text_is_refused(mixed: ConversationDataset) -> None:
    encoder = BatchEncoder(paligemma_processor(), max_length=None)
    with pytest.raises(ModelError, match="rewrites the chat template's text"):
        encoder([mixed[1]])


@pytest.mark.parametrize("limit", [512, None])
def test_transformers_warns_of_lengths_only_where_there_is_no_limit(
    limit: int | None, chat: Any, write_rows: Any
) -> None:
    tokenizer: Any = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.model_max_length = 4
    dataset = load_conversations(write_rows([chat("What is this?", "It is red.")]))
    BatchEncoder(tokenizer, max_length=limit)(dataset[:])
    warned = "sequence-length-is-longer-than-the-specified-maximum"
    assert tokenizer.deprecation_warnings.get(warned, False) == (limit is None)


def test_a_token_that_the_model_has_no_row_for_is_refused_by_sample(talk: Any) -> None:
    tokenizer = text_tokenizer("chatml")
    sample = talk("What colour?", "It is yellow.")
    ids = BatchEncoder(tokenizer, max_length=None)([sample])["input_ids"]
    highest = int(ids.max())
    enough = BatchEncoder(tokenizer, max_length=None, num_ids=highest + 1)
    assert torch.equal(enough([sample])["input_ids"], ids)
    few = BatchEncoder(tokenizer, max_length=None, num_ids=highest)
    with pytest.raises(
        DataError, match=rf"sample 'sample'.*ids below {highest}; found {highest}, "
    ):
        few([sample])


def test_a_padding_token_that_the_model_has_no_row_for_is_not_used(talk: Any) -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    samples = [talk("a", "It is red, and yellow."), talk("a", "b")]
    batch = BatchEncoder(tokenizer, max_length=None, num_ids=rows)(samples)
    assert batch["input_ids"].max() < rows
    assert BatchEncoder(tokenizer, max_length=None)(samples)["input_ids"].max() == rows
    assert tokenizer.pad_token == "<pad>"


def test_the_ids_that_a_model_takes_are_its_rows_and_its_placeholders() -> None:
    plain = transformers.LlamaConfig(vocab_size=100, pad_token_id=200)
    assert known_ids(plain) == 100
    sees = transformers.LlavaConfig(
        text_config=plain, vision_config=transformers.CLIPVisionConfig(), image_token_index=100
    )
    assert known_ids(sees) == 101


def test_the_ids_of_rows_beyond_the_vocabulary_are_known() -> None:
    config = transformers.Molmo2Config()
    assert known_ids(config) == config.text_config.vocab_size + 128 == 152064
    assert known_ids(config) > max(config.image_patch_id, config.low_res_image_start_token_id)
    assert known_ids(transformers.IdeficsConfig(vocab_size=100, additional_vocab_size=2)) == 102
    assert known_ids(transformers.LlamaConfig(vocab_size=100), 108) == 108


def test_an_encoder_takes_every_row_of_a_loaded_embedding(talk: Any) -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    decoder = bind_decoder(tiny_model("llama", vocab_size=rows), learns=False)
    backbone = Backbone("tiny", tokenizer, decoder, rows, "")
    sample = talk("a", "It is <extra>.")
    with pytest.raises(DataError, match=rf"ids below {rows}; found {rows}"):
        encoder_for(backbone, DataSection())([sample])
    model: Any = decoder.model
    model.set_input_embeddings(torch.nn.Embedding(rows + 8, 32))  # as Llama 3.2 Vision's
    assert encoder_for(backbone, DataSection())([sample])["input_ids"].max() == rows


def test_a_batch_that_mixes_short_and_long_positions_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = talks.conversation(talks.turn("user", "What?"), talks.turn("assistant", "red"))
    asked = talks.turn("user", "What? " * 30)
    long = talks.conversation(asked, talks.turn("assistant", "red"))
    encoder = BatchEncoder(text_tokenizer("chatml"), max_length=None, short_length=40)
    encoder([short, short])
    encoder([long, long])
    assert "LongRoPE" not in caplog.text
    encoder([long, short])
    assert "a text of more than 40 tokens, for which LongRoPE" in caplog.text
    assert "Set batch_size: 1 to read each text alone" in caplog.text
