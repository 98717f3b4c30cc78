"""What recording adds to a bare teacher pass, and how fast a record is read again.

The bare pass is the teacher's forward with its verbalizers, and the softmax through the head of
every tap and the output, which is what reading a layer as words means. Recording adds draws,
entropies and label log-probabilities, and packing the shard: codecs, checksums, the file. Each
small batch is passed both ways, one right after the other and in either order, and the median of
these pairs' ratios is told: a machine's slow spells last longer than a pair. Decoding is that of
whole shards on one core, over the response tokens per second that a training step of the student
consumes (stage two, measured by student_step.py in the same run).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import student_step
import torch
from cache_size import DEFAULT
from measurement import device_of, machine, median_seconds
from rich.console import Console
from teacher import Reading, Teacher, made_up_teacher, real_teacher, write_cache
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.objectives import chunks
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import open_cache


@dataclass(frozen=True)
class Size:
    """How much is recorded."""

    samples: int = 12
    batch_size: int = 2
    """Samples of a pair."""
    teacher: str = "SmolLM2-135M"


QUICK = Size(samples=8, teacher="made up")


class Pass:
    """The same batches, bare and recorded."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.head = teacher.head.real_rows(teacher.vocab_size)
        k, m = DEFAULT
        self.recorder = TapRecorder(self.head, k=k, m=m)
        self.reading = teacher.read()
        self.dice = torch.rand(
            len(self.reading.labels), len(self.reading.features), dtype=torch.float64
        )

    @torch.no_grad()
    def bare(self, batch: dict[str, Any]) -> None:
        """Forward, verbalizers, and the softmax of every tap."""
        features = self.teacher.features(batch)
        # the same number of rows at once as the recorder takes
        step = max(1, (1 << 23) // (self.head.num_rows * len(features)))
        for part in chunks(len(features[0]), step):
            logits = self.head.logits(torch.stack([tap[part] for tap in features]))
            torch.log_softmax(logits.float(), -1)

    def recorded(self, batch: dict[str, Any], dice: Tensor) -> SparseDistribution:
        """The same, as what is kept of it."""
        return self.recorder.record(self.teacher.features(batch), batch["labels"], dice)

    def pairs(self) -> list[tuple[float, float]]:
        """Seconds of every batch, bare and recorded; which comes first alternates."""
        found, start = [], 0
        for index, batch in enumerate(self.teacher.batches):
            dice = self.dice[start : start + len(batch["labels"])]
            start += len(dice)
            steps = (partial(self.bare, batch), partial(self.recorded, batch, dice))
            if index % 2:
                recorded, bare = _seconds(steps[1]), _seconds(steps[0])
            else:
                bare, recorded = _seconds(steps[0]), _seconds(steps[1])
            found.append((bare, recorded))
        return found

    def writing(self, record: SparseDistribution) -> float:
        """Seconds of packing it all into a cache on disk."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cache")
            return _seconds(partial(write_cache, path, self.teacher, self.reading, record))


def overhead(one: Pass, rounds: int) -> dict[str, Any]:
    """Of recording over the bare pass: of its draws, and of the shard that is written."""
    one.pairs()
    pairs = [one.pairs() for _ in range(rounds)]
    ratios = [recorded / bare for found in pairs for bare, recorded in found]
    low, middle, high = statistics.quantiles(ratios, n=4)
    bare = statistics.median(sum(bare for bare, _ in found) for found in pairs)
    record = one.recorder.record(one.reading.features, one.reading.labels, one.dice)
    writing = statistics.median(one.writing(record) for _ in range(rounds)) / bare
    return {
        "overhead_ratio": middle - 1 + writing,
        "recording_quartiles": [low - 1, middle - 1, high - 1],
        "writing_ratio": writing,
        "pairs": len(ratios),
        "bare_seconds": bare,
    }


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def decode_tokens_per_second(one: Pass, repeats: int) -> float:
    """Response tokens with all taps per second, on one core, from a shard in the page cache."""
    reading = one.reading
    record = one.recorder.record(reading.features, reading.labels, one.dice)
    many = Reading(reading.features, reading.labels.repeat(repeats), reading.counts * repeats)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache")
        write_cache(path, one.teacher, many, SparseDistribution.concatenate([record] * repeats))
        cache, taken = open_cache(path), []
        for _ in range(3):
            start = time.process_time()  # of all threads together: one core's worth
            count = sum(shard.num_tokens for shard in cache.iter_shards())
            taken.append(count / (time.process_time() - start))
    return float(np.median(taken))


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Both ratios."""
    device = torch.device("cpu")
    real = size.teacher != "made up"
    make = real_teacher if real else made_up_teacher
    one = Pass(make(size.samples, batch_size=size.batch_size))
    added = overhead(one, rounds)
    decode = decode_tokens_per_second(one, 4)
    student = student_step.Size() if real else student_step.QUICK
    step = median_seconds({"step": student_step.CONTENDERS["cached"](student, device)}, 1, device)
    consumption = student.tokens / step["step"]
    return {
        **added,
        "decode_over_consumption": decode / consumption,
        "decode_tokens_per_second": decode,
        "consumed_tokens_per_second": consumption,
        "size": {**asdict(size), "tokens": len(one.reading.labels)},
        "rounds": rounds,
        **machine(device),
    }


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--quick", is_flag=True, help="A made-up teacher: a smoke, not a measurement.")
@click.option("--device", default="cpu", hidden=True)
@click.option("--rounds", default=5, show_default=True, help="Timed passes of each batch.")
def main(as_json: bool, quick: bool, device: str, rounds: int) -> None:
    device_of(device)
    result = measure(QUICK if quick else Size(), rounds)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    console = Console()
    low, middle, high = result["recording_quartiles"]
    console.print(f"overhead of recording: {result['overhead_ratio']:.1%}")
    console.print(f"  of a batch: {middle:.1%}, quartiles {low:.1%} to {high:.1%}")
    console.print(f"  of writing the shard: {result['writing_ratio']:.1%}")
    console.print(f"decoding over consumption: {result['decode_over_consumption']:.0f} x")
    console.print(f"{result['size']}, {result['rounds']} rounds, {result['threads']} threads")


if __name__ == "__main__":
    main()
