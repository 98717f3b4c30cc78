"""Whole small runs: a teacher, a student, conversations and a recipe, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from support.families import tiny_model
from support.processors import MODEL_CHANGES, image_processor_for, text_tokenizer
from vlsi_cache.recipe import Recipe, recipe_from_mapping

__all__ = [
    "changed",
    "make_recipe",
    "poison",
    "save_image_model",
    "save_text_model",
    "with_section",
    "write_conversations",
]

_COLOURS = ("red", "green", "blue", "yellow", "white", "black")


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other values: a mapping is laid over its section, anything else replaces."""
    raw = recipe.model_dump(mode="json")
    for section, change in changes.items():
        raw[section] = {**raw[section], **change} if isinstance(change, dict) else change
    return recipe_from_mapping(raw, where="test")


def with_section(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    """The recipe with values of a section replaced as they are, unvalidated."""
    other = getattr(recipe, section).model_copy(update=changes)
    return recipe.model_copy(update={section: other})


def save_text_model(
    folder: Path,
    *,
    family: str = "llama",
    num_layers: int = 8,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A tiny causal language model with a ChatML tokenizer, as ordinary files."""
    tokenizer = text_tokenizer("chatml")
    # padded rows on purpose: they must never be drawn, nor enter a softmax
    vocab_size = len(tokenizer) + 7
    model = tiny_model(
        family, vocab_size=vocab_size, num_layers=num_layers, seed=seed, changes=changes
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_image_model(
    folder: Path, *, family: str = "qwen2_vl", num_layers: int = 8, seed: int = 0
) -> Path:
    """A tiny image-text-to-text model with its real processor, as ordinary files."""
    processor: Any = image_processor_for(family)
    tokenizer = processor.tokenizer
    changes = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in MODEL_CHANGES[family].items()
    }
    model = tiny_model(
        family, vocab_size=len(tokenizer) + 7, num_layers=num_layers, seed=seed, changes=changes
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_conversations(path: Path, count: int, *, images: bool = False) -> Path:
    """Conversations of one to three turns in ``messages`` form; every second one has an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        messages: list[dict[str, Any]] = []
        for turn in range(1 + number % 3):
            colour = _COLOURS[(number + turn) % len(_COLOURS)]
            asked: list[dict[str, str]] = [{"type": "text", "text": f"What is {number + turn}?"}]
            if images and turn == 0 and number % 2 == 0:
                name = f"{number}.png"
                Image.new("RGB", (16, 16), colour).save(path.parent / name)
                asked.insert(0, {"type": "image", "path": name})
            content: Any = asked if images else asked[0]["text"]
            messages.append({"role": "user", "content": content})
            said = f"The {colour} one"
            messages.append(
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": said}] if images else said,
                }
            )
        rows.append({"id": f"s{number}", "messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_recipe(
    folder: Path, *, images: bool = False, num_samples: int = 12, **changes: Any
) -> Recipe:
    """A recipe of a few steps per stage over freshly written models and conversations.

    Args:
        folder: where everything goes.
        images: Qwen2-VL with images instead of Llama with text.
        num_samples: conversations.
        changes: whole sections to lay over the recipe.
    """
    save = save_image_model if images else save_text_model
    schedule = {
        "steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-6,
        "warmup_steps": 0,
        "log_every": 1,
    }
    raw: dict[str, Any] = {
        "teacher": {
            "model": str(save(folder / "teacher", seed=1)),
            "taps": [1, 3, 5],
            "verbalization": schedule,
        },
        "student": {
            "model": str(save(folder / "student-base", num_layers=4, seed=2)),
            "taps": [0, 2],
            "verbalization": schedule,
        },
        "data": {
            "path": str(write_conversations(folder / "data.jsonl", num_samples, images=images))
        },
        "cache": {"samples_per_shard": 5, "batch_size": 2},
        "interaction": {
            **schedule,
            "verbalizer_learning_rate": 1e-2,
            "lora": {"rank": 4, "alpha": 4},
        },
        "finetuning": schedule,
        "output": str(folder / "run"),
        "device": "cpu",
    }
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    return recipe_from_mapping(raw, where="test")


def poison(model: Path) -> None:
    """Make every sequence with the letter Q NaN: no other conversation has one."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    (token,) = set(tokenizer("Q", add_special_tokens=False)["input_ids"])
    state = load_file(model / "model.safetensors")
    (name,) = (name for name in state if name.endswith("embed_tokens.weight"))
    state[name][token] = float("nan")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
