"""Divergences and cross-entropies that read a hidden state through a vocabulary head."""

from vlsi_cache.objectives.candidates import CandidateDivergences, candidate_divergences
from vlsi_cache.objectives.cross_entropy import linear_cross_entropy, linear_soft_cross_entropy
from vlsi_cache.objectives.dense import dense_divergence
from vlsi_cache.objectives.divergences import FORWARD, Divergence, Kind, Tail
from vlsi_cache.objectives.reference import (
    reference_cross_entropy,
    reference_divergences,
    reference_soft_cross_entropy,
)
from vlsi_cache.objectives.sweep import Sweep, frozen_head, sweep_head
from vlsi_cache.objectives.targets import SparseTargets, label_targets, sparse_targets
from vlsi_cache.objectives.tiles import chunk_tokens, chunks

__all__ = [
    "FORWARD",
    "CandidateDivergences",
    "Divergence",
    "Kind",
    "SparseTargets",
    "Sweep",
    "Tail",
    "candidate_divergences",
    "chunk_tokens",
    "chunks",
    "dense_divergence",
    "frozen_head",
    "label_targets",
    "linear_cross_entropy",
    "linear_soft_cross_entropy",
    "reference_cross_entropy",
    "reference_divergences",
    "reference_soft_cross_entropy",
    "sparse_targets",
    "sweep_head",
]
