"""Offline teacher-cache distillation: layer by layer, without the teacher in memory."""
