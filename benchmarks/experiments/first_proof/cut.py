"""The student: some blocks of the teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["cut_blocks", "start_again"]


def cut_blocks(teacher: Path, folder: Path, blocks: Sequence[int]) -> None:
    """Save the teacher with these blocks alone, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block] for block in blocks]
    state = {}
    for name, value in model.state_dict().items():
        before, layers, rest = name.partition(".layers.")
        if layers:
            number, _, rest = rest.partition(".")
            if int(number) not in blocks:
                continue
            name = f"{before}.layers.{blocks.index(int(number))}.{rest}"
        state[name] = value
    student: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.load_state_dict(state)
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)


def start_again(student: Path, folder: Path) -> None:
    """Save the student with random blocks. Embeddings, last norm and head stay as they are."""
    model: Any = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    torch.manual_seed(0)
    random: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    kept = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    random.load_state_dict(kept, strict=False)
    random.save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
