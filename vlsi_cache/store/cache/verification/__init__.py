"""Verifying a cache: every file against its seal, and which of them is at fault."""
