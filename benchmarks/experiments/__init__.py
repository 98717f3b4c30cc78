"""Experiments, each in a folder with its results."""
