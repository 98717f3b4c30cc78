"""A teacher with verbalizers and what it says about text it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import assets
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlsi_cache.data import EncodedDataset
from vlsi_cache.distribution import SparseDistribution
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.models import Decoder, Head, bind_decoder
from vlsi_cache.recipe import VerbalizerSection, recipe_from_mapping
from vlsi_cache.stages.backbone import load_backbone, load_data, run_backbone
from vlsi_cache.stages.batches import TokenBatches
from vlsi_cache.stages.verbalize import obtain_verbalizers
from vlsi_cache.store import SampleRecord, create_cache
from vlsi_cache.verbalizer import VerbalizerBank, build_verbalizers

__all__ = ["Reading", "Teacher", "made_up_teacher", "real_teacher", "write_cache"]

TAPS = (2, 6, 10, 14, 18, 22, 26)
BATCH_SIZE = 8


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


def real_teacher(samples: int) -> Teacher:
    """SmolLM2-135M with verbalizers that the product's stage trained, the first time."""
    recipe = recipe_from_mapping(
        {
            "device": "cpu",
            "output": str(assets.FOLDER / "teacher"),
            "data": {"path": str(assets.text(2000))},
            "teacher": {
                "model": str(assets.smollm2()),
                "dtype": "float32",
                "taps": list(TAPS),
                "verbalization": {
                    "steps": 120,
                    "batch_size": 4,
                    "learning_rate": 2e-3,
                    "warmup_steps": 5,
                },
            },
        },
        where="benchmarks/teacher.py",
    )
    backbone = load_backbone(recipe.teacher, "teacher", torch.device("cpu"), "float32")
    bank = obtain_verbalizers(
        backbone,
        recipe.teacher,
        load_data(recipe.data),
        recipe.data,
        recipe.teacher_verbalizers_path,
        seed=0,
        autocast=False,
    )
    held_out = recipe.data.model_copy(update={"path": str(assets.text(samples, held_out=True))})
    dataset, collate = EncodedDataset(load_data(held_out)), TokenBatches(backbone.encoder(held_out))
    batches = [
        collate([dataset[index] for index in range(start, min(start + BATCH_SIZE, samples))])
        for start in range(0, samples, BATCH_SIZE)
    ]
    return Teacher(backbone.decoder, backbone.vocab_size, bank, batches)


def made_up_teacher(samples: int, *, tokens: int = 40, vocabulary: int = 2000) -> Teacher:
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
    for start in range(0, samples, BATCH_SIZE):
        size = min(BATCH_SIZE, samples - start)
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
