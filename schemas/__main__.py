"""Regenerate the schemas."""

from vlsi_cache.schemas import write_all

write_all()
