"""Data and models that the demo starts from."""

from __future__ import annotations

from vlsi_cache.demo.dataset import load_questions, write_data
from vlsi_cache.demo.models import build_processor, save_untrained, share_vision_tower
from vlsi_cache.demo.plan import Demo, Role
from vlsi_cache.demo.training import train_from_scratch

__all__ = ["prepare", "pretrain_student", "pretrain_teacher"]

_TEACHER_BLOCKS = 8
_STUDENT_BLOCKS = 4
_HIDDEN = 96


def prepare(demo: Demo) -> None:
    """Write the data."""
    write_data(
        demo.out / "data",
        num_train=demo.size.train_images,
        num_heldout=demo.size.heldout_images,
        seed=demo.seed,
    )


def pretrain_teacher(demo: Demo) -> None:
    """Train the teacher on right answers until it is good."""
    _save_untrained(demo, "teacher", _TEACHER_BLOCKS, demo.seed)
    train_from_scratch(
        demo.untrained("teacher"),
        demo.data.train,
        demo.pretraining("teacher"),
        steps=demo.size.teacher_steps,
        batch_size=demo.size.batch_size,
        seed=demo.seed,
    )


def pretrain_student(demo: Demo) -> None:
    """Train the student a little on hurried answers, as a base model to improve."""
    _save_untrained(demo, "student", _STUDENT_BLOCKS, demo.student_seed)
    share_vision_tower(demo.untrained("student"), demo.pretrained("teacher"), demo.seeing_student)
    train_from_scratch(
        demo.seeing_student,
        demo.data.hurried,
        demo.pretraining("student"),
        steps=demo.size.pretraining_steps,
        batch_size=demo.size.batch_size,
        seed=demo.student_seed,
    )


def _save_untrained(demo: Demo, role: Role, num_blocks: int, seed: int) -> None:
    asked = load_questions("train", demo.size.train_images)
    processor = build_processor(text for one in asked for text in (one.text, one.answer))
    save_untrained(
        demo.untrained(role), processor, num_blocks=num_blocks, hidden_size=_HIDDEN, seed=seed
    )
