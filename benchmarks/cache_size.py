"""Bytes of a record against what it says: ours and other layouts, on a real teacher's taps.

Every record is of the same tokens and taps of SmolLM2-135M with trained verbalizers, on text that
they were not trained on. Ours are whole caches as the product writes them, divided by tokens and
taps, without the copy of the tokenizer; the others are emulated from their published layouts, their
ids and values counted alone:

- dense: bfloat16 of every id;
- top-64: 32-bit ids, 16-bit log-probabilities, scaled to sum to 1;
- Megatron-LM: the same 64 as fp16 values, 16 bits and 1 bit of each id apart, zstd level 3;
- DistillKit: its recommended setting, 128 ids packed to whole bits, 16 values in bfloat16, the rest
  from a polynomial of six float32 terms, scaled to sum to 1;
- Sparse Logit Sampling: independent draws, so many that 12 are distinct on average, 3 bytes each.

Fidelity is that of the loss's gradient with respect to a linear map before the head, summed over
all tokens: its angle to the gradient of the full distribution, and the ratio of their norms, as
means over taps. The student's distribution is the tap's before (the first tap's is the one after).
The bias and the spread over tokens of KL(teacher ‖ student) are in nats, at all taps together.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from measurement import device_of, machine
from numcodecs import Zstd
from rich.console import Console
from rich.table import Table
from teacher import Reading, Teacher, made_up_teacher, real_teacher, write_cache
from torch import Tensor

from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.objectives import chunks
from vlsi_cache.recipe import CacheSection
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import open_cache

CURVE = ((0, 8), (0, 12), (0, 16), (4, 4), (16, 0))
"""k and m of ours beside the default."""
DEFAULT = (CacheSection().k, CacheSection().m)
MOST_DRAWS, TOP = 64, 128
CHUNK = 64


@dataclass(frozen=True)
class Size:
    """How much is recorded."""

    samples: int = 96
    teacher: str = "SmolLM2-135M"


QUICK = Size(samples=6, teacher="made up")


@dataclass(frozen=True)
class Record:
    """Ids and weights of N tokens at L taps, and the entropy that the divergence takes off."""

    ids: Tensor
    """[N, L, S]."""
    weights: Tensor
    """[N, L, S]."""
    entropy: Tensor
    """[N, L]."""


class Truth:
    """The full distributions, one pass over them, and what other layouts keep of them."""

    def __init__(self, teacher: Teacher, reading: Reading) -> None:
        self.reading, self.vocab_size = reading, teacher.vocab_size
        self.weight = teacher.head.weight[: self.vocab_size].float()
        shape = len(reading.labels), len(reading.features)
        hidden, top = self.weight.shape[1], min(TOP, self.vocab_size)
        self.expectation = torch.empty(*shape, hidden)
        self.entropy, self.normaliser = torch.empty(shape), torch.empty(shape)
        self.draws = torch.empty(*shape, MOST_DRAWS, dtype=torch.long)
        self.top_ids = torch.empty(*shape, top, dtype=torch.long)
        self.top_log_probs = torch.empty(*shape, top)
        generator = torch.Generator().manual_seed(1)
        for tap, features in enumerate(reading.features):
            for part in chunks(shape[0], CHUNK):
                logits = features[part].float() @ self.weight.T
                normaliser = logits.logsumexp(-1)
                p = torch.softmax(logits, -1)
                expectation = p @ self.weight
                self.expectation[part, tap] = expectation
                self.normaliser[part, tap] = normaliser
                self.entropy[part, tap] = normaliser - (features[part] * expectation).sum(-1)
                edges = p.cumsum(-1, dtype=torch.float64)
                dice = torch.rand(len(p), MOST_DRAWS, dtype=torch.float64, generator=generator)
                found = torch.searchsorted(edges, dice * edges[:, -1:], right=True)
                self.draws[part, tap] = found.clamp_(max=self.vocab_size - 1)
                kept = logits.topk(top)
                self.top_ids[part, tap] = kept.indices
                self.top_log_probs[part, tap] = kept.values - normaliser[:, None]

    def fidelity(self, record: Record) -> dict[str, float]:
        """Of a record; see the module."""
        angles, norms, errors = [], [], []
        for tap in range(record.ids.shape[1]):
            student = tap - 1 if tap else 1
            x = self.reading.features[student].float()
            exact = self.expectation[:, tap]
            found = F.embedding_bag(
                record.ids[:, tap],
                self.weight,
                mode="sum",
                per_sample_weights=record.weights[:, tap].contiguous(),
            )
            model = self.expectation[:, student]
            true, sparse = x.T @ (model - exact), x.T @ (model - found)
            cosine = (true * sparse).sum() / (true.norm() * sparse.norm())
            angles.append(math.degrees(math.acos(min(float(cosine), 1.0))))
            norms.append(float(sparse.norm() / true.norm()))
            normaliser = self.normaliser[:, student]
            full = normaliser - (x * exact).sum(-1) - self.entropy[:, tap]
            errors.append(normaliser - (x * found).sum(-1) - record.entropy[:, tap] - full)
        error = torch.stack(errors)
        return {
            "angle_degrees": float(np.mean(angles)),
            "angle_output_degrees": angles[-1],
            "norm_ratio": float(np.mean(norms)),
            "kl_bias_nats": float(error.mean()),
            "kl_sd_nats": float(error.std()),
        }


def rivals(truth: Truth) -> Iterator[tuple[str, float, Record]]:
    """Name, bytes per token and tap, and record of each other layout but the dense one."""
    count = min(64, truth.top_ids.shape[-1])
    top = _scaled(truth.top_ids[..., :count], truth.top_log_probs[..., :count])
    yield "top-64", count * 6, top
    yield "megatron-lm", _megatron_bytes(truth, count), top
    yield "distillkit", _distillkit_bytes(truth), _distillkit(truth)
    distinct = [_distinct(truth.draws[..., :n]) for n in range(1, MOST_DRAWS + 1)]
    number = 1 + int(np.abs(np.array(distinct) - 12).argmin())
    draws = truth.draws[..., :number]
    record = Record(draws, torch.full(draws.shape, 1 / number), truth.entropy)
    yield "sparse-logit-sampling-12", 3 * distinct[number - 1], record


def _scaled(ids: Tensor, log_probs: Tensor) -> Record:
    weights = torch.softmax(log_probs, -1)
    return Record(ids, weights, -torch.xlogy(weights, weights).sum(-1))


def _distinct(draws: Tensor) -> float:
    ordered = draws.sort(-1).values
    return float((ordered.diff(dim=-1) != 0).sum(-1).float().mean() + 1)


def _megatron_bytes(truth: Truth, count: int) -> float:
    ids = truth.top_ids[..., :count].numpy()
    values = truth.top_log_probs[..., :count].half().numpy()
    streams = (values, (ids & 0xFFFF).astype(np.uint16), np.packbits(ids >> 16 & 1))
    coded = sum(len(Zstd(level=3).encode(np.ascontiguousarray(part))) for part in streams)
    return coded / (ids.shape[0] * ids.shape[1])


def _distillkit_bytes(truth: Truth) -> float:
    bits = math.ceil(math.log2(truth.vocab_size))
    return truth.top_ids.shape[-1] * bits / 8 + 16 * 2 + 6 * 4


def _distillkit(truth: Truth) -> Record:
    exact = truth.top_log_probs[..., :16].bfloat16().float()
    rest = truth.top_log_probs[..., 16:]
    place = torch.linspace(0, 1, rest.shape[-1])
    terms = torch.stack([place**0, place, place**2, place**3, place**4, place.sqrt()], -1)
    fitted = rest @ torch.linalg.pinv(terms).T @ terms.T
    return _scaled(truth.top_ids, torch.cat([exact, fitted], -1))


def ours(
    teacher: Teacher, reading: Reading, k: int, m: int, order: Tensor | None = None
) -> tuple[float, Record]:
    """Bytes per token and tap of a whole cache, and what it says when it is read."""
    recorder = TapRecorder(teacher.head.real_rows(teacher.vocab_size), k=k, m=m, order=order)
    dice = torch.rand(
        len(reading.labels),
        len(reading.features),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    made = recorder.record(reading.features, reading.labels, dice)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache")
        write_cache(path, teacher, reading, made)
        cache = open_cache(path)
        read = SparseDistribution.concatenate([shard.distribution for shard in cache.iter_shards()])
        size = cache.size_bytes() / (len(reading.labels) * len(reading.features))
    return size, Record(
        torch.from_numpy(read.token_ids.astype(np.int64)),
        torch.from_numpy(read.weights()),
        torch.from_numpy(read.entropy),
    )


def measure(size: Size) -> dict[str, Any]:
    """Every row."""
    real = size.teacher != "made up"
    teacher = real_teacher(size.samples) if real else made_up_teacher(size.samples)
    reading = teacher.read()
    truth = Truth(teacher, reading)
    exact = {"angle_degrees": 0.0, "angle_output_degrees": 0.0, "norm_ratio": 1.0}
    rows: list[dict[str, Any]] = [
        {
            "name": "dense-bf16",
            "bytes_per_token_tap": 2 * teacher.vocab_size,
            **exact,
            "kl_bias_nats": 0.0,
            "kl_sd_nats": 0.0,
        }
    ]
    for name, bytes_each, record in rivals(truth):
        rows.append({"name": name, "bytes_per_token_tap": bytes_each, **truth.fidelity(record)})
    for k, m in (DEFAULT, *(CURVE if real else CURVE[-1:])):
        name = "vlsi-cache" if (k, m) == DEFAULT else f"vlsi-cache k={k} m={m}"
        bytes_each, record = ours(teacher, reading, k, m)
        rows.append({"name": name, "bytes_per_token_tap": bytes_each, **truth.fidelity(record)})
    bytes_each, record = ours(teacher, reading, *DEFAULT, torch.arange(teacher.vocab_size))
    name = "vlsi-cache in order of ids"
    rows.append({"name": name, "bytes_per_token_tap": bytes_each, **truth.fidelity(record)})
    return {
        "rows": rows,
        "size": {
            **asdict(size),
            "tokens": len(reading.labels),
            "taps": len(reading.features),
            "vocabulary": teacher.vocab_size,
            "mean_entropy_nats": [round(float(tap), 3) for tap in truth.entropy.mean(0)],
        },
        "rounds": 1,
        **machine(device_of("cpu")),
    }


def render(result: dict[str, Any]) -> None:
    """The rows as a table."""
    size = result["size"]
    table = Table(
        title=f"{size['tokens']:,} tokens, {size['taps']} taps of {size['teacher']}, "
        f"V = {size['vocabulary']:,}"
    )
    columns = {
        "bytes_per_token_tap": "bytes",
        "angle_degrees": "angle\n(°)",
        "angle_output_degrees": "output's\n(°)",
        "norm_ratio": "norm\nratio",
        "kl_bias_nats": "KL\nbias",
        "kl_sd_nats": "KL\nspread",
    }
    table.add_column("record", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(row["name"], *(f"{row[name]:,.2f}" for name in columns))
    Console().print(table)


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--quick", is_flag=True, help="A made-up teacher: a smoke, not a measurement.")
@click.option("--device", default="cpu", hidden=True, help="Ignored: sizes do not depend on it.")
def main(as_json: bool, quick: bool, device: str) -> None:  # noqa: ARG001
    result = measure(QUICK if quick else Size())
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        render(result)


if __name__ == "__main__":
    main()
