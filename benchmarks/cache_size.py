"""Bytes of a record against its fidelity: ours and other layouts, on a real teacher's taps.

Every record holds the same tokens and taps of SmolLM2-135M with trained verbalizers, on text that
they were not trained on. Our bytes are those of whole caches as the product writes them, divided by
tokens and taps, without the copy of the tokenizer. The others are emulated from their published
layouts, and only their ids and values count:

- dense: bfloat16 of every id
- top-64: 32-bit ids, 16-bit log-probabilities, scaled to sum to 1
- Megatron-LM: the same 64 as fp16 values, 16 bits and 1 bit of each id apart, zstd level 3
- DistillKit: its recommended setting, 128 ids packed to whole bits, 16 values in bfloat16, the rest
  from a polynomial of six float32 terms, scaled to sum to 1
- Sparse Logit Sampling: independent draws, so many that 12 are distinct on average, 3 bytes each

Fidelity is that of the loss's gradient with respect to a linear map before the head, summed over
all tokens. Its angle to the gradient of the full distribution, and the ratio of their norms, are
means over taps. The tap before plays the student (for the first tap, the one after). The bias and
the spread over tokens of KL(teacher ‖ student) are in nats, at all taps together.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import PrintedTable, benchmark
from material.teacher import Reading, Teacher, made_up_teacher, real_teacher, write_cache
from numcodecs import Zstd
from torch import Tensor

from vlsi_cache.distribution import DrawnFrom, SparseDistribution
from vlsi_cache.objectives import chunks
from vlsi_cache.recipe import CacheSection
from vlsi_cache.sampling import TapRecorder
from vlsi_cache.store import open_cache

CURVE: tuple[tuple[int, int, DrawnFrom], ...] = (
    (0, 8, "rest"),
    (0, 12, "rest"),
    (0, 16, "rest"),
    (4, 4, "rest"),
    (4, 10, "whole"),
    (4, 12, "whole"),
    (4, 14, "whole"),
    (16, 0, "rest"),
)
"""k, m and what is drawn from, of our further records beside the default."""
DEFAULT = (CacheSection().k, CacheSection().m, CacheSection().drawn_from)
MOST_DRAWS = 64
TOP = 128
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
    """What one pass over the full distributions yields, for us and for other layouts."""

    def __init__(self, teacher: Teacher, reading: Reading) -> None:
        self.reading = reading
        self.vocab_size = teacher.vocab_size
        self.weight = teacher.head.weight[: self.vocab_size].float()
        shape = len(reading.labels), len(reading.features)
        top = min(TOP, self.vocab_size)
        self.expectation = torch.empty(*shape, self.weight.shape[1])
        self.entropy = torch.empty(shape)
        self.normaliser = torch.empty(shape)
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
        """Score a record, as the module's docstring says."""
        angles: list[float] = []
        norms: list[float] = []
        errors: list[Tensor] = []
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
            true = x.T @ (model - exact)
            sparse = x.T @ (model - found)
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
    """Yield the name, bytes per token and tap, and record of each other sparse layout."""
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
    x = torch.linspace(0, 1, rest.shape[-1])
    terms = torch.stack([x**0, x, x**2, x**3, x**4, x.sqrt()], -1)
    fitted = rest @ torch.linalg.pinv(terms).T @ terms.T
    return _scaled(truth.top_ids, torch.cat([exact, fitted], -1))


def ours(
    teacher: Teacher,
    reading: Reading,
    kept: tuple[int, int, DrawnFrom],
    order: Tensor | None = None,
) -> tuple[float, Record]:
    """Write a whole cache, and return its bytes per token and tap and the record read back."""
    k, m, drawn_from = kept
    head = teacher.head.real_rows(teacher.vocab_size)
    recorder = TapRecorder(head, k=k, m=m, drawn_from=drawn_from, order=order)
    dice = torch.rand(
        len(reading.labels),
        len(reading.features),
        recorder.num_uniforms,
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
    """Measure every layout."""
    real = size.teacher != "made up"
    teacher = real_teacher(size.samples) if real else made_up_teacher(size.samples)
    reading = teacher.read()
    truth = Truth(teacher, reading)
    # records are large: each is scored before the next is made
    rows = [_row(truth, *layout) for layout in rivals(truth)]
    for kept in (DEFAULT, *(CURVE if real else CURVE[-2:])):
        k, m, drawn_from = kept
        name = "vlsi-cache" if kept == DEFAULT else f"vlsi-cache k={k} m={m}"
        if drawn_from == "whole":
            name += " together"
        rows.append(_row(truth, name, *ours(teacher, reading, kept)))
    in_order = ours(teacher, reading, DEFAULT, torch.arange(teacher.vocab_size))
    rows.append(_row(truth, "vlsi-cache in order of ids", *in_order))
    return {
        "rows": [_dense_row(teacher.vocab_size), *rows],
        "size": {
            **asdict(size),
            "tokens": len(reading.labels),
            "taps": len(reading.features),
            "vocabulary": teacher.vocab_size,
            "mean_entropy_nats": [round(float(tap), 3) for tap in truth.entropy.mean(0)],
        },
    }


def _row(truth: Truth, name: str, bytes_each: float, record: Record) -> dict[str, Any]:
    return {"name": name, "bytes_per_token_tap": bytes_each, **truth.fidelity(record)}


def _dense_row(vocab_size: int) -> dict[str, Any]:
    """Return the row of the truth itself, in bfloat16."""
    return {
        "name": "dense-bf16",
        "bytes_per_token_tap": 2 * vocab_size,
        "angle_degrees": 0.0,
        "angle_output_degrees": 0.0,
        "norm_ratio": 1.0,
        "kl_bias_nats": 0.0,
        "kl_sd_nats": 0.0,
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the rows."""
    size = result["size"]
    columns = {
        "bytes_per_token_tap": "bytes",
        "angle_degrees": "angle (°)",
        "angle_output_degrees": "output's (°)",
        "norm_ratio": "norm ratio",
        "kl_bias_nats": "KL bias (nats)",
        "kl_sd_nats": "KL spread (nats)",
    }
    return [
        PrintedTable(
            f"{size['tokens']:,} tokens, {size['taps']} taps of {size['teacher']}, "
            f"V = {size['vocabulary']:,}",
            ("record", *columns.values()),
            [(row["name"], *(f"{row[name]:,.2f}" for name in columns)) for row in result["rows"]],
        )
    ]


main = benchmark(measure, tables, full=Size(), quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
