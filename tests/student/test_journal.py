"""The matching journal: appended, read back, and taken up again after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlsi_cache.errors import StageError
from vlsi_cache.stagefiles import JournalLine
from vlsi_cache.student.journal import MatchingJournal


def _journal(folder: Path) -> MatchingJournal:
    journal = MatchingJournal(folder, student_taps=(2,), teacher_taps=(2, 6))
    for step in (10, 20, 30):
        share = torch.tensor([[0.25, 0.75]])
        journal.append(step, {"share": share, "divergence": share * step})
    return journal


def _steps(journal: MatchingJournal) -> list[int]:
    text = journal.path.read_text(encoding="utf-8")
    return [JournalLine.model_validate_json(line).step for line in text.splitlines()]


def test_a_line_says_who_met_whom(tmp_path: Path) -> None:
    text = _journal(tmp_path).path.read_text(encoding="utf-8")
    line = JournalLine.model_validate_json(text.splitlines()[1])
    assert line == JournalLine(
        step=20,
        student_taps=[2],
        teacher_taps=[2, 6],
        share=[[0.25, 0.75]],
        divergence=[[5.0, 15.0]],
    )


def test_a_resumed_stage_writes_again_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.resume(20)
    assert _steps(journal) == [10, 20]
    journal.resume(0)
    assert _steps(journal) == []


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-20])
    journal.resume(30)
    assert _steps(journal) == [10, 20]


def test_a_crash_may_leave_zeros_at_the_end(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.path.write_bytes(journal.path.read_bytes()[:-20] + b"\0" * 300)
    journal.resume(30)
    assert _steps(journal) == [10, 20]


@pytest.mark.parametrize("junk", [b"[]", b"\0\0", b"\xff", b'{"step": 5}'])
def test_a_damaged_line_before_the_last_is_named(junk: bytes, tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = junk
    journal.path.write_bytes(b"\n".join(lines))
    with pytest.raises(
        StageError, match=r"matching\.jsonl: line 2 of the journal is damaged\. Mov"
    ):
        journal.resume(30)


def test_a_stage_that_wrote_nothing_yet_resumes(tmp_path: Path) -> None:
    journal = MatchingJournal(tmp_path, student_taps=(2,), teacher_taps=(2, 6))
    journal.resume(5)
    assert not journal.path.exists()
