"""easy-VQA as conversations on disk."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from vlsi_cache.data import load_conversations
from vlsi_cache.demo.dataset import (
    WRONG_SHARE,
    DemoData,
    Question,
    answer_floor,
    load_questions,
    write_data,
)
from vlsi_cache.errors import StageError

NUM_TRAIN = 6
NUM_HELDOUT = 4


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _asked(rows: list[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
    """How often each (image, question, answer) is there."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        messages = row["messages"]
        image = messages[0]["content"][0]["path"]
        for user, assistant in zip(messages[::2], messages[1::2], strict=True):
            question = user["content"][-1]["text"]
            answer = assistant["content"][0]["text"]
            found[image, question, answer] += 1
    return found


def test_every_training_question_is_asked_and_those_for_a_shape_four_times(
    demo_data: DemoData,
) -> None:
    expected: Counter[tuple[str, str, str]] = Counter()
    for question in load_questions("train", NUM_TRAIN):
        weight = 4 if question.answer in ("circle", "rectangle", "triangle") else 1
        for suffix in ("", "-mirrored"):
            image = f"images/train-{question.image.stem}{suffix}.png"
            expected[image, question.text, question.answer] += weight
    assert _asked(_rows(demo_data.train)) == expected


def _by_question(path: Path) -> dict[tuple[str, str], set[str]]:
    """Answers by image and question."""
    found: dict[tuple[str, str], set[str]] = {}
    for image, question, answer in _asked(_rows(path)):
        found.setdefault((image, question), set()).add(answer)
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """Data of enough questions to count wrong answers."""
    return write_data(tmp_path_factory.mktemp("many"), num_train=120, num_heldout=1, seed=0)


def test_hurried_answers_are_those_questions_with_two_in_five_answers_wrong(
    many: DemoData,
) -> None:
    right, hurried = _by_question(many.train), _by_question(many.hurried)
    assert right.keys() == hurried.keys()
    assert all(len(answers) == 1 for answers in hurried.values())
    unmirrored = [key for key in right if "mirrored" not in key[0]]
    wrong = sum(right[key] != hurried[key] for key in unmirrored)
    spread = (WRONG_SHARE * (1 - WRONG_SHARE) / len(unmirrored)) ** 0.5
    assert len(unmirrored) > 900
    assert abs(wrong / len(unmirrored) - WRONG_SHARE) < 3 * spread


def test_a_wrong_answer_is_of_the_right_kind_and_the_same_for_the_mirrored_image(
    many: DemoData,
) -> None:
    right, hurried = _by_question(many.train), _by_question(many.hurried)
    shapes = {"circle", "rectangle", "triangle"}
    colours = set().union(*right.values()) - shapes - {"yes", "no"}
    assert len(colours) == 8
    kinds = ({"yes", "no"}, shapes, colours)
    for (image, question), answers in hurried.items():
        (kind,) = (kind for kind in kinds if right[image, question] <= kind)
        assert answers <= kind
        mirrored = image.replace(".png", "-mirrored.png")
        if "mirrored" not in image:
            assert hurried[mirrored, question] == answers


def test_every_held_out_question_is_also_a_conversation_of_its_own(demo_data: DemoData) -> None:
    rows = _rows(demo_data.questions)
    assert all(len(row["messages"]) == 2 for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert _asked(rows) == _asked(_rows(demo_data.heldout))


def test_every_held_out_question_is_asked_once_about_the_image_as_it_is(
    demo_data: DemoData,
) -> None:
    expected = Counter(
        (f"images/test-{one.image.stem}.png", one.text, one.answer)
        for one in load_questions("test", NUM_HELDOUT)
    )
    assert _asked(_rows(demo_data.heldout)) == expected


def test_conversations_have_one_image_and_at_most_three_turns(demo_data: DemoData) -> None:
    for row in _rows(demo_data.train):
        parts = [part["type"] for message in row["messages"] for part in message["content"]]
        assert parts.count("image") == 1
        assert parts[0] == "image"
        assert 2 <= len(row["messages"]) <= 6


def test_a_mirrored_image_is_the_image_mirrored(demo_data: DemoData) -> None:
    images = demo_data.train.parent / "images"
    mirrored = sorted(images.glob("train-*-mirrored.png"))
    assert len(mirrored) == NUM_TRAIN
    for path in mirrored:
        with Image.open(path) as found, Image.open(str(path).replace("-mirrored", "")) as source:
            assert found.tobytes() == ImageOps.mirror(source).tobytes()


def test_the_library_reads_the_conversations(demo_data: DemoData) -> None:
    for path in (demo_data.train, demo_data.hurried, demo_data.heldout, demo_data.questions):
        conversations = load_conversations(path)
        rows = _rows(path)
        assert [one.sample_id for one in conversations] == [row["id"] for row in rows]
        assert len(conversations.fingerprint()) == 64


def test_the_same_seed_gives_the_same_files(demo_data: DemoData, tmp_path: Path) -> None:
    sizes = {"num_train": NUM_TRAIN, "num_heldout": NUM_HELDOUT}
    again = write_data(tmp_path / "again", **sizes, seed=0)
    other = write_data(tmp_path / "other", **sizes, seed=1)
    assert again.train.read_bytes() == demo_data.train.read_bytes()
    assert again.heldout.read_bytes() == demo_data.heldout.read_bytes()
    assert again.hurried.read_bytes() == demo_data.hurried.read_bytes()
    assert other.train.read_bytes() != demo_data.train.read_bytes()


def test_finished_data_are_kept_and_interrupted_ones_written_again(tmp_path: Path) -> None:
    sizes = {"num_train": 2, "num_heldout": 1, "seed": 0}
    data = write_data(tmp_path, **sizes)
    expected = data.train.read_bytes()
    data.train.write_bytes(b"finished\n")
    assert write_data(tmp_path, **sizes).train.read_bytes() == b"finished\n"
    data.train.unlink()
    assert write_data(tmp_path, **sizes).train.read_bytes() == expected
    assert not list(tmp_path.glob("*.partial"))


def test_answering_without_looking_at_the_whole_set_scores_67_percent() -> None:
    train = load_questions("train", 4000)
    heldout = load_questions("test", 1000)
    assert (len(train), len(heldout)) == (38575, 9673)
    assert round(answer_floor(train, heldout), 3) == 0.670


def test_the_floor_is_each_questions_commonest_training_answer() -> None:
    image = Path("any.png")

    def ask(*pairs: tuple[str, str]) -> list[Question]:
        return [Question(image, text, answer) for text, answer in pairs]

    train = ask(("red?", "yes"), ("red?", "yes"), ("red?", "no"), ("shape?", "circle"))
    heldout = ask(("red?", "yes"), ("red?", "no"), ("shape?", "circle"), ("unheard?", "yes"))
    assert answer_floor(train, heldout) == 0.75


def test_without_the_data_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)  # as Python has it when an import failed
    with pytest.raises(StageError, match=r"pip install 'vlsi-cache\[demo\]'"):
        load_questions("train", 1)
