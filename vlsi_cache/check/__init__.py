"""Checking data and models before hours are spent: no weights are loaded."""

from vlsi_cache.check.checking import check_data
from vlsi_cache.check.report import CheckFailure, CheckReport, LearnedRun, LearnedSample
from vlsi_cache.check.terminal import check_table

__all__ = [
    "CheckFailure",
    "CheckReport",
    "LearnedRun",
    "LearnedSample",
    "check_data",
    "check_table",
]
