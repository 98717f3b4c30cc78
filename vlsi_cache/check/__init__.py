"""Checking data and models before hours are spent: no weights are loaded."""

from vlsi_cache.check.checking import check_data
from vlsi_cache.check.pictures import with_blank_pictures
from vlsi_cache.check.report import CheckFailure, CheckReport, LearnedRun, LearnedSample
from vlsi_cache.check.subjects import Subject, open_subjects
from vlsi_cache.check.terminal import check_table

__all__ = [
    "CheckFailure",
    "CheckReport",
    "LearnedRun",
    "LearnedSample",
    "Subject",
    "check_data",
    "check_table",
    "open_subjects",
    "with_blank_pictures",
]
