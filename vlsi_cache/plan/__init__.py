"""Planning a run: what it will take in bytes, tokens and hours, before any weight is read."""

from vlsi_cache.plan.planning import Machines, plan_run
from vlsi_cache.plan.report import Mend, Plan, PlannedStage, VerbalizerParameters
from vlsi_cache.plan.terminal import plan_table

__all__ = [
    "Machines",
    "Mend",
    "Plan",
    "PlannedStage",
    "VerbalizerParameters",
    "plan_run",
    "plan_table",
]
