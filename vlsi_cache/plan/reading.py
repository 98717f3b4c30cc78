"""How long the samples are: by the reading that ``check`` does, of all rows or of some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from vlsi_cache.check import Subject, open_subjects, with_blank_pictures
from vlsi_cache.data import ConversationDataset, load_data
from vlsi_cache.errors import DataError
from vlsi_cache.phases import phase
from vlsi_cache.plan.rehearsing.steps import Batch
from vlsi_cache.recipe import Recipe
from vlsi_cache.training.samples.budget import cut_rows

__all__ = ["SampleLengths", "read_lengths"]


@dataclass(frozen=True, slots=True)
class SampleLengths:
    """Counts of the rows that were read."""

    source: str
    """The data, as the recipe names it."""
    num_rows: int
    """Rows of the data."""
    tokens: list[int]
    """Tokens of each sound row that was read."""
    responses: list[int]
    """Tokens of each that are learned."""
    pixels: list[int]
    """Numbers in each one's pictures, as the model gets them."""
    num_unreadable: int
    """Rows that were tried and cannot be read."""

    @property
    def num_read(self) -> int:
        """Rows that were tried."""
        return len(self.tokens) + self.num_unreadable

    def extrapolated(self, counts: list[int]) -> int:
        """Return the sum over all rows, from that of the rows that were tried."""
        return round(sum(counts) * self.num_rows / self.num_read)

    def heaviest(self, num_samples: int) -> Batch:
        """Return a heavy batch: the longest sample beside samples of the mean length.

        All are padded to the longest.
        """
        num_samples = min(num_samples, self.num_rows)
        others = ceil((num_samples - 1) * float(np.mean(self.responses)))
        return Batch(num_samples, max(self.tokens), max(self.responses) + others)

    def heavy_passes(self, num_samples: int, most_tokens: int | None) -> list[Batch]:
        """Return the passes of a batch that may take the most memory.

        With a bound these are the one with the longest sample and, where it has more, the one with
        the most response tokens. Rows of like length share a pass.

        Args:
            num_samples: samples of the batch.
            most_tokens: the bound on a pass's tokens, padding included.
        """
        longest = self.heaviest(self.bounded(num_samples, most_tokens))
        if most_tokens is None:
            return [longest]
        passes = [self._fullest(rows, num_samples) for rows in cut_rows(self.tokens, most_tokens)]
        fullest = max(passes, key=lambda one: one.num_responses)
        is_fuller = fullest.num_responses > longest.num_responses
        return [longest, fullest] if is_fuller else [longest]

    def _fullest(self, rows: list[int], num_samples: int) -> Batch:
        """Return a pass of those rows that have the most response tokens."""
        chosen = sorted(rows, key=lambda row: -self.responses[row])[:num_samples]
        responses = sum(self.responses[row] for row in chosen)
        return Batch(len(chosen), max(self.tokens[row] for row in chosen), responses)

    def bounded(self, num_samples: int, most_tokens: int | None) -> int:
        """Return the samples of the heaviest pass: its rows are padded to the longest sample."""
        if most_tokens is None:
            return num_samples
        return max(1, min(num_samples, most_tokens // max(self.tokens)))

    def usual(self, num_samples: int) -> Batch:
        """Return a batch of samples of the mean length."""
        num_samples = min(num_samples, self.num_rows)
        responses = max(round(num_samples * float(np.mean(self.responses))), 1)
        return Batch(num_samples, max(round(float(np.mean(self.tokens))), 2), responses)

    def patches(self, num_samples: int, pixels_per_patch: int) -> int:
        """Return the patches of the heaviest batch's pictures."""
        others = (num_samples - 1) * float(np.mean(self.pixels))
        return round((max(self.pixels) + others) / pixels_per_patch)


def read_lengths(
    recipe: Recipe, most_rows: int, on_progress: Callable[[int, int], None] | None = None
) -> SampleLengths:
    """Render and tokenize rows of the recipe's data. Pictures are read by their sizes.

    Args:
        recipe: the run; ``data`` and the first model of ``teacher`` and ``student`` are read.
        most_rows: if there are more, so many are read, evenly spread over the data.
        on_progress: called with the number of rows that are done, and of all that are read.

    Raises:
        RecipeError: neither data nor a model is named.
        DataError: the data cannot be opened, or no row that was tried can be read.
        ModelError: a processor cannot be loaded.
    """
    with phase("opening the processors and the data", patient=True):
        subject = open_subjects(recipe)[0]
        data = load_data(recipe.data)
    count = min(most_rows, len(data))
    indices = np.unique(np.linspace(0, len(data) - 1, count).round().astype(int)).tolist()
    found: list[tuple[int, int, int]] = []
    reason: DataError | None = None
    for done, index in enumerate(indices, start=1):
        try:
            found.append(_measure(subject, data, index))
        except DataError as error:
            reason = error
        if on_progress is not None:
            on_progress(done, len(indices))
    if not found:
        raise reason if reason is not None else _empty(data)
    tokens, responses, pixels = (list(column) for column in zip(*found, strict=True))
    unreadable = len(indices) - len(found)
    return SampleLengths(data.source, len(data), tokens, responses, pixels, unreadable)


def _measure(subject: Subject, data: ConversationDataset, index: int) -> tuple[int, int, int]:
    batch: dict[str, Any] = subject.encoder([with_blank_pictures(data[index])])
    pixels = sum(
        value.numel()
        for name, value in batch.items()
        if "pixel" in name and value.is_floating_point()
    )
    return batch["input_ids"].shape[1], int(batch["response_mask"].sum()), pixels


def _empty(data: ConversationDataset) -> DataError:
    return DataError("there are no rows to plan for", where=data.source)
