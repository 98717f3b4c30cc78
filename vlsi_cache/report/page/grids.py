"""What each layer says at each token of a sample, cut to what a page has room for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from vlsi_cache.errors import printable
from vlsi_cache.report.sample import Picture, SampleView, TapGuess, TurnView
from vlsi_cache.report.words import MOST_OF_NAME, tap_name, visible_text, visible_token

__all__ = ["Grid", "GridCell", "GridRow", "Limits", "ShownTurn", "make_grid"]

_WORD: Final = 24
"""Most characters of a token in a page."""
_ENTRIES: Final = 24
"""Most tokens that are named for a cell."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sample may take of a page."""

    cells: int
    """Cells of the grid."""
    characters: int
    """Characters of the conversation."""
    pictures: int
    """Pictures of the conversation."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """The likeliest token of one tap."""

    word: str
    """Its text."""
    percent: int
    """Its probability, or its share of the draws."""
    is_label: bool
    """Whether it is the token that the data holds."""


@dataclass(frozen=True, slots=True)
class GridRow:
    """One response token."""

    word: str
    """Its text."""
    cells: tuple[GridCell, ...]
    """The taps in order."""


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """One turn of the conversation, as far as it is shown."""

    role: str
    """Whose turn it is."""
    texts: tuple[str, ...]
    """Texts, cut."""
    pictures: tuple[Picture, ...]
    """Images."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A sample of a page."""

    name: str
    """Name of the sample."""
    failure: str | None
    """Why it could not be read."""
    only_draws: bool
    """Whether probabilities are shares of draws."""
    taps: tuple[str, ...]
    """Names of the taps."""
    rows: tuple[GridRow, ...]
    """The first tokens."""
    num_tokens: int
    """Response tokens, shown or not."""
    turns: tuple[ShownTurn, ...] | None
    """The conversation, if the data was read."""
    details: dict[str, Any]
    """``words``, and per row and tap its entropy, the label's log-probability, and pairs of a
    word's place with its percent, or with minus the number of its draws."""


def make_grid(view: SampleView, limits: Limits) -> Grid:
    """Return a sample as a page shows it.

    Args:
        view: the sample.
        limits: what it may take.
    """
    tokens = view.tokens[: limits.cells // max(len(view.taps), 1)]
    words: dict[str, int] = {}
    return Grid(
        name=printable(view.sample_id, MOST_OF_NAME),
        failure=None if view.failure is None else printable(view.failure),
        only_draws=view.only_draws,
        taps=tuple(map(tap_name, view.taps)),
        rows=tuple(
            GridRow(
                word=visible_token(token.text, _WORD),
                cells=tuple(
                    GridCell(
                        word=visible_token(guess.text, _WORD),
                        percent=round(guess.probability * 100),
                        is_label=guess.token_id == token.token_id,
                    )
                    for guess in token.guesses
                ),
            )
            for token in tokens
        ),
        num_tokens=len(view.tokens),
        turns=None if view.conversation is None else tuple(_turns(view.conversation, limits)),
        details={
            "cells": [[_details(guess, words) for guess in token.guesses] for token in tokens],
            "words": list(words),
        },
    )


def _details(guess: TapGuess, words: dict[str, int]) -> list[Any]:
    entries: list[float] = []
    for entry in guess.entries[:_ENTRIES]:
        place = words.setdefault(visible_token(entry.text, _WORD), len(words))
        entries += [place, -entry.drawn or round(entry.weight * 100, 1)]
    return [round(guess.entropy_nats, 3), round(guess.label_log_prob_nats, 3), entries]


def _turns(conversation: tuple[TurnView, ...], limits: Limits) -> Iterator[ShownTurn]:
    characters, pictures = limits.characters, limits.pictures
    for turn in conversation:
        texts, shown = [], []
        for part in turn.parts:
            if isinstance(part, Picture):
                if pictures > 0:
                    shown.append(part)
                else:
                    texts.append("[an image that is not shown]")
                pictures -= 1
            elif characters > 0:
                texts.append(
                    visible_text(part[:characters]) + ("" if len(part) <= characters else " …")
                )
                characters -= len(part)
        if texts or shown:
            yield ShownTurn(printable(turn.role, _WORD), tuple(texts), tuple(shown))
