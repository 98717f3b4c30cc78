"""The engine: trains a module through one stage; knows no teacher, student or cache."""

from vlsi_cache.training.engine import run_stage
from vlsi_cache.training.module import StageModule
from vlsi_cache.training.run import Run, begin_run
from vlsi_cache.training.stage import Journal, Stage, Training

__all__ = ["Journal", "Run", "Stage", "StageModule", "Training", "begin_run", "run_stage"]
