"""Scores on held-out conversations, against the labels and the teacher's whole distributions."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from vlsi_cache.data import IndexedConversations, TokenBatches, encoder_for, load_data
from vlsi_cache.models import Backbone, Decoder, Head, run_backbone
from vlsi_cache.objectives import chunks
from vlsi_cache.recipe import DataSection

__all__ = ["HeldOut", "Watch"]

BATCH_SIZE = 16
CHUNK = 128


@dataclass(frozen=True)
class HeldOut:
    """Conversations, and the teacher's features at each of their N response tokens."""

    batches: list[dict[str, Any]]
    kinds: list[str]
    """The beginning of each sample's name."""
    samples: Tensor
    """[N], the sample of each token."""
    features: Tensor
    """[N, D], the teacher's features before its head."""
    head: Head
    vocab_size: int

    @classmethod
    def read(cls, teacher: Backbone, path: Path, limit: int | None, kept: Path) -> HeldOut:
        """Read the first ``limit`` conversations of a file.

        The teacher's features are saved to ``kept``, and read from there the next time.
        """
        section = DataSection(path=str(path), limit=limit)
        dataset = IndexedConversations(load_data(section))
        collate = TokenBatches(encoder_for(teacher, section))
        batches: list[dict[str, Any]] = []
        samples: list[Tensor] = []
        kinds: list[str] = []
        for start in range(0, len(dataset), BATCH_SIZE):
            items = [dataset[i] for i in range(start, min(start + BATCH_SIZE, len(dataset)))]
            batch = collate(items)
            kinds += [item[1].sample_id.split("-")[0] for item in items]
            samples.append(batch["token_samples"] + start)
            batches.append(batch)
        features = _kept_features(teacher.decoder, batches, kept)
        assert len(features) == sum(len(batch["labels"]) for batch in batches), f"remove {kept}"
        return cls(
            batches,
            kinds,
            torch.cat(samples),
            features,
            teacher.head,
            teacher.vocab_size,
        )

    @torch.no_grad()
    def score(self, decoder: Decoder) -> dict[str, Any]:
        """Return means over tokens in nats and shares of right ones, overall and of each kind."""
        head = decoder.head.real_rows(self.vocab_size)
        columns = []
        start = 0
        for batch in self.batches:
            features = _features(decoder, batch)
            labels = batch["labels"]
            for rows in chunks(len(labels), CHUNK):
                teacher = self.features[start + rows.start : start + rows.stop]
                log_p = self.head.logits(teacher).float().log_softmax(-1)
                log_q = head.logits(features[rows]).float().log_softmax(-1)
                label = labels[rows][:, None]
                divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
                right = (log_q.argmax(-1, keepdim=True) == label)[:, 0].float()
                loss = -log_q.gather(1, label)[:, 0]
                columns.append(torch.stack([loss, divergence, right], dim=1))
            start += len(labels)
        return self._summary(torch.cat(columns).double().numpy())

    def _summary(self, tokens: np.ndarray[Any, Any]) -> dict[str, Any]:
        samples = self.samples.numpy()
        kinds = np.array(self.kinds)
        wrong = np.bincount(samples, weights=1 - tokens[:, 2], minlength=len(kinds))
        result = _means(tokens)
        by_kind: dict[str, Any] = {}
        for kind in sorted(set(self.kinds)):
            by_kind[kind] = _means(tokens[kinds[samples] == kind])
            # greedy decoding gives the whole answer exactly where each token is the likeliest
            by_kind[kind]["exact_answers"] = float((wrong[kinds == kind] == 0).mean())
        return {**result, "num_tokens": len(tokens), "by_kind": by_kind}


def _kept_features(decoder: Decoder, batches: list[dict[str, Any]], kept: Path) -> Tensor:
    """Return the features of all batches, from a file that is written once."""
    if not kept.exists():
        read = [_features(decoder, batch) for batch in batches]
        kept.parent.mkdir(parents=True, exist_ok=True)
        # several processes may write it at once
        partial = kept.with_suffix(f".{os.getpid()}")
        save_file({"features": torch.cat(read)}, partial)
        partial.replace(kept)
    return load_file(kept)["features"]


def _features(decoder: Decoder, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return run_backbone(decoder, (), batch["inputs"], batch["positions"])[1]


def _means(tokens: np.ndarray[Any, Any]) -> dict[str, float]:
    loss, divergence, right = tokens.mean(0)
    return {"label_loss": loss, "divergence_nats": divergence, "token_accuracy": right}


@dataclass
class Watch(TrainerCallback):
    """Score the student as it trains, and time its steps without the scoring."""

    held_out: HeldOut | None
    every: int
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    before: int = 0
    """Number of steps of the finished stages."""
    began: float = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Score the start."""
        if not self.before:
            self._score(0, model)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        """Score after every ``every`` steps. A step's time includes the wait for its data."""
        self.seconds[Path(args.output_dir).name].append(time.perf_counter() - self.began)
        if state.global_step % self.every == 0:
            self._score(self.before + state.global_step, model)
        self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Count the stage's steps."""
        self.before += state.global_step

    def _score(self, step: int, model: Any) -> None:
        if self.held_out is not None:
            found = self.held_out.score(model.decoder)
            row = {name: found[name] for name in ("label_loss", "divergence_nats")}
            self.curve.append({"step": step, **row})
