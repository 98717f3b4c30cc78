"""JSON Schemas of everything that vlsi-cache reads or writes as JSON or YAML.

Run ``python -m vlsi_cache.schemas`` after changing a model. A test keeps files and models in sync.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["FOLDER", "rendered", "write_all"]

FOLDER = Path(__file__).parent


def _stored_models() -> dict[str, type[BaseModel]]:
    """Return the models of files that one command writes and another reads."""
    from vlsi_cache.manifest import CacheManifest
    from vlsi_cache.recipe import Recipe
    from vlsi_cache.stagefiles import JournalLine, MetricLine, StageRecord
    from vlsi_cache.store.cache.seals import CacheIndex, ProcessorSeal, ShardSeal
    from vlsi_cache.student.cached.arrivals import ArrivalLine
    from vlsi_cache.student.choosing.holding_out import HeldOutFound
    from vlsi_cache.training.folders.measurements import MeasurementLine
    from vlsi_cache.training.samples.left_out import UnreadableSamples
    from vlsi_cache.verbalizer import VerbalizerConfig

    return {
        "recipe": Recipe,
        "manifest": CacheManifest,
        "index": CacheIndex,
        "shard-seal": ShardSeal,
        "processor-seal": ProcessorSeal,
        "verbalizers": VerbalizerConfig,
        "stage": StageRecord,
        "unreadable": UnreadableSamples,
        "matching": JournalLine,
        "metrics": MetricLine,
        "arrivals": ArrivalLine,
        "held-out": HeldOutFound,
        "measurement": MeasurementLine,
    }


def _printed_models() -> dict[str, type[BaseModel]]:
    """Return the models of what commands print with ``--json``."""
    from vlsi_cache.check import CheckReport
    from vlsi_cache.demo.table import DemoSummary
    from vlsi_cache.evaluation import Evaluation
    from vlsi_cache.plan import Plan
    from vlsi_cache.report import CacheSummary, SampleView
    from vlsi_cache.report.comparison import CacheComparison, RunComparison
    from vlsi_cache.report.run.summary import RunSummary
    from vlsi_cache.store import Verification

    return {
        "inspect": CacheSummary,
        "inspect-sample": SampleView,
        "inspect-run": RunSummary,
        "compare-caches": CacheComparison,
        "compare-runs": RunComparison,
        "verify": Verification,
        "check": CheckReport,
        "plan": Plan,
        "evaluate": Evaluation,
        "demo": DemoSummary,
    }


def rendered() -> dict[str, str]:
    """The JSON text of every schema, made from the models, by file name."""
    return {
        f"{name}.json": json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
        for name, model in (_stored_models() | _printed_models()).items()
    }


def write_all() -> None:
    """Write every schema beside this file."""
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
