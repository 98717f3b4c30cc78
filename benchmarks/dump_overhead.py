"""What a dump adds to a bare teacher pass, and how fast a record is read again.

Three passes over the same conversations take turns, so that a slow spell of the machine slows all:

- bare: the teacher's forward and its own output, without verbalizers
- verbalized: the same with the verbalizers, and the softmax through the head of every tap and the
  output: that is what reading a layer as words means
- dump: all of ``dump-teacher`` but loading and checking: rows, encoding, forward, verbalizers,
  draws, entropies and label log-probabilities, codecs, checksums, files and seals

The teachers have random weights in the shapes of real models, on random letters. The figures are
medians of the rounds' ratios. Ratios of CPU time stand beside them, for machines that others use.

Decoding is that of whole shards on one core, over the response tokens per second that a training
step of the student consumes (stage two, measured by student_step.py in the same run).
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import student_step
import torch
from cache_size import DEFAULT
from harness import PrintedTable, benchmark, median_seconds
from material.made_up import byte_processor, made_up_manifest
from material.teacher import Teacher
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.data import TokenBatches, encoder_for, load_data
from vlsi_cache.models import Backbone, bind_decoder, run_backbone
from vlsi_cache.objectives import chunks
from vlsi_cache.recipe import Recipe, VerbalizerSection, recipe_from_mapping
from vlsi_cache.recipe.partition import Partition
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.teacher.batches import KeyedBatches, ShardBatches
from vlsi_cache.teacher.filling import fill_cache
from vlsi_cache.teacher.reading import TeacherPass
from vlsi_cache.training import Run, TokenBound
from vlsi_cache.verbalizer import build_verbalizers

PASSES = ("bare", "verbalized", "dump")


@dataclass(frozen=True)
class Shape:
    """A teacher's shape, and how much it reads."""

    name: str
    hidden: int
    blocks: int
    heads: int
    key_value_heads: int
    expansion: int
    vocabulary: int
    taps: int
    samples: int
    batch_size: int
    """Samples of a batch."""
    tokens: int
    """About how many response tokens a sample has. The question has as many."""


@dataclass(frozen=True)
class Size:
    """The teachers, and the student that reads the record again."""

    shapes: tuple[Shape, ...]
    student: student_step.Size


FULL = Size(
    (
        Shape("SmolLM2-135M", 576, 30, 9, 3, 1536, 49_152, 7, 4, 2, 24),
        Shape("Qwen2.5-0.5B", 896, 24, 14, 2, 4864, 151_936, 7, 2, 1, 24),
    ),
    student_step.Size(),
)
QUICK = Size(
    (Shape("tiny", 64, 8, 4, 2, 128, 1024, 2, 8, 2, 10),),
    student_step.QUICK,
)


