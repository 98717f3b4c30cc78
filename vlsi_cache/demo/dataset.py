"""easy-VQA as conversations: JSONL in ``messages`` form beside its images.

All questions of an image are turns of a few conversations. This gives several times the supervision
per image token of one question to a conversation.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlsi_cache.errors import StageError
from vlsi_cache.files import write_whole

__all__ = [
    "WRONG_SHARE",
    "DemoData",
    "Question",
    "answer_floor",
    "load_questions",
    "write_data",
]

_TURNS = 3
"""Questions per conversation: more answers per image token than one, less padding than all."""
_SHAPE_WEIGHT = 4
"""How often a training question comes whose answer is a shape. One in ten is, yet shapes are the
hardest to see, and most yes-or-no questions can be answered without them."""

WRONG_SHARE = 0.4
"""Share of wrong answers among those given in a hurry. Paid annotators of CIFAR-100 were wrong at
as many (Wei et al., 2022). With exact answers there is little to gain from a teacher."""
_SHAPES = ("circle", "rectangle", "triangle")


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
    """Conversations with the right answers. The teacher trains on them."""
    hurried: Path
    """The same images and questions, with many wrong answers. This is all that students have."""
    heldout: Path
    """Conversations about images that no model has trained on."""
    questions: Path
    """The questions of those conversations, one by one."""

    @classmethod
    def within(cls, folder: Path) -> DemoData:
        """Name the files in a folder."""
        return cls(
            train=folder / "train.jsonl",
            hurried=folder / "hurried.jsonl",
            heldout=folder / "heldout.jsonl",
            questions=folder / "questions.jsonl",
        )


def write_data(folder: Path, *, num_train: int, num_heldout: int, seed: int) -> DemoData:
    """Write train and held-out conversations with their images. Finished data are kept.

    The training conversations are written twice: with the right answers, and as someone in a hurry
    would answer them. There two in five answers are wrong, and each is of the right kind.

    Every training image comes a second time mirrored: shapes and colours stay, pixels move.
    Questions that ask for a shape come several times. Held-out data are not changed.

    Args:
        folder: Folder to write.
        num_train: Number of training images, before mirroring.
        num_heldout: Number of held-out images.
        seed: Seed of the order of questions and conversations.

    Raises:
        StageError: The package easy-vqa is not installed.
    """
    data = DemoData.within(folder)
    if data.train.is_file():  # written last
        return data
    generator = random.Random(seed)  # noqa: S311 (an order, not a secret)
    heldout = _pictures(load_questions("test", num_heldout), folder, False)
    _write(data.heldout, heldout, generator)
    _write(data.questions, heldout, random.Random(seed), turns=1)  # noqa: S311
    pictures = _pictures(load_questions("train", num_train), folder, True)
    answered = _answered_in_a_hurry(pictures, generator)
    for path, found in ((data.hurried, answered), (data.train, pictures)):
        weighted = {image: list(_weighted(asked)) for image, asked in found.items()}
        _write(path, weighted, generator)
    return data


def load_questions(split: str, num_images: int) -> list[Question]:
    """Load the questions about the first ``num_images`` images of ``train`` or ``test``.

    Raises:
        StageError: The package easy-vqa is not installed.
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
    """Return the accuracy of giving each question its commonest training answer."""
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
    """Write the images, mirrored too if wanted, and return each with its questions."""
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


def _answered_in_a_hurry(
    pictures: dict[Path, list[Question]], generator: random.Random
) -> dict[Path, list[Question]]:
    """Replace answers by wrong ones of the same kind. An image and its mirror have the same."""
    kinds = _kinds(one.answer for asked in pictures.values() for one in asked)
    answers: dict[Question, str] = {}
    for asked in pictures.values():
        for one in asked:
            if one not in answers:
                wrong = [other for other in kinds[one.answer] if other != one.answer]
                is_wrong = generator.random() < WRONG_SHARE and bool(wrong)
                answers[one] = generator.choice(wrong) if is_wrong else one.answer
    return {
        image: [replace(one, answer=answers[one]) for one in asked]
        for image, asked in pictures.items()
    }


def _kinds(answers: Iterable[str]) -> dict[str, list[str]]:
    """Return for each answer all answers of its kind: yes and no, shapes, or colours."""
    everything = sorted(set(answers))
    kinds = [("yes", "no"), _SHAPES, [a for a in everything if a not in ("yes", "no", *_SHAPES)]]
    return {
        answer: [other for other in everything if other in kind]
        for kind in kinds
        for answer in kind
    }


def _weighted(asked: Sequence[Question]) -> Iterator[Question]:
    """Yield each question once, and those whose answer is a shape several times."""
    for question in asked:
        names_shape = question.answer not in ("yes", "no") and "color" not in question.text
        yield from [question] * (_SHAPE_WEIGHT if names_shape else 1)


def _write(
    path: Path,
    pictures: dict[Path, list[Question]],
    generator: random.Random,
    turns: int = _TURNS,
) -> None:
    rows = [
        row
        for image, asked in pictures.items()
        for row in _conversations(image, path.parent, generator.sample(asked, len(asked)), turns)
    ]
    generator.shuffle(rows)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def _conversations(
    image: Path, folder: Path, asked: Sequence[Question], turns: int
) -> Iterator[dict[str, Any]]:
    for part, start in enumerate(range(0, len(asked), turns)):
        messages: list[dict[str, Any]] = []
        for position, question in enumerate(asked[start : start + turns]):
            content: list[dict[str, str]] = [{"type": "text", "text": question.text}]
            if position == 0:
                path = image.relative_to(folder).as_posix()
                content.insert(0, {"type": "image", "path": path})
            messages.append({"role": "user", "content": content})
            answer = [{"type": "text", "text": question.answer}]
            messages.append({"role": "assistant", "content": answer})
        yield {"id": f"{image.stem}-{part}", "messages": messages}
