"""Whether a step of stage two waits for its batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loader import Conversations, Load, load_batches, run_loop, student_step, write_cache
from material.made_up import byte_processor
from student_step import Size

from gpu_parts.shapes import Shapes
from vlsi_cache.data import BatchEncoder

__all__ = ["measure"]


def measure(shapes: Shapes, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure the waits of a step on the smallest student, with one worker that reads ahead."""
    shape = shapes.students[0]
    size = Size(
        shape.hidden,
        shape.blocks,
        shape.heads,
        shape.key_value_heads,
        shape.expansion,
        shape.vocabulary,
        tokens=shapes.length,
        candidates=shapes.candidates[-1],
        entries=shapes.entries,
    )
    load = Load(size, shapes.loaded, shapes.shard, shapes.batch)
    encoder = BatchEncoder(byte_processor(), max_length=None)
    data = Conversations(load.samples, size.tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache")
        write_cache(path, load, encoder, data)
        batches = load_batches(path, load, encoder, data, workers=1, device=device)
        loop = run_loop(batches, student_step(size, device), rounds, device)
    return {
        "loader": {
            "name": shape.name,
            "wait_fraction": loop.wait_fraction,
            "seconds": {
                "step": median(loop.steps),
                "wait": median(loop.waits),
                "longest wait": max(loop.waits),
            },
            "tokens_per_second": loop.num_tokens / (sum(loop.steps) + sum(loop.waits)),
            "peak_bytes": torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else None,
        }
    }
