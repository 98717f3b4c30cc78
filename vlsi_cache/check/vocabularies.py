"""Whether teacher and student have one vocabulary, and in which tokens they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final

from vlsi_cache.check.report import CheckFailure
from vlsi_cache.check.subjects import Subject
from vlsi_cache.errors import printable

__all__ = ["OTHER_VOCABULARY", "find_other_vocabulary"]

OTHER_VOCABULARY: Final = "tokenizers of teacher and student differ"
_SHOWN: Final = 3
"""Tokens that are shown of each kind of difference."""


def find_other_vocabulary(subjects: Sequence[Subject]) -> CheckFailure | None:
    """Find that two models read and write other tokens, so that neither learns the other's."""
    if len(subjects) < 2 or subjects[0].vocabulary == subjects[1].vocabulary:
        return None
    first, second = (dict(one.tokenizer.get_vocab()) for one in subjects)
    named = "; ".join(_differences(first, second))
    return CheckFailure(
        sample=None,
        models=[one.checked.role for one in subjects],
        where=subjects[1].checked.name,
        kind=OTHER_VOCABULARY,
        why=printable(
            f"{OTHER_VOCABULARY}; expected the teacher's {len(first):,} tokens; found "
            f"{len(second):,}, {named}. Choose a student of the teacher's family."
        ),
    )


def _differences(first: Mapping[str, int], second: Mapping[str, int]) -> Iterator[str]:
    """Name a few tokens that only one of them has, or that have other numbers."""
    kinds = (
        (
            "of which the teacher lacks",
            sorted(second.keys() - first.keys(), key=second.__getitem__),
        ),
        ("without the teacher's", sorted(first.keys() - second.keys(), key=first.__getitem__)),
    )
    for words, tokens in kinds:
        if tokens:
            yield f"{words} {_listed(tokens)}"
    moved = (
        f"{token!r} ({first[token]} and {second[token]})"
        for token in sorted(first, key=first.__getitem__)
        if token in second and first[token] != second[token]
    )
    shown = list(islice(moved, _SHOWN))
    if shown:
        yield f"with other numbers for {', '.join(shown)}"


def _listed(tokens: Sequence[str]) -> str:
    more = ["…"] if len(tokens) > _SHOWN else []
    return ", ".join(chain(map(repr, tokens[:_SHOWN]), more))
