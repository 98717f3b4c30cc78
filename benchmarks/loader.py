"""Whether the step of stage two ever waits for its batch, and how fast a cache is decoded.

The student has the size of SmolLM2-135M and the recipe's own objective; its batches come as
``train-student`` makes them: samples in the order of the cache, tokenized, proved to be those the
teacher was read at, and joined with the records. The cache is a real one of made-up records, and is
read from the beginning of an epoch, where nearly every sample wants a chunk that nobody has decoded
yet: later in a window most are there already.

- data_wait_fraction: of the loop's time, what passes between asking for a batch and having it, with
  one worker that reads ahead; the same without workers is told beside it
- decode_over_consumption: response tokens per second of a pass over the whole cache in the order of
  training, on one core, over those per second of the step
"""

from __future__ import annotations

import json
import os
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from accelerate.utils import send_to_device
from made_up import byte_processor
from measurement import device_of, in_fresh_process, machine, wait_for
from rich.console import Console
from rich.table import Table
from student_step import Size, build_student, trained

from vlsi_cache.data import BatchEncoder, Conversation, Message, TextPart, TokenBatches
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.recipe import CacheSection
from vlsi_cache.store import SampleRecord, create_cache, open_cache
from vlsi_cache.student.cache_order import cache_order
from vlsi_cache.student.cached_batches import CachedBatches
from vlsi_cache.training.loader import ShareSampler, make_loader
from vlsi_cache.training.sample_order import Share, share_batches

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
    """Questions of a few letters and answers of many: ``num_tokens`` with the template's own."""

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
    """Draws of token ids as frequent as words are, mostly shared by neighbouring taps."""
    index, conversation = item
    generator = np.random.default_rng([2, index])
    size, shape = load.student, (len(ids), load.student.candidates + 1)
    steps = generator.normal(scale=0.02, size=(*shape, DRAWS))
    steps[:, 0] = generator.random((len(ids), DRAWS))
    ranks = size.vocabulary ** (steps.cumsum(1) % 1) - 1
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
    """A complete cache of the conversations."""
    digest = "0" * 64
    manifest = CacheManifest.model_validate(
        {
            "vlsi_cache_version": "0",
            "teacher": {"name": "none", "model_type": "none", "weights_fingerprint": digest},
            "verbalizers_fingerprint": digest,
            "tokenizer": {"name": "bytes", "hash": digest, "vocab_size": load.student.vocabulary},
            "chat_template_hash": digest,
            "dataset": {"source": "random", "fingerprint": digest, "num_samples": len(data)},
            "taps": (*load.student.teacher_taps, -1),
            "sampling": {"k": 0, "m": DRAWS, "seed": 0},
            "samples_per_shard": load.samples_per_shard,
            "batch_size": load.batch_size,
            "dtype": "float32",
        }
    )
    writer, collate = create_cache(path, manifest), TokenBatches(encoder)
    for shard in range(manifest.num_shards):
        items = [data[index] for index in manifest.shard_range(shard)]
        tokens = [collate([item])["labels"] for item in items]
        writer.write_shard(
            shard, [made_up_record(load, *pair) for pair in zip(items, tokens, strict=True)]
        )


def order_of(load: Load) -> Share:
    """The only process's part."""
    return Share(seed=0, batch_size=load.batch_size)


def decoded_tokens_per_second(path: Path, load: Load) -> float:
    """Response tokens of every sample in the order of training, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    cache = open_cache(path)
    indices = [i for batch in share_batches(cache_order(cache), order_of(load), 0) for i in batch]
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
        """Of the whole time, what was waited."""
        return sum(self.waits) / (sum(self.waits) + sum(self.steps))


def run_loop(
    batches: Any, step: Callable[[dict[str, Any]], object], rounds: int, device: torch.device
) -> Loop:
    """Train on a few batches; what comes with the first (workers start) is not timed."""
    waits, steps, num_tokens = [], [], 0
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
    """A whole optimizer step on the batch that it is given."""
    student, given = build_student(size, device, size.taps), dict[str, Any]()
    update = trained(student, lambda: student(**given)["loss"])

    def step(batch: dict[str, Any]) -> None:
        given.update(send_to_device(batch, device))
        update()

    return step


def measure(load: Load, device: torch.device, rounds: int) -> dict[str, Any]:
    """Every figure of the benchmark."""
    encoder, data = (
        BatchEncoder(byte_processor(), max_length=None),
        Conversations(load.samples, load.student.tokens),
    )
    step = student_step(load.student, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        write_cache(path, load, encoder, data)
        cache = open_cache(path)
        num_tokens, num_bytes = cache.num_tokens, cache.size_bytes()
        decoded = in_fresh_process(decoded_tokens_per_second, path, load)
        loops = {}
        for workers in (1, 0):
            loader = make_loader(
                data,
                CachedBatches(encoder, path, "sample"),
                ShareSampler(cache_order(cache), order_of(load)),
                workers=workers,
                pin_memory=device.type == "cuda",
            )
            loops[workers] = run_loop(loader, step, rounds, device)
    ahead, alone = loops[1], loops[0]
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
        "cache": {
            "num_tokens": num_tokens,
            "num_taps": load.student.candidates + 1,
            "draws": DRAWS,
            "bytes": num_bytes,
        },
        "size": asdict(load),
        "rounds": rounds,
        **machine(device),
    }


def render(result: dict[str, Any]) -> None:
    """The figures as a table."""
    console, cache = Console(), result["cache"]
    table = Table(
        title=f"a cache of {cache['num_tokens']} tokens and {cache['num_taps']} taps, "
        f"{result['size']['student']['tokens']} tokens a sample",
        caption=f"{result['rounds']} steps, {result['device']}, {result['threads']} threads, "
        f"torch {result['torch']}",
    )
    for column in ("", "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in result["seconds"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    for name in (
        "data_wait_fraction",
        "data_wait_fraction_without_workers",
        "decode_over_consumption",
        "decoded_tokens_per_second",
        "consumed_tokens_per_second",
    ):
        console.print(f"{name}: {result[name]:.3g}")


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--quick", is_flag=True, help="A small student: a smoke, not a measurement.")
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Timed steps, each time.")
def main(as_json: bool, quick: bool, device: str, rounds: int) -> None:
    result = measure(QUICK if quick else FULL, device_of(device), rounds)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        render(result)


if __name__ == "__main__":
    main()
