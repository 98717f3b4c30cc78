"""A teacher with verbalizers and what it says about text it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import assets
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import Backbone, Decoder, Head, bind_decoder, load_backbone, run_backbone
from vlsi_cache.objectives import candidate_divergences, label_targets
from vlsi_cache.recipe import DataSection, VerbalizerSection, recipe_from_mapping
from vlsi_cache.store import SampleRecord, create_cache
from vlsi_cache.verbalizer import (
    VerbalizerBank,
    build_verbalizers,
    load_verbalizers,
    save_verbalizers,
)

__all__ = [
    "Reading",
    "Teacher",
    "encoded_batches",
    "linear_verbalizers",
    "made_up_teacher",
    "real_teacher",
    "write_cache",
]

TAPS = (2, 6, 10, 14, 18, 22, 26)
BATCH_SIZE = 8
TRAINING_SAMPLES, STEPS, TOKENS_PER_STEP, LEARNING_RATE = 96, 40, 384, 5e-4


@dataclass(frozen=True)
class Reading:
    """What taps and output say about N response tokens, before the head."""

    features: list[Tensor]
    """L tensors [N, D], the output's last."""
    labels: Tensor
    """[N]."""
    counts: list[int]
    """Response tokens of each sample."""


@dataclass(frozen=True)
class Teacher:
    """A decoder, its verbalizers, and batches of conversations that neither was trained on."""

    decoder: Decoder
    vocab_size: int
    bank: VerbalizerBank
    batches: list[dict[str, Any]]

    @property
    def head(self) -> Head:
        """The decoder's."""
        return self.decoder.head

    @torch.no_grad()
    def features(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """The bare pass with verbalizers: L tensors [N, D]."""
        positions = batch["positions"]
        states, final = run_backbone(self.decoder, self.bank.taps, batch["inputs"], positions)
        read = self.bank(states, positions).values()
        return [*(self.decoder.features(hidden) for hidden in read), final]

    def read(self) -> Reading:
        """All batches."""
        parts = [self.features(batch) for batch in self.batches]
        counts = [np.bincount(batch["token_samples"].numpy()) for batch in self.batches]
        return Reading(
            [torch.cat(tap) for tap in zip(*parts, strict=True)],
            torch.cat([batch["labels"] for batch in self.batches]),
            np.concatenate(counts).tolist(),
        )


def real_teacher(samples: int, *, batch_size: int = BATCH_SIZE) -> Teacher:
    """SmolLM2-135M with trained verbalizers, and held-out text."""
    recipe = recipe_from_mapping(
        {
            "data": {"path": str(assets.text(600))},
            "teacher": {"model": str(assets.smollm2()), "verbalizer": {"structure": "mlp"}},
        },
        where="benchmarks/teacher.py",
    )
    backbone = load_backbone(recipe.teacher, "teacher", torch.device("cpu"), "float32")
    folder = assets.FOLDER / "verbalizers"
    if not (folder / "verbalizers.json").exists():
        train = encoded_batches(backbone, recipe.data, TRAINING_SAMPLES)
        bank = linear_verbalizers(backbone.decoder, backbone.vocab_size, train)
        folder.mkdir(parents=True, exist_ok=True)
        save_verbalizers(
            bank,
            folder,
            decoder=backbone.decoder,
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
        )
    bank = load_verbalizers(folder, backbone.decoder, fingerprint=backbone.fingerprint)
    held_out = recipe.data.model_copy(update={"path": str(assets.text(samples, held_out=True))})
    batches = encoded_batches(backbone, held_out, samples, batch_size)
    return Teacher(backbone.decoder, backbone.vocab_size, bank, batches)


def encoded_batches(
    backbone: Backbone, data: DataSection, samples: int, batch_size: int = BATCH_SIZE
) -> list[dict[str, Any]]:
    """The first so many conversations, as the product encodes them."""
    dataset, collate = (
        IndexedConversations(load_data(data)),
        TokenBatches(encoder_for(backbone, data)),
    )
    return [
        collate([dataset[index] for index in range(start, min(start + batch_size, samples))])
        for start in range(0, samples, batch_size)
    ]


def linear_verbalizers(
    decoder: Decoder,
    vocab_size: int,
    batches: list[dict[str, Any]],
    taps: Sequence[int] | None = None,
    *,
    towards: Decoder | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> VerbalizerBank:
    """One linear map per tap: least squares towards the last block's state, then cross-entropy.

    From the logit lens, which the product starts at, the same takes hours on two cores.

    Args:
        decoder: the model that is read, of D.
        vocab_size: ids that the softmax is over.
        batches: as `encoded_batches` gives them.
        taps: its blocks; `TAPS` if not said.
        towards: whose last block the maps start towards, of D too; the model's own if not said.
        steps: of cross-entropy on the labels, for each tap.
        learning_rate: of the first of them; it falls to 0.
    """
    taps = taps or TAPS
    *read, last = _states(decoder, (*taps, decoder.num_blocks - 1), batches)
    if towards is not None:
        (last,) = _states(towards, (towards.num_blocks - 1,), batches)
    labels = torch.cat([batch["labels"] for batch in batches])
    head = decoder.head.real_rows(vocab_size)
    bank = build_verbalizers(decoder, taps, VerbalizerSection(structure="mlp"), seed=0)
    for tap, state in zip(taps, read, strict=True):
        (verbalizer,) = bank.layers[str(tap)]
        _start(verbalizer.map.weight, state, last)
        optimizer = torch.optim.Adam([verbalizer.map.weight], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            some = torch.randint(len(labels), (TOKENS_PER_STEP,))
            features = decoder.features(state[some] + verbalizer.change(state[some]))
            targets = label_targets(labels[some])
            found = candidate_divergences(features, head, targets)
            optimizer.zero_grad()
            found.matched(torch.zeros_like(some)).mean().backward()
            optimizer.step()
            schedule.step()
    return bank.eval().requires_grad_(False)


@torch.no_grad()
def _states(decoder: Decoder, blocks: Sequence[int], batches: list[dict[str, Any]]) -> list[Tensor]:
    """Of each block [N, D], at the response positions."""
    hidden = []
    for batch in batches:
        positions = batch["positions"]
        states, _ = run_backbone(decoder, blocks, batch["inputs"], positions)
        hidden.append([states[block].hidden.flatten(0, 1)[positions] for block in blocks])
    return [torch.cat(parts) for parts in zip(*hidden, strict=True)]


@torch.no_grad()
def _start(weight: Tensor, state: Tensor, last: Tensor) -> None:
    gram = (state.T @ state).double()
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    best = torch.linalg.solve(gram + ridge, (state.T @ last).double()).float()
    weight.copy_((best - torch.eye(len(gram))).T)


def made_up_teacher(
    samples: int, *, tokens: int = 40, vocabulary: int = 2000, batch_size: int = BATCH_SIZE
) -> Teacher:
    """A small teacher of random weights and random text: a smoke, not a measurement."""
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
        place = torch.arange(size)[:, None] * 2 * tokens + torch.arange(tokens, 2 * tokens) - 1
        batches.append(
            {
                "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                "positions": place.flatten(),
                "labels": ids[:, tokens:].flatten(),
                "token_samples": torch.arange(size).repeat_interleave(tokens),
            }
        )
    return Teacher(decoder, vocabulary, bank, batches)


def write_cache(path: Path, teacher: Teacher, reading: Reading, made: SparseDistribution) -> None:
    """A whole cache of made records ``[N, L]``, by the product's writer."""
    some = hashlib.sha256(b"benchmark").hexdigest()
    manifest = CacheManifest.model_validate(
        {
            "vlsi_cache_version": "0",
            "teacher": {"name": "teacher", "model_type": "llama", "weights_fingerprint": some},
            "verbalizers_fingerprint": some,
            "tokenizer": {"name": "teacher", "hash": some, "vocab_size": teacher.vocab_size},
            "chat_template_hash": some,
            "dataset": {
                "source": "text", "fingerprint": some, "num_samples": len(reading.counts)
            },
            "taps": (*teacher.bank.taps, -1),
            "sampling": {"k": made.k, "m": made.m, "seed": 0},
            "samples_per_shard": 512,
            "batch_size": 8,
            "dtype": "float32",
        }
    )  # fmt: skip
    writer, start, records = create_cache(path, manifest), 0, []
    labels = reading.labels.int().numpy()
    for index, count in enumerate(reading.counts):
        part = slice(start, start + count)
        key = hashlib.sha256(str(index).encode()).hexdigest()
        records.append(SampleRecord(f"sample-{index:08d}", key, labels[part], made[part]))
        start += count
    for shard in range(manifest.num_shards):
        indices = manifest.shard_range(shard)
        writer.write_shard(shard, records[indices.start : indices.stop])
