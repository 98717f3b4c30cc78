"""A journal's lines to a few periods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlsi_cache.report.run.summary import Matching, MatchingPeriod
from vlsi_cache.report.run.thinning import spans
from vlsi_cache.stagefiles import JournalLine

__all__ = ["matching_of"]

_MOST_PERIODS: Final = 40
_MOST_CELLS: Final = 20_000
"""Most shares of all periods together, unless two periods have more."""


class _Shares(NamedTuple):
    """What a period needs of a line. A long journal would not fit in memory as lists."""

    step: int
    share: NDArray[np.float32]
    matched: NDArray[np.float64]


def matching_of(lines: Iterable[JournalLine], notes: list[str]) -> Matching | None:
    """Return the means of a journal's lines, or None if it has none.

    Args:
        lines: the lines, ascending.
        notes: gets a note on lines of other taps than those before.
    """
    last: JournalLine | None = None
    kept: list[_Shares] = []
    num_others = 0
    for line in lines:
        if last is not None and _taps(line) != _taps(last):
            num_others += len(kept)
            kept = []
        kept.append(_shares(line))
        last = line
    if num_others:
        notes.append(f"{num_others:,} lines of the journal are of other taps, and are left out.")
    if last is None:
        return None
    cells = len(last.student_taps) * len(last.teacher_taps)
    most = min(_MOST_PERIODS, max(2, _MOST_CELLS // max(cells, 1)))
    return Matching(
        student_taps=tuple(last.student_taps),
        teacher_taps=tuple(last.teacher_taps),
        num_lines=len(kept),
        periods=tuple(_period(kept[span]) for span in spans(len(kept), most)),
        last_divergence=tuple(map(tuple, last.divergence)),
    )


def _taps(line: JournalLine) -> tuple[list[int], list[int]]:
    return line.student_taps, line.teacher_taps


def _shares(line: JournalLine) -> _Shares:
    share = np.array(line.share, np.float32)
    matched = (share * np.array(line.divergence, np.float64)).sum(-1)
    return _Shares(line.step, share, matched)


def _period(lines: Sequence[_Shares]) -> MatchingPeriod:
    share = np.stack([line.share for line in lines]).mean(0, dtype=np.float64)
    return MatchingPeriod(
        first_step=lines[0].step,
        last_step=lines[-1].step,
        share=tuple(map(tuple, share.round(4).tolist())),
        matched_divergence=tuple(np.stack([line.matched for line in lines]).mean(0).tolist()),
    )
