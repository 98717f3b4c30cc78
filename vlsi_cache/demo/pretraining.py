"""Data and models that the demo starts from."""

from __future__ import annotations

from vlsi_cache.demo.dataset import load_questions, prepare_data
from vlsi_cache.demo.models import build_processor, save_untrained, share_vision_tower
from vlsi_cache.demo.plan import Demo, Role
from vlsi_cache.demo.training import train_from_scratch

__all__ = ["prepare", "pretrain"]

_NUM_BLOCKS: dict[Role, int] = {"teacher": 8, "student": 4}
_HIDDEN = 96


def prepare(demo: Demo) -> None:
    """Write the data, and both models with random weights."""
    prepare_data(
        demo.out / "data",
        num_train=demo.size.train_images,
        num_heldout=demo.size.heldout_images,
        seed=demo.seed,
    )
    asked = load_questions("train", demo.size.train_images)
    processor = build_processor(text for one in asked for text in (one.text, one.answer))
    for role, num_blocks in _NUM_BLOCKS.items():
        save_untrained(
            demo.untrained(role),
            processor,
            num_blocks=num_blocks,
            hidden_size=_HIDDEN,
            seed=demo.seed,
        )


def pretrain(demo: Demo) -> None:
    """Train the teacher until it is good, and the student a little, as a base model to improve."""
    _train(demo, "teacher", demo.size.teacher_steps)
    share_vision_tower(demo.untrained("student"), demo.pretrained("teacher"), demo.seeing_student)
    _train(demo, "student", demo.size.pretraining_steps)


def _train(demo: Demo, role: Role, steps: int) -> None:
    is_student = role == "student"
    train_from_scratch(
        demo.seeing_student if is_student else demo.untrained(role),
        demo.data.hurried if is_student else demo.data.train,
        demo.pretraining(role),
        steps=steps,
        batch_size=demo.size.batch_size,
        seed=demo.seed,
    )
