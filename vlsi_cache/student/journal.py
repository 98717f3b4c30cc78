"""The matching journal: which teacher taps each student tap learnt from, and their divergences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vlsi_cache.stagefiles import JOURNAL_FILE, JournalLine
from vlsi_cache.training.folders.lines import keep_lines

__all__ = ["MatchingJournal"]


class MatchingJournal:
    """Appends a line at every logging step. A resumed stage goes on from its checkpoint's step.

    Args:
        folder: the stage's folder.
        student_taps: block indices of the student's taps.
        teacher_taps: block indices of the teacher's taps.
    """

    def __init__(
        self, folder: Path, *, student_taps: Sequence[int], teacher_taps: Sequence[int]
    ) -> None:
        self.path = folder / JOURNAL_FILE
        self.student_taps = list(student_taps)
        self.teacher_taps = list(teacher_taps)

    def resume(self, step: int) -> None:
        """Drop the lines after a step: they will be written again.

        Raises:
            StageError: a line is damaged, and not by an interruption: that tears only the last.
        """
        keep_lines(self.path, JournalLine, step)

    def append(self, step: int, tables: Mapping[str, Tensor]) -> None:
        """Write the means of the tables that the interaction observed since the last line."""
        rows = {name: table.tolist() for name, table in tables.items()}
        weighted = rows.pop("weighted_temperature", None)
        if weighted is not None:
            pairs = zip(weighted, rows["choice"], strict=True)
            rows["temperature"] = [total / often if often else None for total, often in pairs]
        line = JournalLine(
            step=step, student_taps=self.student_taps, teacher_taps=self.teacher_taps, **rows
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
