"""The engine: trains a module through one stage; knows no teacher, student or cache."""

from vlsi_cache.training.advice import advising
from vlsi_cache.training.engine import run_stage
from vlsi_cache.training.folders.checkpoints import save_model
from vlsi_cache.training.folders.stage_folder import StageFolder
from vlsi_cache.training.loading import load_student
from vlsi_cache.training.loop.rates import (
    first_step_rate,
    fresh_rate,
    interaction_rates,
    samples_per_step,
)
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.quiet import without_other_bars
from vlsi_cache.training.run import LeftOut, Run, begin_run, prepare_data
from vlsi_cache.training.samples.budget import collate_pieces, padded_tokens, row_lengths
from vlsi_cache.training.samples.heldout import HeldOut
from vlsi_cache.training.samples.left_out import find_left_out, reason_of, too_many_in_a_row
from vlsi_cache.training.samples.loader import make_loader, or_raise
from vlsi_cache.training.samples.memory import TokenBound, is_out_of_memory, release_memory
from vlsi_cache.training.samples.order import (
    GroupOrder,
    Indices,
    Parcel,
    SampleOrder,
    plain_order,
)
from vlsi_cache.training.stage import Journal, Stage, Training

__all__ = [
    "GroupOrder",
    "HeldOut",
    "Indices",
    "Journal",
    "LeftOut",
    "Parcel",
    "Run",
    "SampleOrder",
    "Stage",
    "StageFolder",
    "StageModule",
    "TokenBound",
    "Training",
    "advising",
    "begin_run",
    "collate_pieces",
    "find_left_out",
    "first_step_rate",
    "fresh_rate",
    "interaction_rates",
    "is_out_of_memory",
    "load_student",
    "make_loader",
    "or_raise",
    "padded_tokens",
    "plain_order",
    "prepare_data",
    "reason_of",
    "release_memory",
    "row_lengths",
    "run_stage",
    "samples_per_step",
    "save_model",
    "too_many_in_a_row",
    "without_other_bars",
]
