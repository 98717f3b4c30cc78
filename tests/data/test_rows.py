"""A row becomes a conversation, or an error that names its line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from vlsi_cache.data import Conversation, ImagePart, TextPart, load_conversations
from vlsi_cache.errors import DataError

Outline = list[tuple[str, list[str]]]


def outline(conversation: Conversation) -> Outline:
    """Roles with texts and image names, short enough to compare."""
    return [
        (
            message.role,
            [
                part.text
                if isinstance(part, TextPart)
                else f"[{part.image.path.name if part.image.path else 'embedded'}]"
                for part in message.parts
            ],
        )
        for message in conversation.messages
    ]


def answered(content: Any, **columns: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "red"},
        ],
        **columns,
    }


def test_texts_and_system_messages_are_read(write_rows: Any) -> None:
    row = {
        "id": 7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What < image > is this?"},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "blue"},
        ],
    }
    (conversation,) = load_conversations(write_rows([row]))
    assert conversation.sample_id == "7"
    assert conversation.origin == "train.jsonl:1"
    assert outline(conversation) == [
        ("system", ["Be brief."]),
        ("user", ["What < image > is this?"]),
        ("assistant", ["red"]),
        ("user", ["And now?"]),
        ("assistant", ["blue"]),
    ]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ([{"type": "image", "path": "red.png"}, {"type": "text", "text": "What?"}], {}),
        ([{"type": "image", "image": "red.png"}, "What?"], {}),
        ([{"type": "image", "url": "red.png"}, {"type": "text", "text": "What?"}], {}),
        ([{"type": "image_url", "image_url": {"url": "red.png"}}, "What?"], {}),
        ([{"type": "image", "image": None, "path": "red.png"}, "What?"], {}),
        ([{"type": "image"}, {"type": "text", "text": "What?"}], {"images": ["red.png"]}),
        ([{"type": "image"}, "What?"], {"image": {"path": "red.png", "bytes": None}}),
        ("<image>\nWhat?", {"images": ["red.png"]}),
        ("<image>What?", {"image": "red.png"}),
    ],
)
def test_an_image_is_found_in_every_form_of_messages(
    content: Any, columns: dict[str, Any], write_rows: Any
) -> None:
    (conversation,) = load_conversations(write_rows([answered(content, **columns)]))
    assert outline(conversation)[0] == ("user", ["[red.png]", "What?"])
    assert conversation.images[0].load().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["data", "base64", "uri", "url", "column"])
def test_an_embedded_image_is_the_same_image(form: str, folder: Path, write_rows: Any) -> None:
    data = base64.b64encode((folder / "red.png").read_bytes()).decode()
    uri = f"data:image/png;base64,{data}"
    part = {
        "data": {"type": "image", "data": data},
        "base64": {"type": "image", "base64": data},
        "uri": {"type": "image", "data": uri},
        "url": {"type": "image_url", "image_url": {"url": uri}},
        "column": {"type": "image"},
    }[form]
    columns = {"images": [uri]} if form == "column" else {}
    rows = [
        answered([part, "What?"], **columns),
        answered([{"type": "image", "path": "red.png"}, "What?"]),
    ]
    embedded, by_path = load_conversations(write_rows(rows))
    assert embedded.images[0].data is not None
    assert embedded.images[0].digest() == by_path.images[0].digest()
    assert embedded.key() == by_path.key()


def test_an_absolute_path_and_a_file_url_name_the_file(folder: Path, write_rows: Any) -> None:
    path = folder / "red.png"
    rows = [
        answered([{"type": "image", "path": name}, "What?"])
        for name in (str(path), f"file://{path}")
    ]
    dataset = load_conversations(write_rows(rows))
    assert [conversation.images[0].path for conversation in dataset] == [path, path]


def test_llava_tags_stand_for_images_in_their_order(write_rows: Any) -> None:
    row = {
        "image": ["red.png", "blue.jpg", "more/grey.png"],
        "conversations": [
            {"from": "system", "value": "Look."},
            {"from": "human", "value": "<image>\nFirst?\n<image>\n"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "Third: <image>"},
            {"from": "gpt", "value": "grey"},
        ],
    }
    (conversation,) = load_conversations(write_rows([row]))
    assert outline(conversation) == [
        ("system", ["Look."]),
        ("user", ["[red.png]", "First?", "[blue.jpg]"]),
        ("assistant", ["red"]),
        ("user", ["Third: ", "[grey.png]"]),
        ("assistant", ["grey"]),
    ]


def test_a_key_depends_on_content_and_not_on_id_or_position(folder: Path, write_rows: Any) -> None:
    part = {"type": "image", "path": "red.png"}
    rows = [
        answered([part, "What?"], id="a"),
        answered([part, "What?"], id="b"),
        answered([part, "Wha", "t?"], id="c"),
        answered([{"type": "image", "path": "blue.jpg"}, "What?"], id="d"),
        answered(["What?", part], id="e"),
    ]
    keys = [conversation.key() for conversation in load_conversations(write_rows(rows))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{not json", "line is not JSON"),
        ("[1, 2]", "row is not a JSON object"),
        ({"words": "What?", "label": 1}, "found fields words, label"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "What?"}, "messages is not a list of turns"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "no turn is the assistant's"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role.*'robot'"),
        ({"conversations": [{"value": "x"}]}, "unknown role.*None"),
        (answered(3), "neither text nor a list of parts; found 3"),
        (answered([{"type": "video", "path": "a.mp4"}]), "unknown part of a message.*video"),
        (answered("<image><image>What?", images=["red.png"]), "expected 2 images.*found 1"),
        (
            answered([{"type": "image", "path": "a"}], images=["red.png"]),
            "expected 0 images.*found 1",
        ),
        (answered([{"type": "image"}]), "expected 1 image,.*found 0"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "expected 1 image,.*found 0",
        ),
        (answered([{"type": "image", "name": "red.png"}]), "image part names no image.*keys name"),
        (answered("<image>", images=[3]), "image field names no image.*found 3"),
        (answered([{"type": "image", "url": "https://x.org/a.png"}]), "image is remote"),
        (answered([{"type": "image", "data": "?!"}]), "not base64"),
        (answered([{"type": "image", "data": "data:image/svg,<svg/>"}]), "not base64"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": " \n"},
                ]
            },
            "response is empty",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
            "response is empty",
        ),
        (
            answered("x")
            | {"messages": [{"role": "assistant", "content": [{"type": "image", "path": "a"}]}]},
            "the assistant's turn holds an image",
        ),
    ],
)
def test_an_unsound_row_is_refused_in_one_line_with_its_number(
    row: Any, problem: str, write_rows: Any
) -> None:
    dataset = load_conversations(write_rows([answered("fine"), "", row]))
    assert dataset[0].sample_id == "0"
    for read in (dataset.validate, lambda: dataset[1]):
        with pytest.raises(DataError, match=problem) as caught:
            read()
        assert str(caught.value).startswith("train.jsonl:3: ")
        assert "\n" not in str(caught.value)


def test_a_part_that_is_both_tagged_and_listed_is_split(write_rows: Any) -> None:
    row = answered([{"type": "text", "text": "<image>\nWhat?"}], images=["red.png"])
    (conversation,) = load_conversations(write_rows([row]))
    assert isinstance(conversation.messages[0].parts[0], ImagePart)
    assert json.dumps(outline(conversation)[0]) == '["user", ["[red.png]", "What?"]]'
