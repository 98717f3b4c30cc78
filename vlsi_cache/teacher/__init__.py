"""The teacher pass: from a model and conversations to a cache."""

from vlsi_cache.recipe.partition import Partition
from vlsi_cache.teacher.dump import dump_teacher
from vlsi_cache.teacher.filling import DumpProgress

__all__ = ["DumpProgress", "Partition", "dump_teacher"]
