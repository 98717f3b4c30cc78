"""The teacher pass: from a model and conversations to a cache."""

from vlsi_cache.teacher.dump import dump_teacher
from vlsi_cache.teacher.filling import DumpProgress
from vlsi_cache.teacher.partition import Partition

__all__ = ["DumpProgress", "Partition", "dump_teacher"]
