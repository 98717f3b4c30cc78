"""``check_data``: reads, renders and tokenizes every row, and goes on past those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from torch import Tensor

from vlsi_cache.check.commands import find_settings_failures
from vlsi_cache.check.failures import failure_of, failures_of, joined
from vlsi_cache.check.ids import RowIds
from vlsi_cache.check.pictures import with_blank_pictures
from vlsi_cache.check.records import find_record_failures
from vlsi_cache.check.report import CheckedModel, CheckFailure, CheckReport, LearnedSample
from vlsi_cache.check.subjects import Subject, open_subject
from vlsi_cache.check.vocabularies import OTHER_VOCABULARY, find_other_vocabulary
from vlsi_cache.check.warned import collected_warnings
from vlsi_cache.check.weights import warn_of_model_files
from vlsi_cache.data import (
    Conversation,
    ConversationDataset,
    load_data,
    response_ids,
    take_changed_samples,
)
from vlsi_cache.data.images import missing_image
from vlsi_cache.data.reading.forms.names import Repetitions
from vlsi_cache.errors import (
    CacheMismatchError,
    DataError,
    ModelError,
    VlsiCacheError,
    counted,
    printable,
)
from vlsi_cache.phases import phase
from vlsi_cache.recipe import Recipe, idle_settings, named_models
from vlsi_cache.student.agreement import validate_tokens

__all__ = ["check_data"]

T = TypeVar("T", CheckFailure, LearnedSample)

logger = logging.getLogger(__name__)

_SHOWN_SAMPLES = 3
"""Samples that are shown: the first sound one of each third of the rows."""
_OTHER_TOKENS = "the student's processor gives other response tokens than the teacher's"


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
    with collected_warnings() as warned:
        report = _checked(recipe, decode_images=decode_images, on_progress=on_progress)
    return report.model_copy(update={"warnings": warned})


def _checked(
    recipe: Recipe, *, decode_images: bool, on_progress: Callable[[int, int], None] | None
) -> CheckReport:
    with phase("checking settings, folders and models", patient=True):
        subjects, failures = _opened(recipe)
        data = load_data(recipe.data)
    named = named_models(recipe)
    names = " and ".join(f"{role} {section.model}" for role, section in named.items())
    logger.info("checking %s: %s for %s", data.source, counted(len(data), "row"), names)
    take_changed_samples()
    check = _Check(list(subjects), len(named), decode_images, failures, recipe)
    for index in range(len(data)):
        check.read(data, index)
        if on_progress is not None:
            on_progress(index + 1, len(data))
    check.compare_record(subjects, data)
    return check.report(data, [subject.checked for subject in subjects], _idle(recipe))


def _opened(recipe: Recipe) -> tuple[list[Subject], list[CheckFailure]]:
    """Open the models whose processors can be loaded, and find what their commands refuse."""
    subjects: list[Subject] = []
    found: list[CheckFailure] = []
    for role, section in named_models(recipe).items():
        try:
            subjects.append(open_subject(role, section, recipe))
        except VlsiCacheError as error:
            found += failures_of(error, sample=None, models=[role])
    found = joined([*found, *find_settings_failures(recipe, subjects)])
    for subject in subjects:
        warn_of_model_files(subject)
    other = find_other_vocabulary(subjects) if recipe.reads_cache else None
    return subjects, found if other is None else [*found, other]


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
    num_models: int
    """Number of the models that the recipe names."""
    decode_images: bool
    failures: list[CheckFailure]
    recipe: Recipe
    rows: list[int | None] = field(init=False)
    """The row of each failure. None for those of the models themselves."""
    ids: RowIds = field(default_factory=RowIds)
    num_sound: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    longest: int = 0
    samples: list[tuple[bool, int, LearnedSample]] = field(default_factory=list)
    """Samples that may be shown, each with whether it is the first of its third, and its row."""
    thirds: set[int] = field(default_factory=set)
    """Thirds of the rows that have a sound one."""
    agree: bool = field(init=False)
    """Whether the models have one vocabulary, so that their tokens are comparable."""

    def __post_init__(self) -> None:
        self.rows = [None] * len(self.failures)
        self.agree = not any(failure.kind == OTHER_VOCABULARY for failure in self.failures)

    def read(self, data: ConversationDataset, index: int) -> None:
        """Check one row."""
        before = len(self.failures)
        try:
            conversation = data[index]
        except DataError as error:
            self.failures.append(failure_of(error, sample=error.where))
            self.ids.note(str(index))
        else:
            self.ids.note(conversation.sample_id)
            self._read(conversation, index, len(data))
        self.rows += [index] * (len(self.failures) - before)

    def _read(self, conversation: Conversation, index: int, num_rows: int) -> None:
        before = len(self.failures)
        # Who reads text only has no use for the advice to bring the images.
        if not self.subjects or any(subject.encoder.sees_images for subject in self.subjects):
            self._find_missing_images(conversation)
        if len(self.failures) > before:
            return
        encoded = self._encode(conversation)
        # A row that one of two models reads is not sound: the command of the other fails on it.
        if len(encoded) < self.num_models:
            return
        self._compare(conversation, encoded)
        if len(self.failures) == before:
            self._count(index, num_rows, conversation, encoded[0])

    def _find_missing_images(self, conversation: Conversation) -> None:
        for image in conversation.images:
            if not image.exists():
                missing = missing_image(image, conversation.origin)
                self.failures.append(failure_of(missing, sample=conversation.sample_id))

    def _encode(self, conversation: Conversation) -> list[tuple[Subject, dict[str, Tensor]]]:
        shown = conversation if self.decode_images else with_blank_pictures(conversation)
        encoded = []
        refused: list[CheckFailure] = []
        for subject in list(self.subjects):
            role = subject.checked.role
            try:
                encoded.append((subject, subject.encoder([shown])))
            except DataError as error:
                sample = conversation.sample_id
                refused.append(failure_of(error, sample=sample, models=[role]))
            except ModelError as error:  # it concerns the model, and every row would repeat it
                refused.append(failure_of(error, sample=None, models=[role]))
                self.subjects.remove(subject)
        self.failures += joined(refused)
        return encoded

    def _compare(
        self, conversation: Conversation, encoded: list[tuple[Subject, dict[str, Tensor]]]
    ) -> None:
        """Compare the response tokens of teacher and student."""
        if len(encoded) < 2 or not self.agree or not self.recipe.reads_cache:
            return
        first, second = (response_ids(batch).tolist() for _, batch in encoded)
        try:
            validate_tokens(conversation, first, second, encoded[1][0].encoder.word)
        except CacheMismatchError as error:
            roles = [subject.checked.role for subject, _ in encoded]
            failure = failure_of(error, sample=conversation.sample_id, models=roles)
            self.failures.append(failure.model_copy(update={"kind": _OTHER_TOKENS}))

    def _count(
        self,
        index: int,
        num_rows: int,
        conversation: Conversation,
        first: tuple[Subject, dict[str, Tensor]],
    ) -> None:
        """Count a sound row, and keep it if it is to be shown.

        Args:
            index: the number of the row.
            num_rows: number of all rows.
            conversation: the row.
            first: what the first model reads of it.
        """
        subject, batch = first
        learned = batch["response_mask"][0].tolist()
        self.num_sound += 1
        self.num_tokens += len(learned)
        self.num_learned += sum(learned)
        self.longest = max(self.longest, len(learned))
        third = _third(index, num_rows)
        is_first = third not in self.thirds
        if is_first or len(self.samples) < _SHOWN_SAMPLES:
            self.thirds.add(third)
            runs = subject.runs(batch["input_ids"][0].tolist(), learned)
            name = printable(conversation.sample_id)
            self.samples.append((is_first, index, LearnedSample(sample=name, runs=runs)))

    def compare_record(self, subjects: Sequence[Subject], data: ConversationDataset) -> None:
        """Compare the data with a cache that is there, if the commands could read the data."""
        if not self.recipe.skips_failures and any(row is not None for row in self.rows):
            return
        found = find_record_failures(self.recipe, subjects, data)
        known = {(one.where, one.why) for one in self.failures}
        found = [one for one in found if (one.where, one.why) not in known]
        self.failures += found
        self.rows += [None] * len(found)

    def report(
        self, data: ConversationDataset, models: list[CheckedModel], idle: list[str]
    ) -> CheckReport:
        """Return what was found."""
        # no stage can use a row that means other tokens to its two models
        num_sound = self.num_sound if self.agree else 0
        repeated = self.ids.repetitions(data)
        absent = data.columns_not_met()
        if absent:
            idle = [*idle, f"data.columns: no row has {', '.join(absent)}"]
        return CheckReport(
            data=data.source,
            models=models,
            rows=len(data),
            rows_not_read=data.num_beyond_limit,
            sound_rows=num_sound,
            failed_rows=len(data) - num_sound,
            repeated_ids=len(repeated),
            tokens=self.num_tokens,
            response_tokens=self.num_learned,
            longest=self.longest,
            changed_samples=take_changed_samples(),
            images_decoded=self.decode_images,
            idle_settings=idle,
            columns_not_read=data.columns_not_read(),
            warnings=[],
            samples=[_named(one, row, repeated) for row, one in _chosen(self.samples)],
            failures=[
                one if row is None else _named(one, row, repeated)
                for row, one in zip(self.rows, self.failures, strict=True)
            ],
            would_end_a_run=self._would_end_a_run(),
        )

    def _would_end_a_run(self) -> bool:
        """Report whether a failure stops a run: any without ``skip``, and some with it."""
        if not self.failures:
            return False
        if not self.recipe.skips_failures or not self.num_sound:
            return True
        # a cache of other tokens is refused, and so is a model
        return any(one.sample is None or one.kind == _OTHER_TOKENS for one in self.failures)


def _third(index: int, total: int) -> int:
    """The third of the rows in which one lies. Each begins as early as it can."""
    return sum(index >= total * third // _SHOWN_SAMPLES for third in range(1, _SHOWN_SAMPLES))


def _chosen(samples: list[tuple[bool, int, LearnedSample]]) -> list[tuple[int, LearnedSample]]:
    """The first sound sample of each third. Others stand in where a third has none."""
    num_others = _SHOWN_SAMPLES - sum(is_first for is_first, _, _ in samples)
    chosen = []
    for is_first, row, sample in samples:
        if is_first or num_others > 0:
            chosen.append((row, sample))
            num_others -= not is_first
    return chosen


def _named(entry: T, row: int, repeated: Repetitions) -> T:
    """Return an entry with the name that a run gives to its sample."""
    if entry.sample is None:
        return entry
    return entry.model_copy(update={"sample": repeated.name(row, entry.sample)})
