"""Every image of a row stands where it belongs, or the row is refused by its field's name."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vlsi_cache.data import Conversation, ImagePart, TextPart, load_conversations, load_data
from vlsi_cache.errors import DataError
from vlsi_cache.recipe import DataSection

ANSWER = {"role": "assistant", "content": "red"}


def asked(content: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, ANSWER], **columns}


def llava(value: str, **columns: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "red"}]
    return {"conversations": turns, **columns}


def first(conversation: Conversation) -> list[str]:
    """The parts of the first turn, images by their names."""
    return [
        part.text if isinstance(part, TextPart) else Path(str(part.image.path)).name
        for part in conversation.messages[0].parts
    ]


def read(row: Any, write_rows: Any) -> Conversation:
    dataset = load_conversations(write_rows([row]))
    dataset.validate()
    return dataset[0]


BOTH = ["red.png", "blue.jpg"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (asked("q", images=BOTH), [*BOTH, "q"]),
        (asked("q", image="red.png"), ["red.png", "q"]),
        (asked([{"type": "text", "text": "q"}], images=BOTH), [*BOTH, "q"]),
        (llava("q", image="red.png"), ["red.png", "q"]),
        ({"texts": [{"user": "q", "assistant": "a"}], "images": BOTH}, [*BOTH, "q"]),
        ({"question": "q", "answer": "a", "image": "red.png"}, ["red.png", "q"]),
        ({"prompt": "q <image> r", "completion": "a", "image": "red.png"}, ["q ", "red.png", " r"]),
        (asked([{"type": "image", "index": 0}, "q"], images=BOTH[:1]), ["red.png", "q"]),
        (
            asked(["q", {"type": "image", "index": 1}, {"type": "image", "index": 0}], images=BOTH),
            ["q", "blue.jpg", "red.png"],
        ),
        (
            asked([{"type": "image", "index": 1, "text": None}, "q"], images=[None, "blue.jpg"]),
            ["blue.jpg", "q"],
        ),
        (asked([{"image": "red.png"}, {"text": "q"}]), ["red.png", "q"]),
        (asked([{"type": "input_image", "image_url": "red.png"}, "q"]), ["red.png", "q"]),
        (asked([{"type": "input_text", "text": "q"}]), ["q"]),
        (asked("q", image=""), ["q"]),
        (asked("q", image={}), ["q"]),
        (asked("q", images=[None]), ["q"]),
        (asked("q", images=["", None, {"bytes": None, "path": None}]), ["q"]),
        (asked("q", images=[], image=None, videos=[], audio=None), ["q"]),
        (llava("q", image=""), ["q"]),
        (asked("q <video>", name="clip"), ["q <video>"]),
        (asked("q", source="coco/1.jpg"), ["q"]),
        (asked("q", image_note="See the page of red.png"), ["q"]),
        (asked("<image>q", images=["red.png"], image=None), ["red.png", "q"]),
        (asked("<image>q <image>", images=["red.png"], image="blue.jpg"), [BOTH[0], "q ", BOTH[1]]),
        (asked([{"type": "image", "image": "red.png", "url": "red.png"}, "q"]), ["red.png", "q"]),
        (asked("q", image={"path": "red.png", "url": "http://x.org/1.jpg"}), ["red.png", "q"]),
        (asked("q", image={"path": "red.png", "source": "coco"}), ["red.png", "q"]),
        (asked("q", image={"source": "red.png"}), ["red.png", "q"]),
        (asked("q", image={"path": "more/../red.png", "image": "red.png"}), ["red.png", "q"]),
        (
            asked([{"type": "image_url", "image_url": {"url": "http://x.org/1"}, "path": BOTH[1]}]),
            ["blue.jpg"],
        ),
        (asked("q</image>", image="red.png"), ["red.png", "q</image>"]),
        (asked("<image>q <svg></image>", image="red.png"), ["red.png", "q <svg></image>"]),
        (
            asked([{"type": "image"}, "<svg><image/></image>"], image="red.png"),
            ["red.png", "<svg><image/></image>"],
        ),
        (asked("q <img src={a}></img>", image="red.png"), ["red.png", "q <img src={a}></img>"]),
    ],
)
def test_images_stand_where_they_belong(row: Any, expected: Any, write_rows: Any) -> None:
    assert first(read(row, write_rows)) == expected


def test_an_absolute_and_a_relative_name_of_one_file_agree(folder: Path, write_rows: Any) -> None:
    row = asked("q", image={"path": str(folder / "red.png"), "image": "red.png"})
    assert first(read(row, write_rows)) == ["red.png", "q"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile_image_url", "https://x.org/a.jpg"),
        ("photo_url", "https://x.org/a.png?w=9"),
        ("img", "https://x.org/red.JPG?w=9"),
        ("image_name", "gone.png"),
        ("image_id", "1.jpg"),
        ("images_before", ["gone.png"]),
        ("topic", "red.png"),
        ("file_name", "train.py"),
        ("path", "src/gone.png"),
        ("topic", "clip.mp4"),
        ("epic", "red.png"),
        ("avatar", {"path": "gone.png"}),
    ],
)
def test_what_a_row_of_text_says_of_images_is_listed(
    name: str, value: Any, folder: Path, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "clip.mp4").touch()
    dataset = load_conversations(write_rows([asked("q", **{name: value})]))
    dataset.validate()
    assert first(dataset[0]) == ["q"]
    assert dataset.columns_not_read() == [name]
    is_other = name in ("topic", "epic", "avatar", "file_name", "path")
    hint = "" if is_other else " (perhaps images)"
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"columns not read: {name}{hint}"]


def test_images_without_a_place_stand_before_the_first_question(write_rows: Any) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, *asked("q")["messages"]]}
    conversation = read({**row, "images": ["red.png"]}, write_rows)
    assert [len(message.parts) for message in conversation.messages] == [1, 2, 1]
    assert isinstance(conversation.messages[1].parts[0], ImagePart)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (asked("<image>\nq"), "the user's text holds <image>.*found no such field"),
        (asked("<image>\nq", images=None), "the user's text holds <image>.*images is None"),
        (asked("<image>\nq", images=[]), r"the user's text holds <image>.*images is \[\]"),
        (asked("<image>\nq", picture="red.png"), "holds <image>.*images in picture"),
        (asked("<image>\nq", pics=["red.png"]), "holds <image>.*images in pics"),
        (asked([{"type": "text", "text": "<image>\nq"}]), "the user's text holds <image>"),
        (llava("<image>\nq", picture="red.png"), "expected 1 image,.*found 0.*images in picture"),
        ({"question": "<image> q", "answer": "a"}, "the user's text holds <image>"),
        (asked("q", image_path="red.png"), r"a column holds images.*\{image_path: image\}"),
        (asked("q", file_name="red.png"), r"a column holds images.*\{file_name: image\}"),
        ({"text": "q", "file_names": ["red.png"]}, r"a column holds images.*found file_names"),
        (asked("q", filePath="more/grey.png"), "a column holds images.*found filePath"),
        (asked("q", file_name="clip.mp4"), r"names a video or a sound.*\{file_name: null\}"),
        (asked("q", audio_path=["clip.wav"]), "names a video or a sound.*audio_path: clip.wav"),
        (asked("q", imageFile="red.png"), "a column holds images.*found imageFile"),
        (asked("q", view=[{"bytes": None, "path": "red.png"}]), "a column holds images.*found vi"),
        (asked("q", pictures=["red.png"]), "a column holds images.*found pictures"),
        (asked("q", view={"bytes": "iVBORw0KGgoAAAAN"}), "a column holds images.*found view"),
        (asked("q", jpg_b64="/9j/4AAQSkZJRg"), "a column holds images.*found jpg_b64"),
        (asked("<image></image> q", image="red.png"), "a text holds </image>"),
        (asked("<image>\n</image>\nq", image="red.png"), "a text holds </image>"),
        (asked("q", image="red.png", images=["blue.jpg"]), "row has both images and image"),
        (
            asked([{"type": "image", "image": "red.png", "path": "blue.jpg"}, "q"]),
            "path and image name different images; found blue.jpg and red.png",
        ),
        (asked("Picture 1: <img>red.png</img>\nq"), "a text names an image in <img>"),
        (asked("<video>\nq", videos=["a.mp4"]), "row has videos, and nothing reads it"),
        (asked("q", video="a.mp4"), "row has video, and nothing reads it"),
        (asked("<audio>\nq", audios=["a.wav"]), "row has audios, and nothing reads it"),
        (asked("<video>\nq", frames=["red.png"]), "a text holds <video>, and.*found a file in fra"),
        (asked("<audio>\nq", speech="https://x.org/a.wav?x=1"), "a text holds <audio>, and noth"),
        (llava("<video>\nq", clip="a.mp4"), "a text holds <video>, and nothing reads videos.*clip"),
        (asked([{"type": "video", "video": "a.mp4"}]), "unknown part of a message.*video"),
        (asked([{"type": "audio", "audio": "a.wav"}]), "unknown part of a message.*audio"),
        (
            {"messages": [{"role": "user", "content": "q", "images": ["red.png"]}, ANSWER]},
            "the user's turn has images beside its content",
        ),
        (
            asked([{"type": "image", "path": "red.png", "max_pixels": 9}, "q"]),
            "an image part sets max_pixels, which is not read",
        ),
        (
            asked([{"type": "image", "resized_height": 9, "resized_width": 9}], images=["red.png"]),
            "an image part sets resized_height, resized_width",
        ),
        (
            asked([{"type": "image_url", "image_url": {"url": "red.png", "min_pixels": 3}}]),
            "an image part sets min_pixels",
        ),
        (asked([{"type": "image", "index": 2}], images=BOTH), "index below 2.*found index 2"),
        (asked([{"type": "image", "index": 1}]), "index below 0.*found index 1"),
        (asked([{"type": "image", "index": 1}], images=BOTH), "without a part for index 0"),
        (asked([{"type": "image", "index": "1"}], images=BOTH), "is not a number from 0"),
        (asked([{"type": "image", "index": -1}], images=BOTH), "is not a number from 0"),
        (
            asked([{"type": "image", "text": "q"}], images=["red.png"]),
            "a part of type image also holds text",
        ),
        (
            asked([{"type": "text", "text": "q", "image": "red.png"}]),
            "a part of type text also holds image",
        ),
        (asked([{"image": "red.png", "text": "q"}]), "unknown part of a message"),
        (
            {"messages": [{"role": "system", "content": "q"}, ANSWER], "images": ["red.png"]},
            "row has images, but no turn of the user",
        ),
        (asked("q", image="file://host/red.png"), "image is on another machine"),
        (asked("q", image="x" * 5000), "neither a path nor base64.*found 5,000 characters, 'xxx"),
        (asked("q", image="a\0b.png"), "neither a path nor base64"),
        (asked("q", image="iVBORw0KGgo" + "A" * 9000 + "!"), "neither a path nor base64"),
        (asked("q", image="a/\ud800.png"), "neither a path nor base64"),
    ],
)
def test_an_image_that_nothing_shows_is_refused(
    row: Any, problem: str, folder: Path, write_rows: Any
) -> None:
    for name in ("clip.mp4", "clip.wav"):
        (folder / name).touch()
    with pytest.raises(DataError, match=rf"^train.jsonl:1: .*{problem}") as caught:
        load_conversations(write_rows([row])).validate()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("form", ["column", "part", "lines", "urls", "bare", "uri"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF"])
def test_bare_base64_is_an_image(form: str, kind: str, write_rows: Any) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((9, 7), 50).convert("RGB").save(buffer, kind)
    text = base64.b64encode(buffer.getvalue()).decode()
    if form == "lines":
        text = base64.encodebytes(buffer.getvalue()).decode()
    if form == "urls":
        text = base64.urlsafe_b64encode(buffer.getvalue()).decode()
    if form == "bare":
        text = text.rstrip("=")
    if form == "uri":
        text = f"DATA:image/{kind.lower()};BASE64,{text}"
    row = (
        asked([{"type": "image", "image": text}, "q"]) if form == "part" else asked("q", image=text)
    )
    (image,) = read(row, write_rows).images
    assert image.data == buffer.getvalue()


def test_a_path_without_a_dot_stays_a_path(folder: Path, write_rows: Any) -> None:
    name = "a" * 60
    (folder / "red.png").rename(folder / name)
    assert read(asked("q", image=name), write_rows).images[0].path == folder / name


def test_urls_and_the_home_folder_name_files(
    folder: Path, write_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "a b#c.png").write_bytes((folder / "red.png").read_bytes())
    names = {
        f"file://{folder}/a%20b%23c.png": "a b#c.png",
        f"file://localhost{folder}/a%20b#c.png": "a b#c.png",
        f"file:{folder}/red.png": "red.png",
        "file:red.png": "red.png",
        "~/red.png": "red.png",
    }
    dataset = load_conversations(write_rows([asked("q", image=name) for name in names]))
    dataset.validate()
    assert [sample.images[0].path for sample in dataset] == [folder / n for n in names.values()]


def test_the_folder_of_an_unknown_user_is_a_name(folder: Path, write_rows: Any) -> None:
    dataset = load_conversations(write_rows([asked("q", image="~nobody-here/x.png")]))
    with pytest.raises(
        DataError, match=r"train.jsonl:1, .*~nobody-here/x.png: image file is missing"
    ):
        dataset.validate()


def test_an_image_root_is_where_relative_paths_start(folder: Path, write_rows: Any) -> None:
    (folder / "labels").mkdir()
    path = write_rows(
        [asked("q", image="red.png"), asked("q", image=str(folder / "blue.jpg"))],
        "labels/train.jsonl",
    )
    with pytest.raises(DataError, match=r"image file is missing.*data.image_root"):
        load_conversations(path).validate()
    dataset = load_data(DataSection(path=str(path), image_root=folder))
    dataset.validate()
    assert [sample.images[0].path for sample in dataset] == [folder / name for name in BOTH]


def test_an_image_root_that_is_not_there_is_warned_of(
    folder: Path, write_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_rows([asked("q")]))
    load_data(DataSection(path=path, image_root=folder))
    load_data(DataSection(path=path, image_root=folder / "nowhere")).validate()
    lines = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [line for line in lines if "image_root" in line] == [
        f"data.image_root: there is no such folder: {folder / 'nowhere'}. No picture is found"
    ]


def test_an_image_column_of_another_name_is_found_by_its_type(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "prepared")
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "photo": datasets.Image(),
        }
    )
    rows = [
        {"question": "q", "answer": "a", "photo": str(folder / "red.png")},
        {"question": "q", "answer": "a", "photo": None},
    ]
    path = str(folder / "rows.parquet")
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    with pytest.raises(DataError, match=r"a column holds images.*found photo.*photo: image"):
        load_conversations(path).validate()
    named = load_data(DataSection(path=path, columns={"photo": "image"}))
    named.validate()
    assert [len(sample.images) for sample in named] == [1, 0]
    without = load_data(DataSection(path=path, columns={"photo": None}))
    without.validate()
    assert [len(sample.images) for sample in without] == [0, 0]


def test_a_bound_on_pixels_comes_from_the_recipe(write_rows: Any) -> None:
    path = str(write_rows([asked("q", image="red.png")]))
    bounded = load_data(DataSection(path=path, max_pixels_per_image=32 * 32 - 1))
    with pytest.raises(DataError, match=r"1,023 pixels; found 32 × 32.*max_pixels_per_image"):
        bounded[0].images[0].load()
    free = load_data(DataSection(path=path, max_pixels_per_image=32 * 32))
    assert free[0].images[0].load().size == (32, 32)
    assert free[0].key() == bounded[0].key()
    assert DataSection().max_pixels_per_image == Image.MAX_IMAGE_PIXELS
