"""What recording adds to a bare teacher pass, and how fast a record is read again.

The bare pass is the teacher's forward with its verbalizers, and the softmax through the head of
every tap and the output: that is what reading a layer as words means. Recording adds draws,
entropies and label log-probabilities, and packing the shard: codecs, checksums, the file.

Each small batch is passed both ways, one right after the other and in either order. The overhead is
the median of these pairs' ratios, since slow spells of the machine last longer than a pair.
Decoding is that of whole shards on one core, over the response tokens per second that a training
step of the student consumes (stage two, measured by student_step.py in the same run).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import student_step
import torch
from cache_size import DEFAULT
from harness import PrintedTable, benchmark, median_seconds, seconds
from material.teacher import Reading, Teacher, made_up_teacher, real_teacher, write_cache
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
    """Samples of a batch."""
    teacher: str = "SmolLM2-135M"


QUICK = Size(samples=8, teacher="made up")


class Pass:
    """The passes over the same batches, bare and recorded."""

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
        """Run forward, verbalizers, and the softmax of every tap."""
        features = self.teacher.features(batch)
        # the same number of rows at once as the recorder takes
        step = max(1, (1 << 26) // (self.head.num_rows * len(features)))
        for rows in chunks(len(features[0]), step):
            logits = self.head.logits(torch.stack([tap[rows] for tap in features]))
            torch.log_softmax(logits.float(), -1)

    def recorded(self, batch: dict[str, Any], dice: Tensor) -> SparseDistribution:
        """Run the same pass, and return what is recorded of it."""
        return self.recorder.record(self.teacher.features(batch), batch["labels"], dice)

    def pairs(self) -> list[tuple[float, float]]:
        """Time every batch bare and recorded. Which comes first alternates."""
        found: list[tuple[float, float]] = []
        start = 0
        for index, batch in enumerate(self.teacher.batches):
            dice = self.dice[start : start + len(batch["labels"])]
            start += len(dice)
            steps = (partial(self.bare, batch), partial(self.recorded, batch, dice))
            first = index % 2
            times = {first: seconds(steps[first])}
            times[1 - first] = seconds(steps[1 - first])
            found.append((times[0], times[1]))
        return found

    def writing(self, record: SparseDistribution) -> float:
        """Time the packing of all records into a cache on disk."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cache")
            return seconds(partial(write_cache, path, self.teacher, self.reading, record))


def overhead(one: Pass, rounds: int) -> dict[str, Any]:
    """Measure recording over the bare pass: its draws, and the shard that is written."""
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


def decode_tokens_per_second(one: Pass, repeats: int) -> float:
    """Decode response tokens with all taps, on one core, from a shard in the page cache."""
    reading = one.reading
    record = one.recorder.record(reading.features, reading.labels, one.dice)
    many = Reading(reading.features, reading.labels.repeat(repeats), reading.counts * repeats)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache")
        write_cache(path, one.teacher, many, SparseDistribution.concatenate([record] * repeats))
        cache = open_cache(path)
        speeds: list[float] = []
        for _ in range(3):
            start = time.process_time()  # all threads together: one core's worth
            count = sum(shard.num_tokens for shard in cache.iter_shards())
            speeds.append(count / (time.process_time() - start))
    return statistics.median(speeds)


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Measure both ratios."""
    real = size.teacher != "made up"
    make = real_teacher if real else made_up_teacher
    one = Pass(make(size.samples, batch_size=size.batch_size))
    added = overhead(one, rounds)
    decode = decode_tokens_per_second(one, 4)
    device = torch.device("cpu")
    student = student_step.Size() if real else student_step.QUICK
    step = median_seconds({"step": student_step.CONTENDERS["cached"](student, device)}, 1, device)
    consumption = student.tokens / step["step"]
    return {
        **added,
        "decode_over_consumption": decode / consumption,
        "decode_tokens_per_second": decode,
        "consumed_tokens_per_second": consumption,
        "size": {**asdict(size), "tokens": len(one.reading.labels)},
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show what recording adds, and how fast a record is read."""
    low, middle, high = result["recording_quartiles"]
    return [
        PrintedTable(
            f"{result['size']['tokens']:,} tokens of {result['size']['teacher']}",
            ("", "figure"),
            [
                ("overhead of recording", f"{result['overhead_ratio']:.1%}"),
                ("… of a batch", f"{middle:.1%}, quartiles {low:.1%} to {high:.1%}"),
                ("… of writing the shard", f"{result['writing_ratio']:.1%}"),
                ("decoding over consumption", f"{result['decode_over_consumption']:.0f} ×"),
            ],
        )
    ]


main = benchmark(measure, tables, full=Size(), quick=QUICK, on_cpu=True)

if __name__ == "__main__":
    main()
