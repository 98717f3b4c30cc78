"""The exact divergence of finished students: whole distributions, on conversations none learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.longer.setting import Setting
from experiments.longer.training import Run
from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.models import Backbone, load_backbone, run_backbone
from vlsi_cache.recipe import DataSection, ModelSection

__all__ = ["UNTOUCHED", "score"]

BATCH_SIZE = 16
UNTOUCHED = "untouched"
"""Name of the cut as it is before any training."""


def score(
    setting: Setting, teacher: Path, runs: Sequence[Run], device: torch.device
) -> dict[str, dict[str, float]]:
    """Return the label loss and divergence of the untouched cut and of each finished student."""
    finished = {run.name: run.student for run in runs if run.student is not None}
    if not finished:
        raise SystemExit(f"no run finished. See {setting.folder / 'logs'}")
    reader = _loaded(teacher, "teacher", device)
    held_out = next(run.folder for run in runs if run.student is not None) / "held-out.json"
    batches = _batches(setting, reader, json.loads(held_out.read_text("utf-8"))["samples"])
    folders: Mapping[str, Path] = {UNTOUCHED: setting.student, **finished}
    students = {name: _loaded(path, "student", device) for name, path in folders.items()}
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in students}
    with torch.no_grad():
        for batch in batches:
            wanted = _log_probabilities(reader, batch, device)
            labels = batch["labels"].to(device)[:, None]
            for name, student in students.items():
                own = _log_probabilities(student, batch, device)
                divergence = (wanted.exp() * (wanted - own)).sum(-1)
                loss = -own.gather(1, labels)[:, 0]
                found = torch.stack([divergence, loss, torch.ones_like(loss)])
                sums[name] += found.double().sum(1).cpu()
    return {name: _means(found) for name, found in sums.items()}


def _means(sums: Tensor) -> dict[str, float]:
    divergence, loss, tokens = sums.tolist()
    return {
        "divergence_nats": divergence / tokens,
        "label_loss": loss / tokens,
        "tokens": int(tokens),
    }


def _loaded(folder: Path, role: str, device: torch.device) -> Backbone:
    return load_backbone(ModelSection(model=str(folder), dtype="float32"), role, device)


def _batches(setting: Setting, teacher: Backbone, samples: Sequence[int]) -> list[dict[str, Any]]:
    section = DataSection(path=str(setting.data))
    dataset = IndexedConversations(load_data(section))
    collate = TokenBatches(encoder_for(teacher, section))
    starts = range(0, len(samples), BATCH_SIZE)
    return [collate([dataset[i] for i in samples[at : at + BATCH_SIZE]]) for at in starts]


def _log_probabilities(backbone: Backbone, batch: dict[str, Any], device: torch.device) -> Tensor:
    inputs = {name: value.to(device) for name, value in batch["inputs"].items()}
    decoder = backbone.decoder
    features = run_backbone(decoder, (), inputs, batch["positions"].to(device))[1]
    head = decoder.head.real_rows(backbone.vocab_size)
    return head.logits(features).float().log_softmax(-1)
