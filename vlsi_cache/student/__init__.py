"""The student: trained from a cache, without the teacher."""

from vlsi_cache.student.train import train_student

__all__ = ["train_student"]
