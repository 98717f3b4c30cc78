"""A model that data is checked against: its processor and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vlsi_cache.check.report import CheckedModel, LearnedRun
from vlsi_cache.data import BatchEncoder, known_ids, length_limit
from vlsi_cache.models import (
    load_config_of,
    load_processor_of,
    tokenizer_of,
    vocabulary_hash,
)
from vlsi_cache.models.loading.preview import ModelPreview, describe_model
from vlsi_cache.recipe import ModelSection, Recipe, named_models

__all__ = ["Role", "Subject", "open_subject", "open_subjects"]

Role = Literal["teacher", "student"]

_MOST_REPEATED = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """One model."""

    role: Role
    """`teacher` or `student`."""
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
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return tokenizer_of(self.processor)

    @property
    def preview(self) -> ModelPreview:
        """What its small files say."""
        return describe_model(self.checked.name, self.role, self.config, self.tokenizer)

    @property
    def vocabulary(self) -> str:
        """SHA-256 of its vocabulary."""
        return vocabulary_hash(self.tokenizer)

    def runs(self, ids: list[int], learned: list[bool]) -> list[LearnedRun]:
        """Tokens as text, where many of the same placeholder are written once with their number."""
        tokenizer: Any = self.tokenizer
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
    return [open_subject(role, section, recipe) for role, section in named_models(recipe).items()]


def open_subject(role: Role, section: ModelSection, recipe: Recipe) -> Subject:
    """Load the processor and the configuration of one model.

    Raises:
        ModelError: one of them cannot be loaded.
    """
    config = load_config_of(section)
    processor = load_processor_of(section)
    text = config.get_text_config(decoder=True)
    limit = length_limit(text, recipe.data)
    return Subject(
        role=role,
        checked=CheckedModel(role=role, name=section.model or "", max_length=limit),
        section=section,
        config=config,
        processor=processor,
        encoder=BatchEncoder(processor, max_length=limit, num_ids=known_ids(config)),
    )


def _spelt(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens. An image's placeholder stands there once, with its number.

    Words and digits that repeat are the data's own, and stand there as they are.
    """
    added = tokenizer.added_tokens_decoder.items()
    placeholders = {number for number, token in added if token.content.strip()}
    text = ""
    start = 0
    plain: list[int] = []
    while start < len(ids):
        end = start
        while end < len(ids) and ids[end] == ids[start]:
            end += 1
        if end - start > _MOST_REPEATED and ids[start] in placeholders:
            text += str(tokenizer.decode(plain)) + f"{tokenizer.decode([ids[start]])}×{end - start}"
            plain = []
        else:
            plain += ids[start:end]
        start = end
    return text + str(tokenizer.decode(plain))
