"""Folders and hub names to a model, its configuration and its processor."""
