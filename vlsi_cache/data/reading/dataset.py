"""Conversations of a dataset as a sequence that reads one sample at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlsi_cache.data.conversation import RESERVED_VARIABLES, Conversation
from vlsi_cache.data.images import missing_image
from vlsi_cache.data.reading.context import Notes, ReadSettings, RowContext
from vlsi_cache.data.reading.files.rowsource import RowSource
from vlsi_cache.data.reading.forms.names import (
    Repetitions,
    find_repetitions,
    name_digest,
    no_repetitions,
)
from vlsi_cache.data.reading.forms.nearmiss import with_near_miss
from vlsi_cache.data.reading.forms.rows import KNOWN_COLUMNS, parse_row
from vlsi_cache.data.reading.remembered import DataFindings, DataMemory
from vlsi_cache.data.reading.sources import describe_section, open_section
from vlsi_cache.data.reading.stamps import Stamps, are_settled, settled_stamps, stamps_of
from vlsi_cache.errors import DataError, RecipeError
from vlsi_cache.phases import speaks_for_all, tracked
from vlsi_cache.recipe import DataSection, validate_data_named

__all__ = ["ConversationDataset", "load_conversations", "load_data"]

logger = logging.getLogger(__name__)

_THREADS = 8
_READ_AHEAD = 64


def load_conversations(
    source: str | Path | Sequence[str | Path], *, split: str = "train", limit: int | None = None
) -> ConversationDataset:
    """Open a dataset of conversations. Rows are read one at a time, on access.

    Args:
        source: a file of JSON or Parquet, a folder, a pattern of file names, or a name on the
            Hugging Face hub. Or several of them, which are read one after another.
        split: split to read, if the source has several.
        limit: number of first rows to keep.

    Raises:
        DataError: there is no such file, folder, split or hub name, or it is empty.
    """
    path = str(source) if isinstance(source, str | Path) else [str(name) for name in source]
    if not path:
        raise DataError("no data is named", where="source", expected="a path or a hub name")
    return _open(DataSection(path=path, split=split), limit)


def load_data(section: DataSection) -> ConversationDataset:
    """Open the conversations that a recipe names.

    Args:
        section: the recipe's ``data``.

    Raises:
        RecipeError: no data is named, or a setting names something that is not there.
        DataError: the data cannot be read.
    """
    validate_data_named(section)
    for columns in (section.columns, *(source.columns for source in section.sources)):
        unknown = {name for name in (columns or {}).values() if name is not None} - KNOWN_COLUMNS
        if unknown:
            raise RecipeError(
                "a column gets a name that is never read",
                where="data.columns",
                expected="values among " + ", ".join(sorted(KNOWN_COLUMNS)) + ", or null",
                found=", ".join(sorted(unknown)),
                mend="Write {theirs: ours}",
            )
    reserved = sorted(section.template_variables.keys() & RESERVED_VARIABLES)
    if reserved:
        raise RecipeError(
            "a variable of the template belongs to the conversation itself",
            where="data.template_variables",
            found=", ".join(reserved),
        )
    return _open(section, section.limit)


def _open(section: DataSection, limit: int | None) -> ConversationDataset:
    return ConversationDataset(
        open_section(section),
        source=describe_section(section),
        limit=limit,
        settings=ReadSettings(section.template_variables, section.max_pixels_per_image),
        identity=section.model_dump(mode="json", exclude={"on_error", "max_length", "select"}),
    )


class ConversationDataset(Sequence[Conversation]):
    """A dataset of conversations.

    Args:
        rows: access to the rows.
        source: name of the dataset, as the user gave it.
        limit: number of first rows to keep.
        settings: what holds for all rows.
        identity: the settings that decide which rows these are and how they are read, as a JSON
            value. Without it, `prepare` remembers nothing.
    """

    def __init__(
        self,
        rows: RowSource,
        *,
        source: str,
        limit: int | None = None,
        settings: ReadSettings | None = None,
        identity: object = None,
    ) -> None:
        if limit is not None and limit <= 0:
            raise DataError("limit is not positive", where=source, found=limit)
        self.source = source
        self._rows = rows
        self._settings = settings or ReadSettings()
        self._identity = identity
        self._reads_files = True  # threads help with files; texts alone wait for one another
        self._length = len(rows) if limit is None else min(limit, len(rows))
        self._fingerprint: str | None = None
        self._notes = Notes()
        self._repetitions: Repetitions | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        """The conversation at ``index``. Its images are not read yet.

        Raises:
            DataError: the row is not a sound conversation.
            IndexError: there is no such row.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(index)
        conversation = self._parse(number)
        if self._repetitions is None:
            return conversation
        name = self._repetitions.name(number, conversation.sample_id)
        return (
            conversation
            if name == conversation.sample_id
            else replace(conversation, sample_id=name)
        )

    @property
    def num_beyond_limit(self) -> int:
        """Number of rows that the limit leaves out."""
        return len(self._rows) - self._length

    def columns_not_read(self) -> list[str]:
        """Names of the fields that hold something, and that nothing reads.

        Those of turns and parts have their path, such as ``messages[].mood``. The list is complete
        after `validate`. Before, it covers the rows that were read.
        """
        return sorted(self._notes.unread)

    def columns_not_met(self) -> list[str]:
        """Names in ``data.columns`` that no row had, of those that were read."""
        return sorted(self._rows.columns_not_met())

    def prepare(self, *, skip: bool = False) -> DataFindings:
        """Validate every row and fingerprint the data, unless an earlier command did.

        Files are those of that command if name, size, times of change and inode are.

        Args:
            skip: as in `validate` and `fingerprint`.

        Raises:
            DataError: a row is not sound, or an image cannot be read.
        """
        files = self._rows.files()
        memory = DataMemory([self._identity, sorted(files), str(Path.cwd()), self._length, skip])
        is_rememberable = bool(files) and self._identity is not None
        found = memory.read() if is_rememberable else None
        if found is not None:
            logger.info("the data is as it was when it was read last")
            self.adopt(found)
            self._report_notes()
            return found
        images: dict[str, None] = {}
        self._validate_rows(skip=skip, images=images)
        names = [*files, *images]
        before = settled_stamps(names) if is_rememberable else stamps_of([])
        found = DataFindings(
            self.fingerprint(skip=skip),
            self._repetitions or no_repetitions(),
            sorted(self._notes.unread),
            sorted(self._notes.filled),
        )
        if is_rememberable and self._is_unchanged(files, names, before):
            memory.write(found, names, before)
        return found

    def _is_unchanged(
        self, files: Mapping[str, Stamps], names: Sequence[str], before: Stamps
    ) -> bool:
        """Whether no file changed while it was read, so that its stamp stands for its content."""
        opened = np.concatenate(list(files.values()))
        return (
            are_settled(before)
            and self._rows.is_current()
            and np.array_equal(before[: len(files)], opened)
            and np.array_equal(stamps_of(names), before)
        )

    def adopt(self, found: DataFindings) -> None:
        """Take what another process or an earlier command found, in place of `validate`."""
        self._fingerprint = found.fingerprint
        self._repetitions = found.repetitions
        self._notes.unread.update(found.unread)
        self._notes.filled.update(found.filled)

    def validate(self, *, skip: bool = False) -> None:
        """Validate every row: its structure, its id, the existence of its images.

        Commands call it at their start, so that a problem in the last row does not cost hours.
        Pixels are not decoded. Ids that are given more than once are numbered from then on. The log
        says how many, and lists the fields that nothing reads.

        Args:
            skip: go on after a problem. ``identify`` names such rows, too.

        Raises:
            DataError: the first problem found.
        """
        self._validate_rows(skip=skip, images={})

    def _validate_rows(self, *, skip: bool, images: dict[str, None]) -> None:
        """Validate every row, and collect the names of the image files."""
        digests = np.empty(self._length, np.uint64)
        rows = range(self._length)
        reading = "reading and validating the data"
        for index in tracked(rows, reading, total=self._length, unit="rows"):
            digests[index] = name_digest(self._validated_name(index, images, skip=skip))
        self._repetitions = find_repetitions(
            digests, lambda row: self._validated_name(row, images, skip=skip)
        )
        self._reads_files = bool(images)
        self._report_notes()
        absent = self.columns_not_met()
        if absent and speaks_for_all():
            logger.warning("data.columns names columns that no row has: %s", ", ".join(absent))

    def _validated_name(self, index: int, images: dict[str, None], *, skip: bool) -> str:
        """Return the id that a row gives, or its number if it is not sound and is skipped."""
        try:
            conversation = self._parse(index)
        except DataError:
            if not skip:
                raise
            return str(index)
        for image in conversation.images:
            if image.path is not None:
                images[str(image.path.absolute())] = None
            if not skip and not image.exists():
                raise missing_image(image, conversation.origin)
        return conversation.sample_id

    def _report_notes(self) -> None:
        """Log what ``validate`` found that is no error, once for all processes of a run."""
        if not speaks_for_all():
            return
        if self._repetitions:
            is_one = len(self._repetitions) == 1
            logger.warning(
                "%s: %s the id of another; %s numbered, such as %s",
                self.source,
                "1 sample has" if is_one else f"{len(self._repetitions):,} samples have",
                "it is" if is_one else "they are",
                self[self._repetitions.first()].sample_id,
            )
        if self._notes.unread:
            names = map(with_near_miss, self.columns_not_read())
            logger.warning("columns not read: %s", ", ".join(names))
        if self._notes.filled:
            logger.warning(
                "%s hold null. The template reads it. If a table filled it in, write the values as "
                "JSON text before they go into the table",
                ", ".join(sorted(self._notes.filled)),
            )

    def identify(self, index: int) -> tuple[str, str]:
        """The id and the key of a sample, also of a row that is not a sound conversation.

        The number of such a row is its id, unless an image of it alone is not sound. Its key covers
        the row as it is stored.
        """
        name = self._repetitions.name(index, str(index)) if self._repetitions else str(index)
        try:
            conversation = self[index]
            name = conversation.sample_id
            return name, conversation.key()
        except DataError as error:
            try:
                stored = json.dumps(self._rows.row(index), default=str)
            except DataError:
                stored = f"{error.what} {error.found}"  # the row itself cannot be decoded
            return name, hashlib.sha256(f"not sound: {stored}".encode()).hexdigest()

    def fingerprint(self, *, skip: bool = False) -> str:
        """Hex SHA-256 over the keys of all conversations in order. It is computed once.

        Reads every image's bytes. Threads help, because hashing and reading release the
        interpreter.

        Args:
            skip: also take rows that are not sound, by the keys of ``identify``.

        Raises:
            DataError: a row is not sound, or an image cannot be read.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            with ThreadPoolExecutor(_THREADS) as pool:
                numbers: Iterator[Any] = iter(range(len(self)) if skip else self)
                key_of = self._stored_key if skip else Conversation.key
                rows = tracked(numbers, "fingerprinting the data", total=self._length, unit="rows")
                while ahead := list(islice(rows, _READ_AHEAD)):
                    for key in (pool.map if self._reads_files else map)(key_of, ahead):
                        digest.update(bytes.fromhex(key))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(self._length))

    def _parse(self, number: int) -> Conversation:
        context = RowContext(
            self._rows.folder(number), self._rows.origin(number), self._settings, self._notes
        )
        return parse_row(self._rows.row(number), number, context)

    def _stored_key(self, index: int) -> str:
        return self.identify(index)[1]
