"""A model that data is checked against: its processor and its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from vlsi_cache.check.report import CheckedModel, CheckFailure, LearnedRun
from vlsi_cache.check.weights import validate_model_files
from vlsi_cache.data import BatchEncoder, known_ids, length_limit
from vlsi_cache.errors import VlsiCacheError, printable
from vlsi_cache.models import (
    load_config_of,
    load_processor_of,
    resolve_taps,
    tokenizer_of,
    vocabulary_hash,
)
from vlsi_cache.recipe import ModelSection, Recipe, named_models

__all__ = ["Subject", "failure_of", "find_model_failures", "open_subjects"]

_MOST_REPEATED = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """One model."""

    checked: CheckedModel
    """Its name and its limit."""
    section: ModelSection
    """The recipe's ``teacher`` or ``student``."""
    config: PreTrainedConfig
    """Its configuration."""
    processor: Any
    """Its processor or tokenizer."""
    encoder: BatchEncoder
    """Encodes conversations for it."""

    @property
    def num_blocks(self) -> int | None:
        """Number of its decoder blocks, as its configuration says."""
        return getattr(self.config.get_text_config(decoder=True), "num_hidden_layers", None)

    def runs(self, ids: list[int], learned: list[bool]) -> list[LearnedRun]:
        """Tokens as text, where many of the same kind are written once with their number."""
        tokenizer: Any = tokenizer_of(self.processor)
        found: list[LearnedRun] = []
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or learned[end] != learned[start]:
                text = _spelt(tokenizer, ids[start:end])
                found.append(LearnedRun(text=text, learned=learned[start]))
                start = end
        return found


def open_subjects(recipe: Recipe) -> list[Subject]:
    """Load the processors and configurations of the recipe's models.

    Raises:
        RecipeError: no model is named.
        ModelError: a processor or a configuration cannot be loaded.
    """
    return [_open(role, section, recipe) for role, section in named_models(recipe).items()]


def find_model_failures(subjects: list[Subject]) -> list[CheckFailure]:
    """Find what is wrong with the models themselves, before any row is read."""
    found = []
    for subject in subjects:
        role = subject.checked.role
        try:
            validate_model_files(subject.section, subject.config)
        except VlsiCacheError as error:
            found.append(failure_of(error, sample=None, models=[role]))
        taps = subject.section.taps
        if taps is not None and subject.num_blocks is not None:
            try:
                resolve_taps(taps, subject.num_blocks, where=f"{role}.taps")
            except VlsiCacheError as error:
                found.append(failure_of(error, sample=None, models=[role]))
    if len(subjects) == 2:
        first, second = (vocabulary_hash(tokenizer_of(one.processor)) for one in subjects)
        if first != second:
            found.append(
                CheckFailure(
                    sample=None,
                    models=[one.checked.role for one in subjects],
                    where=subjects[1].checked.name,
                    kind="tokenizers of teacher and student differ",
                    why="tokenizers of teacher and student differ. Choose a student of the "
                    "teacher's family.",
                )
            )
    return found


def failure_of(
    error: VlsiCacheError, *, sample: str | None, models: Sequence[str] = ()
) -> CheckFailure:
    """An error as an entry of the report.

    Args:
        error: the error.
        sample: name of the sample, if it is one sample's.
        models: roles of the models that raise it.
    """
    where = error.where or ""
    why = str(error)
    why = why.removeprefix(f"{' '.join(where.split())}: ") if where else why
    return CheckFailure(
        sample=None if sample is None else printable(sample),
        models=list(models),
        where=printable(where),
        kind=printable(error.what),
        why=printable(why),
    )


def _open(role: str, section: ModelSection, recipe: Recipe) -> Subject:
    config = load_config_of(section)
    processor = load_processor_of(section)
    text = config.get_text_config(decoder=True)
    limit = length_limit(text, recipe.data)
    return Subject(
        checked=CheckedModel(role=role, name=section.model or "", max_length=limit),
        section=section,
        config=config,
        processor=processor,
        encoder=BatchEncoder(processor, max_length=limit, num_ids=known_ids(config)),
    )


def _spelt(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens. An image's placeholder stands there once, with its number."""
    text = ""
    start = 0
    plain: list[int] = []
    while start < len(ids):
        end = start
        while end < len(ids) and ids[end] == ids[start]:
            end += 1
        if end - start > _MOST_REPEATED:
            text += str(tokenizer.decode(plain)) + f"{tokenizer.decode([ids[start]])}×{end - start}"
            plain = []
        else:
            plain += ids[start:end]
        start = end
    return text + str(tokenizer.decode(plain))
