"""Small datasets on disk, with real images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlsi_cache.data import Conversation, Message, TextPart

WriteRows = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images of different sizes, one of them not in RGB."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    Image.new("RGB", (48, 24), "blue").save(tmp_path / "blue.jpg")
    (tmp_path / "more").mkdir()
    Image.new("LA", (24, 40), (128, 255)).save(tmp_path / "more" / "grey.png")
    return tmp_path


@pytest.fixture
def write_rows(folder: Path) -> WriteRows:
    def write(rows: Sequence[Any], name: str = "train.jsonl") -> Path:
        path = folder / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def mixed_rows() -> list[dict[str, Any]]:
    """A mixed batch: no image, one image with two turns, two images."""
    return [
        chat("What colour?", "red 4"),
        {**chat("<image>\nWhat colour?", "It is red.", "Which?", "4 blue"), "images": ["red.png"]},
        {
            "conversations": [
                {"from": "human", "value": "<image>\n<image>\nWhich is larger?"},
                {"from": "gpt", "value": "The second.\n\nYes"},
            ],
            "image": ["blue.jpg", "more/grey.png"],
        },
    ]


@pytest.fixture
def talk() -> Callable[..., Conversation]:
    def make(*texts: str, system: str | None = None) -> Conversation:
        turns = [*([("system", system)] if system else []), *zip(_roles(), texts, strict=False)]
        messages = tuple(Message(role, (TextPart(text),)) for role, text in turns)
        return Conversation("sample", messages, "talk:1")

    return make


def chat(*texts: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": role, "content": text} for role, text in zip(_roles(), texts, strict=False)
        ]
    }


def _roles() -> list[str]:
    return ["user", "assistant"] * 10


def as_turns(conversation: Conversation, *, parts: bool) -> list[Mapping[str, Any]]:
    """A conversation in the form of transformers' own chat templates."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": part.image.load()}
                for part in message.parts
            ]
            if parts
            else message.text,
        }
        for message in conversation.messages
    ]


@pytest.fixture(name="chat")
def _chat() -> Callable[..., dict[str, Any]]:
    return chat


@pytest.fixture(name="as_turns")
def _as_turns() -> Callable[..., list[Mapping[str, Any]]]:
    return as_turns
