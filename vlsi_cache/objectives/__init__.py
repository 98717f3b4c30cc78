"""Divergences and cross-entropies that read a hidden state through a vocabulary head."""

from vlsi_cache.objectives.dense import dense_divergence, linear_cross_entropy
from vlsi_cache.objectives.reference import reference_divergences
from vlsi_cache.objectives.sparsify import sparsify
from vlsi_cache.objectives.sweep import Sweep, matched_divergence, sweep_head
from vlsi_cache.objectives.targets import SparseTargets, label_targets

__all__ = [
    "SparseTargets",
    "Sweep",
    "dense_divergence",
    "label_targets",
    "linear_cross_entropy",
    "matched_divergence",
    "reference_divergences",
    "sparsify",
    "sweep_head",
]
