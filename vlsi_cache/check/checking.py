"""``check_data``: reads, renders and tokenizes every row, and goes on past those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vlsi_cache.check.pictures import with_blank_pictures
from vlsi_cache.check.report import CheckedModel, CheckFailure, CheckReport, LearnedSample
from vlsi_cache.check.subjects import (
    Subject,
    failure_of,
    find_model_failures,
    open_subjects,
)
from vlsi_cache.data import (
    Conversation,
    ConversationDataset,
    load_data,
    response_ids,
    take_changed_samples,
)
from vlsi_cache.data.images import missing_image
from vlsi_cache.errors import DataError, ModelError, counted, printable
from vlsi_cache.recipe import Recipe, idle_settings

__all__ = ["check_data"]

logger = logging.getLogger(__name__)

_SHOWN_SAMPLES = 3
"""Samples that are shown: the first sound one of each third of the rows."""
_OTHER_TOKENS = "teacher and student have other response tokens"


def check_data(
    recipe: Recipe,
    *,
    decode_images: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check data and models without loading weights.

    Args:
        recipe: description of the run. ``data``, ``teacher`` and ``student`` are read.
        decode_images: decode pictures. Otherwise only their sizes are read.
        on_progress: called with the number of rows that are done, and of all.

    Returns:
        All that would fail, and counts of the rest.

    Raises:
        RecipeError: neither data nor a model is named.
        DataError: the data cannot be opened.
        ModelError: a processor or a configuration cannot be loaded.
    """
    subjects = open_subjects(recipe)
    data = load_data(recipe.data)
    names = " and ".join(f"{one.checked.role} {one.checked.name}" for one in subjects)
    logger.info("checking %s: %s for %s", data.source, counted(len(data), "row"), names)
    take_changed_samples()
    failures = find_model_failures(subjects)
    check = _Check(list(subjects), decode_images, failures, skips=recipe.skips_failures)
    for index in range(len(data)):
        check.read(data, index)
        if on_progress is not None:
            on_progress(index + 1, len(data))
    return check.report(data, [subject.checked for subject in subjects], _idle(recipe))


def _idle(recipe: Recipe) -> list[str]:
    """Find settings without effect in the commands that run the named models."""
    roles: tuple[Literal["teacher", "student"], ...] = ("teacher", "student")
    named = [role for role in roles if getattr(recipe, role).model is not None]
    found = [setting for role in named for setting in idle_settings(recipe, role)]
    return list(dict.fromkeys(found))


