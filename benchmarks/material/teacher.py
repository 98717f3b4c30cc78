"""A teacher with verbalizers, and what it says about text that it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from material import assets
from material.made_up import made_up_manifest
from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.models import Backbone, Decoder, Head, bind_decoder, load_backbone, run_backbone
from vlsi_cache.objectives import candidate_divergences, label_targets
from vlsi_cache.recipe import DataSection, VerbalizerSection, recipe_from_mapping
from vlsi_cache.store import SampleRecord, create_cache
from vlsi_cache.training.ridge import RidgeMoments
from vlsi_cache.verbalizer import (
    VerbalizerBank,
    build_verbalizers,
    load_verbalizers,
    save_verbalizers,
)

__all__ = [
    "TAPS",
    "Reading",
    "Teacher",
    "Training",
    "encoded_batches",
    "linear_verbalizers",
    "made_up_teacher",
    "real_teacher",
    "save_verbalizers_once",
    "write_cache",
]

TAPS = (2, 6, 10, 14, 18, 22, 26)
BATCH_SIZE = 8
TRAINING_SAMPLES = 96
TOKENS_PER_STEP = 384


@dataclass(frozen=True)
class Reading:
    """Features of taps and output at N response tokens, before the head."""

    features: list[Tensor]
    """L tensors [N, D], the output's last."""
    labels: Tensor
    """[N]."""
    counts: list[int]
    """Number of response tokens of each sample."""


@dataclass(frozen=True)
class Training:
    """How linear verbalizers train."""

    taps: Sequence[int] = TAPS
    steps: int = 40
    """Steps of cross-entropy on the labels, for each tap."""
    learning_rate: float = 5e-4
    """Rate of the first step. It falls to 0."""
    towards: Decoder | None = field(default=None, repr=False)
    """Decoder whose last block's states the maps start towards, or None for the model's own."""


