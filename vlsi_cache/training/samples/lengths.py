"""About how long every sample of the data is, measured once for all stages of a command."""

from __future__ import annotations

import numpy as np
from accelerate import PartialState

from vlsi_cache.data import rough_length
from vlsi_cache.errors import DataError
from vlsi_cache.phases import tracked
from vlsi_cache.training.processes import gathered
from vlsi_cache.training.run import Run
from vlsi_cache.training.samples.order import Indices

__all__ = ["sample_lengths"]


def sample_lengths(run: Run) -> Indices:
    """Return about how many tokens each sample has. Every process measures a part of them."""
    if not run.lengths:
        state = PartialState()
        own = range(state.process_index, len(run.data), state.num_processes)
        reading = "measuring the samples, to group them by length"
        part = [_length(run, index) for index in tracked(own, reading, total=len(own), unit="rows")]
        lengths = np.empty(len(run.data), np.int64)
        for rank, found in enumerate(gathered([np.array(part, np.int64)])):
            lengths[rank :: state.num_processes] = found
        run.lengths.append(lengths)
    return run.lengths[0]


def _length(run: Run, index: int) -> int:
    try:
        return rough_length(run.data[index])
    except DataError:
        return 0  # left out, or reported when its batch comes up
