"""easy-VQA as conversations: JSONL in ``messages`` form beside its images.

All questions of an image are turns of a few conversations, which is several times the supervision
per image token of one question each.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlsi_cache.errors import StageError

__all__ = ["DemoData", "Question", "answer_floor", "load_questions", "prepare_data"]

_TURNS = 3
"""Questions per conversation: more answers per image token than one, less padding than all."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image."""

    image: Path
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class DemoData:
    """Files of the prepared data."""

    train: Path
    """Conversations to train on."""
    open_questions: Path
    """The training questions that name a shape or a colour, one each: a first look at images."""
    heldout: Path
    """Conversations about images that no model has trained on."""


def prepare_data(folder: Path, *, num_train: int, num_heldout: int, seed: int) -> DemoData:
    """Write train and held-out conversations; images are written once and kept.

    Every training image comes a second time mirrored: shapes and colours stay, pixels move.

    Args:
        folder: where to write.
        num_train: training images, before mirroring.
        num_heldout: held-out images.
        seed: of the order of questions and conversations.

    Raises:
        StageError: the package easy-vqa is not installed.
    """
    data = DemoData(
        train=folder / "train.jsonl",
        open_questions=folder / "open-questions.jsonl",
        heldout=folder / "heldout.jsonl",
    )
    if data.train.is_file():  # written last
        return data
    generator = random.Random(seed)  # noqa: S311 (an order, not a secret)
    _write(data.heldout, _pictures(load_questions("test", num_heldout), folder, False), generator)
    pictures = _pictures(load_questions("train", num_train), folder, True)
    _write(data.open_questions, _open_only(pictures), generator, turns=1)
    _write(data.train, pictures, generator)
    return data


def load_questions(split: str, num_images: int) -> list[Question]:
    """The questions about the first ``num_images`` images of ``train`` or ``test``.

    Raises:
        StageError: the package easy-vqa is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise StageError(
            "the demo's data set is not installed",
            expected="the package easy-vqa",
            mend="Run pip install 'vlsi-cache[demo]'",
        ) from error
    if split == "train":
        texts, answers, images = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
    else:
        texts, answers, images = easy_vqa.get_test_questions()
        paths = easy_vqa.get_test_image_paths()
    chosen = set(sorted(paths)[:num_images])
    return [
        Question(Path(paths[image]), text, answer)
        for text, answer, image in zip(texts, answers, images, strict=True)
        if image in chosen
    ]


def answer_floor(train: Sequence[Question], heldout: Sequence[Question]) -> float:
    """Accuracy of giving each question its commonest training answer, without looking."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_text[question.text][question.answer] += 1
    everywhere = Counter(question.answer for question in train)
    right = sum(
        (by_text[question.text] or everywhere).most_common(1)[0][0] == question.answer
        for question in heldout
    )
    return right / len(heldout)


def _pictures(
    questions: Sequence[Question], folder: Path, mirrored: bool
) -> dict[Path, list[Question]]:
    """Write the images, mirrored too if wanted; each with the questions about it."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    by_source: dict[Path, list[Question]] = defaultdict(list)
    for question in questions:
        by_source[question.image].append(question)
    pictures = {}
    for source, asked in by_source.items():
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
        name = f"{source.parent.parent.name}-{source.stem}"
        versions = {name: picture}
        if mirrored:
            versions[f"{name}-mirrored"] = ImageOps.mirror(picture)
        for version, image in versions.items():
            image.save(images / f"{version}.png")
            pictures[images / f"{version}.png"] = asked
    return pictures


def _open_only(pictures: dict[Path, list[Question]]) -> dict[Path, list[Question]]:
    """Without questions of yes and no; those about shapes, the hardest to see, come twice."""
    return {
        image: [
            question
            for question in asked
            for _ in range(1 if "color" in question.text else 2)
            if question.answer not in ("yes", "no")
        ]
        for image, asked in pictures.items()
    }


def _write(
    path: Path,
    pictures: dict[Path, list[Question]],
    generator: random.Random,
    turns: int = _TURNS,
) -> None:
    rows = [
        row
        for image, asked in pictures.items()
        for row in _conversations(image, path.parent, asked, generator, turns)
    ]
    generator.shuffle(rows)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    partial.replace(path)


def _conversations(
    image: Path, folder: Path, asked: Sequence[Question], generator: random.Random, turns: int
) -> Iterator[dict[str, Any]]:
    shuffled = generator.sample(list(asked), len(asked))
    for part, start in enumerate(range(0, len(shuffled), turns)):
        messages: list[dict[str, Any]] = []
        for position, question in enumerate(shuffled[start : start + turns]):
            content: list[dict[str, str]] = [{"type": "text", "text": question.text}]
            if position == 0:
                path = image.relative_to(folder).as_posix()
                content.insert(0, {"type": "image", "path": path})
            messages.append({"role": "user", "content": content})
            answer = [{"type": "text", "text": question.answer}]
            messages.append({"role": "assistant", "content": answer})
        yield {"id": f"{image.stem}-{part}", "messages": messages}
