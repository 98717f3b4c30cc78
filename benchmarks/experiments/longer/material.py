"""The teacher and the prompts: downloaded, made up, or from a folder where nothing is reached."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import click
from material import assets
from material.made_up import save_small_model

from experiments.longer.setting import Setting

__all__ = ["Material", "find_material", "make_material"]

_TEACHER = "teacher"
_PROMPTS = "prompts.jsonl"
_MADE_UP_PROMPTS = 48


@dataclass(frozen=True)
class Material:
    """A teacher's checkpoint, and what it is asked."""

    teacher: Path
    prompts: list[str]


def find_material(setting: Setting, folder: Path | None) -> Material:
    """Return the material of a folder, or make it where none is given."""
    if folder is not None:
        for name in (_TEACHER, _PROMPTS):
            if not (folder / name).exists():
                raise click.UsageError(f"{folder} holds no {name}. --make-material writes it")
        lines = (folder / _PROMPTS).read_text(encoding="utf-8").splitlines()
        teacher = (folder / _TEACHER).resolve()
        return Material(teacher, [json.loads(line)["prompt"] for line in lines])
    if setting.made_up:
        teacher = setting.folder / _TEACHER
        save_small_model(teacher, num_blocks=6)
        return Material(teacher, [f"what is number {i}" for i in range(_MADE_UP_PROMPTS)])
    return Material(assets.smollm2(), assets.prompts())


def make_material(folder: Path) -> None:
    """Write the folder that a machine without downloads is given."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(assets.smollm2(), folder / _TEACHER, dirs_exist_ok=True)
    rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in assets.prompts()]
    (folder / _PROMPTS).write_text("".join(rows), encoding="utf-8")