@dataclass(frozen=True)
class Teacher:
    """A decoder, its verbalizers, and batches of conversations that neither was trained on."""

    decoder: Decoder
    vocab_size: int
    bank: VerbalizerBank
    batches: list[dict[str, Any]]

    @property
    def head(self) -> Head:
        """The decoder's head."""
        return self.decoder.head

    @torch.no_grad()
    def features(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Run the bare pass with verbalizers, and return L tensors [N, D]."""
        positions = batch["positions"]
        states, final = run_backbone(self.decoder, self.bank.taps, batch["inputs"], positions)
        read = self.bank(states, positions).values()
        return [*(self.decoder.features(hidden) for hidden in read), final]

    def read(self) -> Reading:
        """Read all batches."""
        parts = [self.features(batch) for batch in self.batches]
        counts = [np.bincount(batch["token_samples"].numpy()) for batch in self.batches]
        return Reading(
            [torch.cat(tap) for tap in zip(*parts, strict=True)],
            torch.cat([batch["labels"] for batch in self.batches]),
            np.concatenate(counts).tolist(),
        )


def real_teacher(samples: int, *, batch_size: int = BATCH_SIZE) -> Teacher:
    """Load SmolLM2-135M with trained verbalizers, and held-out text."""
    recipe = recipe_from_mapping(
        {
            "data": {"path": str(assets.text(600))},
            "teacher": {"model": str(assets.smollm2()), "verbalizer": {"structure": "mlp"}},
        },
        where="benchmarks/material/teacher.py",
    )
    backbone = load_backbone(recipe.teacher, "teacher", torch.device("cpu"))
    folder = assets.FOLDER / "verbalizers"

    def train() -> tuple[Backbone, VerbalizerBank]:
        batches = encoded_batches(backbone, recipe.data, TRAINING_SAMPLES)
        return backbone, linear_verbalizers(backbone, batches, Training())

    save_verbalizers_once(folder, train)
    bank = load_verbalizers(folder, backbone.decoder, fingerprint=backbone.fingerprint)
    held_out = recipe.data.model_copy(update={"path": str(assets.text(samples, held_out=True))})
    batches = encoded_batches(backbone, held_out, samples, batch_size)
    return Teacher(backbone.decoder, backbone.vocab_size, bank, batches)


def save_verbalizers_once(
    folder: Path, train: Callable[[], tuple[Backbone, VerbalizerBank]]
) -> None:
    """Train and save a model's verbalizers, unless the folder holds them already."""
    if (folder / "verbalizers.json").exists():
        return
    backbone, bank = train()
    folder.mkdir(parents=True, exist_ok=True)
    save_verbalizers(bank, folder, backbone)


def encoded_batches(
    backbone: Backbone, data: DataSection, samples: int, batch_size: int = BATCH_SIZE
) -> list[dict[str, Any]]:
    """Encode the first ``samples`` conversations as the product does."""
    dataset = IndexedConversations(load_data(data))
    collate = TokenBatches(encoder_for(backbone, data))
    return [
        collate([dataset[index] for index in range(start, min(start + batch_size, samples))])
        for start in range(0, samples, batch_size)
    ]


def linear_verbalizers(
    backbone: Backbone, batches: list[dict[str, Any]], training: Training
) -> VerbalizerBank:
    """Fit one linear map per tap: least squares towards the last state, then cross-entropy.

    Args:
        backbone: The model whose taps are read.
        batches: What `encoded_batches` returns.
        training: Taps and schedule.
    """
    decoder = backbone.decoder
    *read, last = _states(decoder, (*training.taps, decoder.num_blocks - 1), batches)
    if training.towards is not None:
        (last,) = _states(training.towards, (training.towards.num_blocks - 1,), batches)
    labels = torch.cat([batch["labels"] for batch in batches])
    bank = build_verbalizers(decoder, training.taps, VerbalizerSection(structure="mlp"), seed=0)
    for tap, state in zip(training.taps, read, strict=True):
        (verbalizer,) = bank.layers[str(tap)]
        moments = RidgeMoments(decoder.hidden_size, state.device)
        moments.add(state, last)
        with torch.no_grad():
            verbalizer.map.weight.copy_(moments.change(penalty=1e-3))
        optimizer = torch.optim.Adam([verbalizer.map.weight], lr=training.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, training.steps)
        for _ in range(training.steps):
            some = torch.randint(len(labels), (TOKENS_PER_STEP,))
            features = decoder.features(state[some] + verbalizer.change(state[some]))
            targets = label_targets(labels[some])
            found = candidate_divergences(features, backbone.head, targets)
            optimizer.zero_grad()
            found.matched(torch.zeros_like(some)).mean().backward()
            optimizer.step()
            schedule.step()
    return bank.eval().requires_grad_(False)


@torch.no_grad()
def _states(decoder: Decoder, blocks: Sequence[int], batches: list[dict[str, Any]]) -> list[Tensor]:
    """Read the states of each block [N, D], at the response positions."""
    hidden = []
    for batch in batches:
        positions = batch["positions"]
        states, _ = run_backbone(decoder, blocks, batch["inputs"], positions)
        hidden.append([states[block].hidden.flatten(0, 1)[positions] for block in blocks])
    return [torch.cat(parts) for parts in zip(*hidden, strict=True)]


def made_up_teacher(
    samples: int, *, tokens: int = 40, vocabulary: int = 2000, batch_size: int = BATCH_SIZE
) -> Teacher:
    """Build a small teacher of random weights and random text: a smoke, not a measurement."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    decoder = bind_decoder(model)
    bank = build_verbalizers(decoder, (1, 3), VerbalizerSection(), seed=0)
    batches = []
    for start in range(0, samples, batch_size):
        size = min(batch_size, samples - start)
        ids = torch.randint(vocabulary, (size, 2 * tokens))
        rows = torch.arange(size)[:, None] * 2 * tokens
        positions = rows + torch.arange(tokens, 2 * tokens) - 1
        batches.append(
            {
                "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                "positions": positions.flatten(),
                "labels": ids[:, tokens:].flatten(),
                "token_samples": torch.arange(size).repeat_interleave(tokens),
            }
        )
    return Teacher(decoder, vocabulary, bank, batches)


def write_cache(path: Path, teacher: Teacher, reading: Reading, made: SparseDistribution) -> None:
    """Write a whole cache of made records ``[N, L]`` with the product's writer."""
    manifest = made_up_manifest(
        len(reading.counts),
        vocab_size=teacher.vocab_size,
        taps=teacher.bank.taps,
        k=made.k,
        m=made.m,
        drawn_from=made.drawn_from,
        samples_per_shard=512,
    )
    writer = create_cache(path, manifest)
    labels = reading.labels.int().numpy()
    records: list[SampleRecord] = []
    start = 0
    for index, count in enumerate(reading.counts):
        part = slice(start, start + count)
        key = hashlib.sha256(str(index).encode()).hexdigest()
        records.append(SampleRecord(f"sample-{index:08d}", key, labels[part], made[part]))
        start += count
    for shard in range(manifest.num_shards):
        indices = manifest.shard_range(shard)
        writer.write_shard(shard, records[indices.start : indices.stop])