class Passes:
    """The passes over the same conversations.

    Args:
        shape: the teacher's shape.
        folder: where rows and caches go.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.folder = folder
        self.num_caches = 0
        rows = _write_rows(folder / "rows.jsonl", shape)
        cache = {"batch_size": shape.batch_size, "samples_per_shard": max(1, shape.samples // 2)}
        self.recipe: Recipe = recipe_from_mapping(
            {"data": {"path": str(rows)}, "cache": cache, "device": "cpu"}, where=__file__
        )
        self.data = load_data(self.recipe.data)
        self.backbone = _random_backbone(shape)
        decoder = self.backbone.decoder
        self.head = decoder.head.real_rows(shape.vocabulary)
        last = shape.blocks - 2
        taps = sorted({last * (index + 1) // shape.taps for index in range(shape.taps)})
        self.bank = build_verbalizers(decoder, taps, VerbalizerSection(), seed=0).eval()
        self.bank.requires_grad_(False)
        k, m, drawn_from = DEFAULT
        recorder = TapRecorder(self.head, k=k, m=m, drawn_from=drawn_from)
        self.teacher = TeacherPass(self.backbone, self.bank, recorder, 0)
        self.manifest = made_up_manifest(
            shape.samples,
            vocab_size=shape.vocabulary,
            taps=taps,
            k=k,
            m=m,
            drawn_from=drawn_from,
            samples_per_shard=self.recipe.cache.samples_per_shard,
        )
        self.batches = self._encoded()

    def _encoded(self) -> list[dict[str, Any]]:
        """Encode the batches that the dump makes."""
        tokens = TokenBatches(encoder_for(self.backbone, self.recipe.data))
        read = KeyedBatches(self.data, tokens, TokenBound(None), skip=False)
        writer = create_cache(self.folder / "unused", self.manifest)
        shards = writer.missing_shards()
        sampler = ShardBatches(
            self.data, writer, shards, self.shape.batch_size, lambda is_there, _: is_there
        )
        return [batch.inputs for indices in sampler for batch in read(indices) if batch.inputs]

    @torch.no_grad()
    def bare(self) -> None:
        """Run the teacher as it is, with the logits of the response tokens."""
        for batch in self.batches:
            _, final = run_backbone(self.backbone.decoder, (), batch["inputs"], batch["positions"])
            self.head.logits(final)

    @torch.no_grad()
    def verbalized(self) -> None:
        """Run the teacher with its verbalizers, and the softmax of every tap."""
        teacher = Teacher(self.backbone.decoder, self.shape.vocabulary, self.bank, self.batches)
        for batch in self.batches:
            features = teacher.features(batch)
            # the same number of rows at once as the recorder takes
            step = max(1, (1 << 26) // (self.head.num_rows * len(features)))
            for rows in chunks(len(features[0]), step):
                logits = self.head.logits(torch.stack([tap[rows] for tap in features]))
                torch.log_softmax(logits.float(), -1)

    def dump(self) -> None:
        """Write a whole new cache."""
        self.num_caches += 1
        writer = create_cache(self.newest(), self.manifest)
        run = Run(self.recipe, torch.device("cpu"), self.data, role="teacher")
        fill_cache(run, self.teacher, writer, Partition(), lambda _: None)

    def newest(self) -> Path:
        """Return the folder of the newest cache."""
        return self.folder / f"cache-{self.num_caches}"


def _write_rows(path: Path, shape: Shape) -> Path:
    """Write conversations of random letters, each a token, of half to one and a half the length."""
    dice = random.Random(0)
    lines = []
    for number in range(shape.samples):
        count = dice.randint(shape.tokens // 2, shape.tokens * 3 // 2)
        asked, said = ("".join(dice.choices("abcdefgh", k=count)) for _ in range(2))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        lines.append(json.dumps({"id": str(number), "messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _random_backbone(shape: Shape) -> Backbone:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.expansion,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Backbone("random", byte_processor(), bind_decoder(model), shape.vocabulary, "")


def measure_shape(shape: Shape, rounds: int, folder: Path) -> tuple[Passes, dict[str, Any]]:
    """Time the passes of one teacher in turn."""
    passes = Passes(shape, folder)
    steps: dict[str, Callable[[], None]] = {name: getattr(passes, name) for name in PASSES}
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in PASSES} for clock in clocks
    }
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = {clock: now() for clock, now in clocks.items()}
            step()
            if number:  # the first round warms up
                for clock, now in clocks.items():
                    taken[clock][name].append(now() - began[clock])
    result: dict[str, Any] = {
        "name": shape.name,
        "vocab": shape.vocabulary,
        "tokens": sum(len(batch["labels"]) for batch in passes.batches),
    }
    for clock, times in taken.items():
        for base in ("bare", "verbalized"):
            pairs = zip(times["dump"], times[base], strict=True)
            ratios = [dump / other for dump, other in pairs]
            suffix = "" if clock == "wall" else "_cpu"
            result[f"over_{base}{suffix}"] = statistics.median(ratios)
            result[f"over_{base}{suffix}_range"] = [min(ratios), max(ratios)]
    result["seconds"] = {name: statistics.median(times) for name, times in taken["wall"].items()}
    return passes, result


def decode_tokens_per_second(path: Path) -> float:
    """Decode response tokens with all taps, on one core, from shards in the page cache."""
    cache = open_cache(path)
    speeds: list[float] = []
    for _ in range(3):
        start = time.process_time()  # all threads together: one core's worth
        count = sum(shard.num_tokens for shard in cache.iter_shards())
        speeds.append(count / (time.process_time() - start))
    return statistics.median(speeds)


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Measure every teacher, and the decoding of the first one's record."""
    dumps = []
    decode = 0.0
    for number, shape in enumerate(size.shapes):
        with tempfile.TemporaryDirectory() as folder:
            passes, result = measure_shape(shape, rounds, Path(folder))
            dumps.append(result)
            decode = decode if number else decode_tokens_per_second(passes.newest())
    device = torch.device("cpu")
    student = size.student
    step = median_seconds({"step": student_step.CONTENDERS["cached"](student, device)}, 1, device)
    consumption = student.tokens / step["step"]
    return {
        "dumps": dumps,
        "overhead_ratio": max(found["over_verbalized"] for found in dumps),
        "decode_over_consumption": decode / consumption,
        "decode_tokens_per_second": decode,
        "consumed_tokens_per_second": consumption,
        "size": asdict(size),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show what a dump adds, and how fast a record is read."""
    return [
        PrintedTable(
            "a whole dump over the forward alone, and over the forward with verbalizers",
            ("teacher", "vocabulary", "over bare", "over verbalized", "the same in CPU time"),
            [
                (
                    found["name"],
                    f"{found['vocab']:,}",
                    f"{found['over_bare']:.2f}",
                    f"{found['over_verbalized']:.3f}",
                    f"{found['over_verbalized_cpu']:.3f}",
                )
                for found in result["dumps"]
            ],
        ),
        PrintedTable(
            "reading",
            ("", "figure"),
            [("decoding over consumption", f"{result['decode_over_consumption']:.0f} ×")],
        ),
    ]


main = benchmark(measure, tables, full=FULL, quick=QUICK, on_cpu=True)

if __name__ == "__main__":
    main()
