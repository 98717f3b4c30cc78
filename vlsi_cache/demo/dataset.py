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

_TURNS = (1, 3, 8)
"""Lengths that an image's questions are split into; single turns are what is scored."""


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
    data = DemoData(folder / "train.jsonl", folder / "heldout.jsonl")
    if data.train.is_file() and data.heldout.is_file():
        return data
    generator = random.Random(seed)  # noqa: S311 (an order, not a secret)
    _write(data.heldout, load_questions("test", num_heldout), False, generator)
    _write(data.train, load_questions("train", num_train), True, generator)
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


def _write(
    path: Path, questions: Sequence[Question], mirrored: bool, generator: random.Random
) -> None:
    images = path.parent / f"{path.stem}-images"
    images.mkdir(parents=True, exist_ok=True)
    by_image: dict[Path, list[Question]] = defaultdict(list)
    for question in questions:
        by_image[question.image].append(question)
    rows: list[dict[str, Any]] = []
    for source, asked in by_image.items():
        picture = Image.open(source).convert("RGB")
        versions = {source.stem: picture}
        if mirrored:
            versions[f"{source.stem}-mirrored"] = ImageOps.mirror(picture)
        for name, version in versions.items():
            target = images / f"{name}.png"
            version.save(target)
            rows += _conversations(name, target.relative_to(path.parent), asked, generator)
    generator.shuffle(rows)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    partial.replace(path)


def _conversations(
    name: str, image: Path, asked: Sequence[Question], generator: random.Random
) -> Iterator[dict[str, Any]]:
    shuffled = generator.sample(list(asked), len(asked))
    part = 0
    while shuffled:
        length = generator.choice(_TURNS)
        turns, shuffled = shuffled[:length], shuffled[length:]
        messages: list[dict[str, Any]] = []
        for position, turn in enumerate(turns):
            content: list[dict[str, str]] = [{"type": "text", "text": turn.text}]
            if position == 0:
                content.insert(0, {"type": "image", "path": image.as_posix()})
            messages.append({"role": "user", "content": content})
            answer = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "assistant", "content": answer})
        yield {"id": f"{name}-{part}", "messages": messages}
        part += 1
