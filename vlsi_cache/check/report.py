"""What a check found."""

from __future__ import annotations

from vlsi_cache.jsonmodels import ReportModel

__all__ = ["CheckFailure", "CheckReport", "CheckedModel", "LearnedRun", "LearnedSample"]


class CheckFailure(ReportModel):
    """One thing that would stop a run."""

    sample: str | None
    """Id of the sample, or the name of its row if the row cannot be read. Null for what is not one
    sample's."""
    models: list[str]
    """Roles of the models that fail on it: `teacher`, `student` or both. Empty if it lies in the
    row itself, which no command can read."""
    where: str
    """File and row, or model and recipe key."""
    kind: str
    """The problem, alike for all samples that have it."""
    why: str
    """The problem with what is expected, what is found and how to mend it."""


class LearnedRun(ReportModel):
    """Tokens side by side that are all learned, or all given."""

    text: str
    """Their text."""
    learned: bool
    """Whether the student learns them."""


class LearnedSample(ReportModel):
    """One sample as the model reads it."""

    sample: str
    """Its id."""
    runs: list[LearnedRun]
    """Its tokens in order."""


class CheckedModel(ReportModel):
    """A model that the data was checked against."""

    role: str
    """`teacher` or `student`."""
    name: str
    """`from_pretrained` name or folder."""
    max_length: int | None
    """Most tokens of a conversation. Null if there is no limit."""


class CheckReport(ReportModel):
    """What a check found."""

    data: str
    """The data, as the recipe names it."""
    models: list[CheckedModel]
    """The models."""
    rows: int
    """Number of rows that were read."""
    rows_not_read: int
    """Number of rows after them, which `data.limit` leaves out."""
    sound_rows: int
    """Number of rows that every model can read. 0 if teacher and student have other vocabularies
    and the student learns from the teacher's record."""
    failed_rows: int
    """Number of the other rows. One of them may have several failures, and a failure of a model
    concerns all rows."""
    repeated_ids: int
    """Number of samples that have the id of an earlier one. A run adds a number to their ids."""
    tokens: int
    """Tokens of the rows that every model can read, as the first model reads them, image tokens
    included."""
    response_tokens: int
    """Tokens of them that are learned."""
    longest: int
    """Most tokens of one of these rows."""
    changed_samples: int
    """Number of samples that spell a control token, into which a space is put."""
    images_decoded: bool
    """Whether pictures were decoded. Otherwise only their sizes were read."""
    idle_settings: list[str]
    """Settings that have no effect, each with the reason."""
    columns_not_read: list[str]
    """Columns of the rows that nothing reads."""
    warnings: list[str]
    """What the log warns of: nothing that fails, such as files that are not read."""
    samples: list[LearnedSample]
    """Sound samples from different parts of the data."""
    failures: list[CheckFailure]
    """All that would fail, in the order of rows."""
    would_end_a_run: bool
    """Whether a failure would stop a run. With ``skip``, samples that fail do not."""