@dataclass(slots=True)
class _Check:
    """Counts of the rows so far."""

    subjects: list[Subject]
    """The models that can still encode."""
    decode_images: bool
    failures: list[CheckFailure]
    skips: bool = False
    """Whether a run leaves out samples that fail."""
    num_sound: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    longest: int = 0
    samples: list[tuple[bool, LearnedSample]] = field(default_factory=list)
    """Samples that may be shown, each with whether it is the first of its third."""
    thirds: set[int] = field(default_factory=set)
    """Thirds of the rows that have a sound one."""
    agree: bool = field(init=False)
    """Whether the models have one vocabulary, so that their tokens are comparable."""

    def __post_init__(self) -> None:
        self.agree = not any("tokenizers" in failure.kind for failure in self.failures)

    def read(self, data: ConversationDataset, index: int) -> None:
        """Check one row."""
        before = len(self.failures)
        try:
            conversation = data[index]
        except DataError as error:
            self.failures.append(failure_of(error, sample=error.where))
            return
        # Who reads text only has no use for the advice to bring the images.
        if not self.subjects or any(subject.encoder.sees_images for subject in self.subjects):
            self._find_missing_images(conversation)
        if len(self.failures) > before:
            return
        encoded = self._encode(conversation)
        if len(self.failures) == before and encoded:
            self._compare(conversation, encoded)
        if len(self.failures) == before and encoded:
            self._count(_third(index, len(data)), conversation, encoded[0])

    def _find_missing_images(self, conversation: Conversation) -> None:
        for image in conversation.images:
            if not image.exists():
                missing = missing_image(image, conversation.origin)
                self.failures.append(failure_of(missing, sample=conversation.sample_id))

    def _encode(self, conversation: Conversation) -> list[tuple[Subject, dict[str, Tensor]]]:
        shown = conversation if self.decode_images else with_blank_pictures(conversation)
        encoded = []
        for subject in list(self.subjects):
            try:
                encoded.append((subject, subject.encoder([shown])))
            except DataError as error:
                failure = failure_of(error, sample=conversation.sample_id)
                if failure not in self.failures[-1:]:  # both models may refuse it alike
                    self.failures.append(failure)
            except ModelError as error:  # it concerns the model, and every row would repeat it
                self.failures.append(failure_of(error, sample=None))
                self.subjects.remove(subject)
        return encoded

    def _compare(
        self, conversation: Conversation, encoded: list[tuple[Subject, dict[str, Tensor]]]
    ) -> None:
        """Compare the response tokens of teacher and student."""
        if len(encoded) < 2 or not self.agree:
            return
        first, second = (response_ids(batch) for _, batch in encoded)
        if not torch.equal(first, second):
            self.failures.append(
                CheckFailure(
                    sample=printable(conversation.sample_id),
                    where=conversation.origin,
                    kind=_OTHER_TOKENS,
                    why=f"{_OTHER_TOKENS}; expected the teacher's "
                    f"{len(first):,}; found {len(second):,}. Give both the same chat template.",
                )
            )

    def _count(
        self, third: int, conversation: Conversation, first: tuple[Subject, dict[str, Tensor]]
    ) -> None:
        """Count a sound row, and keep it if it is to be shown.

        Args:
            third: the third of the rows in which it lies.
            conversation: the row.
            first: what the first model reads of it.
        """
        subject, batch = first
        learned = batch["response_mask"][0].tolist()
        self.num_sound += 1
        self.num_tokens += len(learned)
        self.num_learned += sum(learned)
        self.longest = max(self.longest, len(learned))
        is_first = third not in self.thirds
        if is_first or len(self.samples) < _SHOWN_SAMPLES:
            self.thirds.add(third)
            runs = subject.runs(batch["input_ids"][0].tolist(), learned)
            name = printable(conversation.sample_id)
            self.samples.append((is_first, LearnedSample(sample=name, runs=runs)))

    def report(
        self, data: ConversationDataset, models: list[CheckedModel], idle: list[str]
    ) -> CheckReport:
        """Return what was found."""
        absent = data.columns_not_met()
        if absent:
            idle = [*idle, f"data.columns: no row has {', '.join(absent)}"]
        return CheckReport(
            data=data.source,
            models=models,
            rows=len(data),
            rows_not_read=data.num_beyond_limit,
            sound_rows=self.num_sound,
            tokens=self.num_tokens,
            response_tokens=self.num_learned,
            longest=self.longest,
            changed_samples=take_changed_samples(),
            images_decoded=self.decode_images,
            idle_settings=idle,
            columns_not_read=data.columns_not_read(),
            samples=_chosen(self.samples),
            failures=self.failures,
            would_end_a_run=self._would_end_a_run(),
        )

    def _would_end_a_run(self) -> bool:
        """Report whether a failure stops a run: any without ``skip``, and some with it."""
        if not self.failures:
            return False
        if not self.skips or not self.num_sound:
            return True
        # a cache of other tokens is refused, and so is a model
        return any(one.sample is None or one.kind == _OTHER_TOKENS for one in self.failures)


def _third(index: int, total: int) -> int:
    """The third of the rows in which one lies. Each begins as early as it can."""
    return sum(index >= total * third // _SHOWN_SAMPLES for third in range(1, _SHOWN_SAMPLES))


def _chosen(samples: list[tuple[bool, LearnedSample]]) -> list[LearnedSample]:
    """The first sound sample of each third. Others stand in where a third has none."""
    num_others = _SHOWN_SAMPLES - sum(is_first for is_first, _ in samples)
    chosen = []
    for is_first, sample in samples:
        if is_first or num_others > 0:
            chosen.append(sample)
            num_others -= not is_first
    return chosen
