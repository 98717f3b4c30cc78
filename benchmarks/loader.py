"""Whether the step of stage two ever waits for its batch, and how fast a cache is decoded.

The student has the size of SmolLM2-135M and the recipe's own objective. Its batches are made as
``train-student`` makes them. Samples come in the order of the cache. They are tokenized, validated
as those that the teacher read, and joined with their records. The cache is a real one of made-up
records. It is read from the beginning of an epoch, where nearly every sample needs a chunk that is
not decoded yet. Later in a window most chunks are decoded.

- data_wait_fraction: share of the loop's time between asking for a batch and having it, with one
  worker that reads ahead. The share without workers is reported beside it
- decode_over_consumption: response tokens per second of a pass over the whole cache in the order of
  training, on one core, over those per second of the step
"""

from __future__ import annotations

import os
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from harness import PrintedTable, benchmark, figures, in_fresh_process, wait_for
from material.made_up import byte_processor, made_up_manifest
from student_step import Size, build_student, trained

from vlsi_cache.data import BatchEncoder, Conversation, Message, TextPart, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.recipe import CacheSection
from vlsi_cache.store import SampleRecord, create_cache, open_cache
from vlsi_cache.student.cached.batches import CachedBatches
from vlsi_cache.student.cached.order import cache_order
from vlsi_cache.training.samples.loader import BatchReader, BatchSampler, make_loader
from vlsi_cache.training.samples.order import ProcessSlice, slice_batches

DRAWS = CacheSection().m


@dataclass(frozen=True)
class Load:
    """The student, and how much it reads."""

    student: Size
    samples: int
    samples_per_shard: int
    batch_size: int


FULL = Load(Size(candidates=7), samples=512, samples_per_shard=64, batch_size=1)
QUICK = Load(
    Size(64, 8, 4, 2, 128, 4096, tokens=128, candidates=2),
    samples=64,
    samples_per_shard=16,
    batch_size=1,
)


class Conversations:
    """Short questions with long answers, each of ``num_tokens`` with the template's tokens."""

    def __init__(self, count: int, num_tokens: int) -> None:
        generator = np.random.default_rng(1)
        letters = np.array([*string.ascii_lowercase, " "])
        self._answers = [
            "".join(row) for row in generator.choice(letters, (count, num_tokens - 24))
        ]

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: int) -> tuple[int, Conversation]:
        turns = (("user", "why"), ("assistant", self._answers[index]))
        messages = tuple(Message(role, (TextPart(text),)) for role, text in turns)
        return index, Conversation(f"s{index}", messages, "random")


def made_up_record(load: Load, item: tuple[int, Conversation], ids: Any) -> SampleRecord:
    """Make draws of token ids as frequent as words, mostly shared by neighbouring taps."""
    index, conversation = item
    generator = np.random.default_rng([2, index])
    shape = (len(ids), load.student.candidates + 1)
    steps = generator.normal(scale=0.02, size=(*shape, DRAWS))
    steps[:, 0] = generator.random((len(ids), DRAWS))
    ranks = load.student.vocabulary ** (steps.cumsum(1) % 1) - 1
    return SampleRecord(
        sample_id=conversation.sample_id,
        key=conversation.key(),
        response_ids=ids.numpy().astype(np.int32),
        distribution=SparseDistribution(
            token_ids=np.sort(ranks.astype(np.int32), axis=-1),
            top_log_probs=np.empty((*shape, 0), np.float32),
            entropy=generator.uniform(1, 4, shape).astype(np.float32),
            label_log_prob=-generator.exponential(2, shape).astype(np.float32),
        ),
    )


def write_cache(path: Path, load: Load, encoder: BatchEncoder, data: Conversations) -> None:
    """Write a complete cache of the conversations."""
    manifest = made_up_manifest(
        len(data),
        vocab_size=load.student.vocabulary,
        taps=load.student.teacher_taps,
        k=0,
        m=DRAWS,
        samples_per_shard=load.samples_per_shard,
    )
    writer = create_cache(path, manifest)
    collate = TokenBatches(encoder)
    for shard in range(manifest.num_shards):
        items = [data[index] for index in manifest.shard_range(shard)]
        tokens = [collate([item])["labels"] for item in items]
        writer.write_shard(
            shard, [made_up_record(load, *pair) for pair in zip(items, tokens, strict=True)]
        )


def slice_of(load: Load) -> ProcessSlice:
    """Return the slice of the only process, which is all samples."""
    return ProcessSlice(seed=0, batch_size=load.batch_size)


