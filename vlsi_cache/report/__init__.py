"""Reports on a cache, as JSON or as terminal tables."""

from vlsi_cache.report.rendering import json_text
from vlsi_cache.report.sample import SampleView, SampleViews, TapGuess, TokenView, sample_view
from vlsi_cache.report.terminal import sample_table, summary_table
from vlsi_cache.report.verification import verification_table
from vlsi_cache.store.cache.figures.statistics import summarize_cache
from vlsi_cache.store.cache.figures.summary import CacheSummary, TapSummary

__all__ = [
    "CacheSummary",
    "SampleView",
    "SampleViews",
    "TapGuess",
    "TapSummary",
    "TokenView",
    "json_text",
    "sample_table",
    "sample_view",
    "summarize_cache",
    "summary_table",
    "verification_table",
]
