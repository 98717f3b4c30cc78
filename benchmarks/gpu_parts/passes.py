"""The teacher pass, everything counted, beside the forwards that it cannot do without."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material.made_up import byte_processor, made_up_manifest

from gpu_parts.clock import measured, released
from gpu_parts.shapes import Shapes, build_backbone
from vlsi_cache.data import TokenBatches, encoder_for, load_data
from vlsi_cache.models import Backbone, default_taps, run_backbone
from vlsi_cache.objectives import chunks
from vlsi_cache.recipe import Recipe, VerbalizerSection, recipe_from_mapping
from vlsi_cache.recipe.partition import Partition
from vlsi_cache.sampling import TapRecorder, streamed_tokens
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.teacher.filling import fill_cache
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run
from vlsi_cache.verbalizer import VerbalizerBank, build_verbalizers

__all__ = ["measure"]


def measure(shapes: Shapes, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure the dump of a few shards, from rows to sealed files, beside the same batches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = build_backbone(shapes.teacher, device, processor=byte_processor())
        taps = default_taps(shapes.teacher.blocks)
        bank = build_verbalizers(teacher.decoder, taps, VerbalizerSection(), seed=0)
        bank.eval().requires_grad_(False)
        if teacher.autocast:
            bank.to(torch.bfloat16)  # as dump-teacher does
        recipe = _recipe(folder, shapes)
        run = Run(recipe, device, load_data(recipe.data), role="teacher")
        dump = _Dump(run, teacher, bank, folder)
        forwards = _Forwards(run, teacher, bank)
        found = measured(
            {"bare": forwards.bare, "verbalized": forwards.verbalized, "dump": dump.fill},
            rounds,
            device,
        )
        seconds = {name: one["seconds"] for name, one in found.items()}
        tokens = dump.num_tokens
        del dump, forwards, teacher, bank
    released(device)
    return {
        "dump": {
            "name": shapes.teacher.name,
            "taps": len(taps),
            "tokens": tokens,
            "over_bare": seconds["dump"] / seconds["bare"],
            "over_verbalized": seconds["dump"] / seconds["verbalized"],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds["dump"],
            "peak_bytes": found["dump"]["peak_bytes"],
            "peaks": {name: one["peak_bytes"] for name, one in found.items()},
        }
    }


class _Dump:
    """Fills a new cache at each call, as dump-teacher does once its models are loaded."""

    def __init__(self, run: Run, teacher: Backbone, bank: VerbalizerBank, folder: Path) -> None:
        self.run = run
        settings = run.recipe.cache
        recorder = TapRecorder(
            teacher.head, k=settings.k, m=settings.m, drawn_from=settings.drawn_from
        )
        self.reads = TeacherPass(teacher, bank, recorder, run.recipe.seed)
        self.folder = folder
        self.count = 0

    def fill(self) -> None:
        """Write every shard, its seal and the index."""
        settings = self.run.recipe.cache
        manifest = made_up_manifest(
            len(self.run.data),
            vocab_size=self.reads.backbone.vocab_size,
            taps=self.reads.bank.taps,
            k=settings.k,
            m=settings.m,
            drawn_from=settings.drawn_from,
            samples_per_shard=settings.samples_per_shard,
        )
        self.count += 1
        writer = create_cache(self._path, manifest)
        fill_cache(self.run, self.reads, writer, Partition(), lambda _: None)
        writer.finish()

    @property
    def num_tokens(self) -> int:
        """Response tokens of the last cache."""
        return open_cache(self._path).num_tokens

    @property
    def _path(self) -> Path:
        return self.folder / f"cache-{self.count}"


class _Forwards:
    """Forwards over the same batches, which lie on the device already."""

    def __init__(self, run: Run, teacher: Backbone, bank: VerbalizerBank) -> None:
        self.teacher = teacher
        self.bank = bank
        collate = TokenBatches(encoder_for(teacher, run.recipe.data))
        samples = [(index, run.data[index]) for index in range(len(run.data))]
        size = run.recipe.cache.batch_size
        self.batches = [
            _moved(collate(samples[part]), teacher.device) for part in chunks(len(samples), size)
        ]

    @torch.no_grad()
    def bare(self) -> None:
        """The model alone, with the logits of its output at the response positions."""
        for batch in self.batches:
            _, final = run_backbone(self.teacher.decoder, (), batch["inputs"], batch["positions"])
            self._softmax([final])

    @torch.no_grad()
    def verbalized(self) -> None:
        """The model with its verbalizers, and the softmax of every tap and of the output."""
        decoder = self.teacher.decoder
        for batch in self.batches:
            positions = batch["positions"]
            states, final = run_backbone(decoder, self.bank.taps, batch["inputs"], positions)
            reads = [decoder.features(one) for one in self.bank(states, positions).values()]
            self._softmax([*reads, final])

    def _softmax(self, features: list[torch.Tensor]) -> None:
        """Take softmaxes of as many rows at once as the recorder takes."""
        head = self.teacher.head
        for tap in features:
            for part in chunks(len(tap), streamed_tokens(head.num_rows)):
                torch.softmax(head.logits(tap[part]), -1, dtype=torch.float32)


def _recipe(folder: Path, shapes: Shapes) -> Recipe:
    """A recipe over made-up conversations of the wanted lengths, a token to each letter."""
    generator = np.random.default_rng(1)
    letters = np.array([*string.ascii_lowercase, " "])
    frame = 40  # tokens of the template
    asked = max(shapes.length - shapes.responses - frame, 1)

    def text(length: int) -> str:
        return "".join(generator.choice(letters, length))

    rows = [
        [("user", text(asked)), ("assistant", text(shapes.responses))]
        for _ in range(shapes.samples)
    ]
    path = folder / "data.jsonl"
    lines = [
        {"id": f"s{index}", "messages": [{"role": role, "content": said} for role, said in row]}
        for index, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return recipe_from_mapping(
        {
            "data": {"path": str(path)},
            "cache": {"batch_size": shapes.batch, "samples_per_shard": shapes.shard},
            "output": str(folder / "run"),
        },
        where="benchmarks/gpu.py",
    )


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: _moved(value, device) if isinstance(value, dict) else value.to(device)
        for name, value in batch.items()
    }