def decoded_tokens_per_second(path: Path, load: Load) -> float:
    """Decode the response tokens of every sample in the order of training, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    cache = open_cache(path)
    indices = [i for batch in slice_batches(cache_order(cache), slice_of(load), 0) for i in batch]
    start = time.perf_counter()
    num_tokens = sum(len(cache[index].response_ids) for index in indices)
    return num_tokens / (time.perf_counter() - start)


@dataclass(frozen=True)
class Loop:
    """Seconds of a training loop, batch by batch after the first."""

    waits: Sequence[float]
    steps: Sequence[float]
    num_tokens: int

    @property
    def wait_fraction(self) -> float:
        """The share of the whole time that was waited."""
        return sum(self.waits) / (sum(self.waits) + sum(self.steps))


def load_batches(
    path: Path,
    load: Load,
    encoder: BatchEncoder,
    data: Conversations,
    *,
    workers: int,
    device: torch.device,
) -> Iterable[dict[str, Any]]:
    """Load the batches of an epoch as stage two does."""
    cache = open_cache(path)
    return make_loader(
        BatchReader(data, CachedBatches(encoder, cache, "sample")),
        BatchSampler(cache_order(cache), slice_of(load)),
        workers=workers,
        pin_memory=device.type == "cuda",
    )


def run_loop(
    batches: Iterable[dict[str, Any]],
    step: Callable[[dict[str, Any]], object],
    rounds: int,
    device: torch.device,
) -> Loop:
    """Train on a few batches. The first, while workers start, is not timed."""
    waits: list[float] = []
    steps: list[float] = []
    num_tokens = 0
    iterator = iter(batches)
    step(next(iterator))
    for _ in range(rounds):
        wait_for(device)
        start = time.perf_counter()
        batch = next(iterator)
        given = time.perf_counter()
        step(batch)
        wait_for(device)
        waits.append(given - start)
        steps.append(time.perf_counter() - given)
        num_tokens += len(batch["labels"])
    return Loop(waits, steps, num_tokens)


def student_step(size: Size, device: torch.device) -> Callable[[dict[str, Any]], object]:
    """Return a whole optimizer step on any batch."""
    student = build_student(size, device, size.taps)
    given: dict[str, Any] = {}
    update = trained(student, lambda: student(**given)["loss"])

    def step(batch: dict[str, Any]) -> None:
        given.update(send_to_device(batch, device))
        given.pop("indices", None)  # for the stage's own account, not for the forward
        given.pop("weight")  # the loader's, not the module's
        update()

    return step


def measure(load: Load, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure the waits with and without a worker, and the decoding."""
    encoder = BatchEncoder(byte_processor(), max_length=None)
    data = Conversations(load.samples, load.student.tokens)
    step = student_step(load.student, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        write_cache(path, load, encoder, data)
        cache = open_cache(path)
        described = {
            "num_tokens": cache.num_tokens,
            "num_taps": load.student.candidates + 1,
            "draws": DRAWS,
            "bytes": cache.size_bytes(),
        }
        decoded = in_fresh_process(decoded_tokens_per_second, path, load)
        loops = []
        for workers in (1, 0):
            batches = load_batches(path, load, encoder, data, workers=workers, device=device)
            loops.append(run_loop(batches, step, rounds, device))
    ahead, alone = loops
    consumed = ahead.num_tokens / sum(ahead.steps)
    return {
        "data_wait_fraction": ahead.wait_fraction,
        "data_wait_fraction_without_workers": alone.wait_fraction,
        "decode_over_consumption": decoded / consumed,
        "decoded_tokens_per_second": decoded,
        "consumed_tokens_per_second": consumed,
        "seconds": {
            "step": median(ahead.steps),
            "wait": median(ahead.waits),
            "longest wait": max(ahead.waits),
            "wait without workers": median(alone.waits),
            "longest wait without workers": max(alone.waits),
        },
        "cache": described,
        "size": asdict(load),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the times, then the ratios."""
    cache = result["cache"]
    times = PrintedTable(
        f"a cache of {cache['num_tokens']} tokens and {cache['num_taps']} taps, "
        f"{result['size']['student']['tokens']} tokens a sample",
        ("", "seconds"),
        [(name, f"{value:.4f}") for name, value in result["seconds"].items()],
    )
    ratios = (
        "data_wait_fraction",
        "data_wait_fraction_without_workers",
        "decode_over_consumption",
        "decoded_tokens_per_second",
        "consumed_tokens_per_second",
    )
    return [times, figures("waiting and decoding", result, ratios)]


main = benchmark(measure, tables, full=FULL, quick=QUICK)

if __name__ == "__main__":
    main()
