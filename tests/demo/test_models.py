"""The demo's processor and its untrained models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from vlsi_cache.data import BatchEncoder, load_conversations, model_inputs, response_ids
from vlsi_cache.demo.dataset import DemoData, load_questions
from vlsi_cache.demo.models import save_untrained

END = "<|im_end|>"


def test_each_answer_is_one_token(processor: Qwen2VLProcessor) -> None:
    answers = {question.answer for question in load_questions("train", 500)}
    assert len(answers) == 13
    for answer in answers:
        ids = processor.tokenizer(answer)["input_ids"]
        assert processor.tokenizer.convert_ids_to_tokens(ids) == [answer]


def test_responses_are_the_answer_and_the_end_of_turn(
    processor: Qwen2VLProcessor, demo_data: DemoData
) -> None:
    conversations = load_conversations(demo_data.heldout)
    batch = BatchEncoder(processor, max_length=None)(list(conversations))
    answers = [
        part.text
        for conversation in conversations
        for message in conversation.messages
        if message.role == "assistant"
        for part in message.parts
    ]
    expected = "".join(answer + END for answer in answers)
    assert processor.tokenizer.decode(response_ids(batch)) == expected


def test_an_image_takes_sixteen_tokens_and_the_model_takes_the_batch(
    processor: Qwen2VLProcessor, demo_data: DemoData, untrained: tuple[Path, Path]
) -> None:
    conversations = list(load_conversations(demo_data.heldout))
    batch = BatchEncoder(processor, max_length=None)(conversations)
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["input_ids"] == image_token).sum(1).tolist() == [16] * len(conversations)
    model: Any = AutoModelForImageTextToText.from_pretrained(untrained[0])
    assert type(model) is Qwen2VLForConditionalGeneration
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    assert logits.shape[:2] == batch["input_ids"].shape
    assert logits.isfinite().all()
    assert logits.shape[-1] >= len(processor.tokenizer)


def test_the_saved_processor_speaks_as_the_one_that_was_saved(
    processor: Qwen2VLProcessor, untrained: tuple[Path, Path], demo_data: DemoData
) -> None:
    loaded: Any = AutoProcessor.from_pretrained(untrained[0])
    conversations = list(load_conversations(demo_data.heldout))
    batches = [BatchEncoder(one, max_length=None)(conversations) for one in (processor, loaded)]
    assert batches[0].keys() == batches[1].keys()
    for name, value in batches[0].items():
        assert torch.equal(value, batches[1][name]), name


def test_a_model_stops_at_the_end_of_turn(
    processor: Qwen2VLProcessor, untrained: tuple[Path, Path]
) -> None:
    saved = json.loads((untrained[0] / "generation_config.json").read_text())
    assert saved["eos_token_id"] == processor.tokenizer.convert_tokens_to_ids(END)
    assert saved["pad_token_id"] == processor.tokenizer.pad_token_id


def test_the_seed_alone_decides_the_weights(
    processor: Qwen2VLProcessor, untrained: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in untrained)
    torch.manual_seed(1234)
    expected = torch.random.get_rng_state()
    folder = save_untrained(tmp_path / "m", processor, num_blocks=2, hidden_size=48, seed=1)
    assert torch.equal(torch.random.get_rng_state(), expected)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in first.items())
    assert not all(torch.equal(second[name], weight) for name, weight in first.items())


def test_a_finished_folder_is_kept(
    processor: Qwen2VLProcessor, untrained: tuple[Path, Path]
) -> None:
    weights = untrained[0] / "model.safetensors"
    written = weights.stat().st_mtime_ns
    save_untrained(untrained[0], processor, num_blocks=2, hidden_size=48, seed=7)
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize("num_blocks", [4, 8])
def test_the_demos_own_sizes_can_be_built(
    processor: Qwen2VLProcessor, tmp_path: Path, num_blocks: int
) -> None:
    folder = save_untrained(tmp_path, processor, num_blocks=num_blocks, hidden_size=96, seed=0)
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == num_blocks
    # as large as its files say: under two million parameters train in minutes
    assert sum(one.numel() for one in load_file(folder / "model.safetensors").values()) < 2e6
