"""A report on a cache as one HTML file that needs nothing else."""

from vlsi_cache.report.page.environment import MAX_PAGE_BYTES
from vlsi_cache.report.page.rendering import (
    MAX_PAGE_SAMPLES,
    CachePage,
    render_page,
)

__all__ = ["MAX_PAGE_BYTES", "MAX_PAGE_SAMPLES", "CachePage", "render_page"]
