"""A whole step of stage two against LoRA fine-tuning, and against a student beside its teacher.

The student has the size of SmolLM2-135M, with LoRA on its blocks in every contender, so that only
the objective differs. A step is forward, backward and AdamW.

- plain: cross-entropy at the output, with logits kept
- cached: 7 taps and the output against the record
- output: the output alone against the record (``inner: none``)
- online: 7 taps and the output against the dense distributions of a resident teacher of the same
  size, all pairs compared, as Algorithm 1 needs them

Operations, counted per response token (V vocabulary, D hidden size, T tokens of a sample):

- blocks, frozen: 2 per weight forward, 2 backward towards their inputs
- attention: 4·T·D per block forward, twice that backward
- LoRA: 2 per weight forward, 4 backward
- head, frozen: 2·V·D forward, 2·V·D backward, at the output and again at each tap
- verbalizers: 3·D² weights per tap, 2 forward, 4 backward

Stage one is measured too, with all taps and with one. The difference is the cost of the taps beyond
the first. It stands beside their operations, both over those of the frozen forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from harness import (
    PrintedTable,
    benchmark,
    contenders,
    figures,
    in_fresh_process,
    median_seconds,
    peak_extra_bytes,
)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.matching import match_layers
from vlsi_cache.models import Backbone, bind_decoder, default_taps, run_backbone
from vlsi_cache.objectives import SparseTargets
from vlsi_cache.recipe import InteractionSection, VerbalizerSection
from vlsi_cache.student.interaction_loss import Interaction
from vlsi_cache.verbalizer import VerbalizerBank, build_verbalizers
from vlsi_cache.verbalizer.training import Verbalization

SETTINGS = InteractionSection()


@dataclass(frozen=True)
class Size:
    """Shape of the student, the batch and the record."""

    hidden: int = 576
    blocks: int = 30
    heads: int = 9
    key_value_heads: int = 3
    expansion: int = 1536
    vocabulary: int = 49_152
    tokens: int = 512
    candidates: int = 14
    entries: int = 14
    """Entries of a record: draws alone."""

    @property
    def taps(self) -> tuple[int, ...]:
        """The student's taps."""
        return default_taps(self.blocks)

    @property
    def teacher_taps(self) -> tuple[int, ...]:
        """As many taps as there are candidates, evenly spaced."""
        last = self.blocks - 2
        return tuple(last * (index + 1) // self.candidates for index in range(self.candidates))


QUICK = Size(64, 8, 4, 2, 128, 4096, 64, 4)


def build_backbone(size: Size, device: torch.device, seed: int) -> Backbone:
    """Build a Llama of random weights, without a processor."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.expansion,
        vocab_size=size.vocabulary,
        max_position_embeddings=max(2048, size.tokens),
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(device).eval().requires_grad_(False)
    return Backbone("random", None, bind_decoder(model), size.vocabulary, "")


def build_student(size: Size, device: torch.device, taps: Sequence[int]) -> Interaction:
    """Build the student with adapters, and with verbalizers at its taps."""
    student = build_backbone(size, device, seed=0)
    bank = build_verbalizers(student.decoder, taps, VerbalizerSection(), seed=0)
    settings = SETTINGS if taps else SETTINGS.model_copy(update={"inner": "none"})
    return Interaction(student, bank, settings, teacher_taps=size.teacher_taps, seed=0)


class Batch:
    """One sample whose tokens are all of the response, and the teacher's record of it."""

    def __init__(self, size: Size, device: torch.device) -> None:
        generator = torch.Generator(device=device).manual_seed(1)
        count = size.tokens - 1
        ids = torch.randint(size.vocabulary, (1, size.tokens), device=device, generator=generator)
        shape = (count, size.candidates + 1, size.entries)
        weights = torch.rand(shape, device=device, generator=generator)
        self.inputs = {"input_ids": ids}
        self.positions = torch.arange(count, device=device)
        self.labels = ids[0, 1:]
        self.targets = SparseTargets(
            torch.randint(size.vocabulary, shape, device=device, generator=generator),
            weights / weights.sum(-1, keepdim=True),
            torch.ones(shape[:2], device=device),
        )


def trained(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """Return a whole optimizer step."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(size: Size, device: torch.device) -> Callable[[], object]:
    """Train with cross-entropy at the output, as every trainer does."""
    student = build_student(size, device, ())
    batch = Batch(size, device)

    def loss() -> Tensor:
        logits = student.decoder.model(**batch.inputs, use_cache=False).logits[0, :-1]
        return F.cross_entropy(logits.float(), batch.labels)

    return trained(student, loss)


def cached(size: Size, device: torch.device) -> Callable[[], object]:
    """Train as ``train-student`` does in stage two."""
    return _learning(size, device, size.taps)


def output_only(size: Size, device: torch.device) -> Callable[[], object]:
    """Train as ``train-student`` does in stage two with ``inner: none``."""
    return _learning(size, device, ())


def _learning(size: Size, device: torch.device, taps: Sequence[int]) -> Callable[[], object]:
    student = build_student(size, device, taps)
    batch = Batch(size, device)

    def loss() -> Tensor:
        return student(
            batch.inputs,
            batch.positions,
            batch.labels,
            torch.zeros_like(batch.labels),
            batch.targets,
        )["loss"]

    return trained(student, loss)


def online(size: Size, device: torch.device) -> Callable[[], object]:
    """Train beside the teacher: dense distributions of every tap, all pairs compared."""
    teacher = build_backbone(size, device, seed=2)
    readers = build_verbalizers(teacher.decoder, size.teacher_taps, VerbalizerSection(), seed=2)
    student = build_student(size, device, size.taps)
    batch = Batch(size, device)

    def loss() -> Tensor:
        with torch.no_grad():
            log_p = dense_log_probs(teacher.decoder, readers, batch)
            p = [each.exp() for each in log_p]
            entropy = [-mean_product(*both) for both in zip(p, log_p, strict=True)]
            del log_p
        log_q = dense_log_probs(student.decoder, student.bank, batch)
        total = -mean_product(p[-1], log_q[-1]) - entropy[-1]
        with torch.no_grad():
            pairs = [
                -mean_product(each, read) - nats
                for read in log_q[:-1]
                for each, nats in zip(p[:-1], entropy[:-1], strict=True)
            ]
            matrix = torch.stack(pairs).view(len(log_q) - 1, len(p) - 1)
            tap = match_layers(matrix, student.settings.matching, student.generator).tap
        assert tap is not None
        for index, matched in enumerate(tap.tolist()):
            total = total - mean_product(p[matched], log_q[index]) - entropy[matched]
        return total

    return trained(student, loss)


def verbalization(size: Size, device: torch.device, taps: Sequence[int]) -> Callable[[], object]:
    """Train the verbalizers of some taps, as stage one does."""
    backbone = build_backbone(size, device, seed=0)
    bank = build_verbalizers(backbone.decoder, taps, VerbalizerSection(), seed=0).train()
    module = Verbalization(backbone.decoder, bank, size.vocabulary, "label")
    batch = Batch(size, device)

    def loss() -> Tensor:
        samples = torch.zeros_like(batch.labels)
        return module(batch.inputs, batch.positions, batch.labels, samples)["loss"]

    return trained(bank, loss)


def frozen(size: Size, device: torch.device) -> Callable[[], object]:
    """Run the frozen forward of stage one alone."""
    decoder = build_backbone(size, device, seed=0).decoder
    batch = Batch(size, device)

    @torch.no_grad()
    def run() -> None:
        run_backbone(decoder, size.taps, batch.inputs, batch.positions)

    return run


def stage_one(size: Size, device: torch.device, rounds: int) -> dict[str, float]:
    """Measure one more tap in stage one, over the frozen forward, in time and in operations."""
    steps = {
        "frozen": frozen(size, device),
        "one": verbalization(size, device, size.taps[:1]),
        "all": verbalization(size, device, size.taps),
    }
    taken = median_seconds(steps, rounds, device)
    each = (taken["all"] - taken["one"]) / (len(size.taps) - 1)
    tap = operations(size, 1) - operations(size, 0)
    return {
        "tap_time_over_forward": each / taken["frozen"],
        "tap_operations_over_forward": tap / forward_operations(size),
    }


def dense_log_probs(decoder: Any, bank: VerbalizerBank, batch: Batch) -> list[Tensor]:
    """Return log-probabilities ``[N, V]`` of every tap and, last, of the output."""
    states, final = run_backbone(decoder, bank.taps, batch.inputs, batch.positions)
    reads = [decoder.features(read) for read in bank(states, batch.positions).values()]
    return [decoder.head.logits(read).float().log_softmax(-1) for read in [*reads, final]]


def mean_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the mean over tokens of the rows' inner products.

    With p and log q it is minus a cross-entropy.
    """
    return torch.dot(left.flatten(), right.flatten()) / len(left)


CONTENDERS = {"plain": plain, "cached": cached, "output": output_only, "online": online}


def operations(size: Size, num_taps: int) -> int:
    """Count operations per response token, as the module's docstring does."""
    head_size = size.hidden // size.heads
    key_value = size.key_value_heads * head_size
    maps = [(size.hidden, size.hidden)] * 2 + [(size.hidden, key_value)] * 2
    maps += [(size.hidden, size.expansion)] * 3
    blocks = 4 * size.blocks * sum(rows * columns for rows, columns in maps)
    attention = 12 * size.tokens * size.hidden * size.blocks
    lora = 6 * size.blocks * SETTINGS.lora.rank * sum(rows + columns for rows, columns in maps)
    head = 4 * size.vocabulary * size.hidden * (num_taps + 1)
    return blocks + attention + lora + head + 18 * size.hidden**2 * num_taps


def forward_operations(size: Size) -> int:
    """Count operations per token of the frozen forward, as far as the last block."""
    head_size = size.hidden // size.heads
    key_value = size.key_value_heads * head_size
    weights = 2 * size.hidden**2 + 2 * size.hidden * key_value + 3 * size.hidden * size.expansion
    return size.blocks * (2 * weights + 4 * size.tokens * size.hidden)


def peak_bytes(name: str, size: Size, device_name: str) -> int:
    """Return the most memory of a contender's second step, weights and optimizer included."""
    device = torch.device(device_name)
    CONTENDERS[name](QUICK, device)()  # libraries load

    def run() -> None:
        step = CONTENDERS[name](size, device)
        step()
        step()

    return peak_extra_bytes(run, device)


def measure(size: Size, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure every contender."""
    peaks = {name: in_fresh_process(peak_bytes, name, size, device.type) for name in CONTENDERS}
    by_candidates = {
        count: in_fresh_process(peak_bytes, "cached", replace(size, candidates=count), device.type)
        / peaks["plain"]
        for count in sorted({len(size.taps), 2 * size.candidates})
    }
    steps = {name: build(size, device) for name, build in CONTENDERS.items()}
    seconds = median_seconds(steps, rounds, device)
    arithmetic = operations(size, len(size.taps)) / operations(size, 0)
    time_over_plain = seconds["cached"] / seconds["plain"]
    return {
        "time_over_plain": time_over_plain,
        "output_time_over_plain": seconds["output"] / seconds["plain"],
        "output_memory_over_plain": peaks["output"] / peaks["plain"],
        "stage_one": stage_one(size, device, rounds),
        "memory_over_plain": peaks["cached"] / peaks["plain"],
        "online_time_over_ours": seconds["online"] / seconds["cached"],
        "online_memory_over_ours": peaks["online"] / peaks["cached"],
        "arithmetic_ratio": arithmetic,
        "time_over_arithmetic": time_over_plain / arithmetic,
        "memory_over_plain_by_candidates": by_candidates,
        "operations_per_token": {
            "plain": operations(size, 0),
            "cached": operations(size, len(size.taps)),
        },
        "seconds": seconds,
        "peak_bytes": peaks,
        "size": asdict(size),
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the contenders, then the ratios."""
    shape = ", ".join(f"{value} {name}" for name, value in result["size"].items())
    measured = contenders(
        f"one optimizer step of stage two: {shape}",
        result["seconds"],
        result["peak_bytes"],
        base="plain",
    )
    by_candidates = PrintedTable(
        "memory over plain",
        ("candidates", "ratio"),
        [
            (str(count), f"{ratio:.3g}")
            for count, ratio in result["memory_over_plain_by_candidates"].items()
        ],
    )
    ratios = figures("cached", result, ("arithmetic_ratio", "time_over_arithmetic"))
    taps = figures(
        "one more tap in stage one, over its frozen forward",
        result["stage_one"],
        ("tap_time_over_forward", "tap_operations_over_forward"),
    )
    return [measured, ratios, by_candidates, taps]


main = benchmark(measure, tables, full=Size(), quick=QUICK)

if __name__ == "__main__":
    main()
