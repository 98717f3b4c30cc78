"""Conversations of a dataset as a sequence that reads one sample at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlsi_cache.data.conversation import Conversation
from vlsi_cache.data.images import missing_image
from vlsi_cache.data.reading.rows import parse_row
from vlsi_cache.data.reading.rowsource import RowSource
from vlsi_cache.data.reading.sources import open_rows
from vlsi_cache.errors import DataError, RecipeError
from vlsi_cache.recipe import DataSection

__all__ = ["ConversationDataset", "load_conversations", "load_data"]

_THREADS = 8
_READ_AHEAD = 64


def load_conversations(
    source: str | Path, *, split: str = "train", limit: int | None = None
) -> ConversationDataset:
    """Open a dataset of conversations. Rows are read one at a time, on access.

    Args:
        source: a ``.jsonl`` or ``.json`` file, a ``.parquet`` file, a folder that
            `datasets.save_to_disk` wrote or that holds Parquet files or ``{split}.jsonl``, or the
            name of a dataset on the Hugging Face hub.
        split: split to read, if the source has several.
        limit: number of first rows to keep.

    Raises:
        DataError: there is no such file, folder, split or hub name, or it is empty.
    """
    return ConversationDataset(open_rows(str(source), split), source=str(source), limit=limit)


def load_data(section: DataSection) -> ConversationDataset:
    """Open the conversations that a recipe names.

    Args:
        section: the recipe's ``data``.

    Raises:
        RecipeError: no data is named.
        DataError: the data cannot be read.
    """
    if section.path is None:
        raise RecipeError(
            "no data is named",
            where="data.path",
            expected="a JSON or JSONL file, a datasets folder or a hub name",
            mend="Give --data PATH, or set data.path in the recipe",
        )
    return load_conversations(section.path, split=section.split, limit=section.limit)


class ConversationDataset(Sequence[Conversation]):
    """A dataset of conversations.

    Args:
        rows: access to the rows.
        source: name of the dataset, as the user gave it.
        limit: number of first rows to keep.
    """

    def __init__(self, rows: RowSource, *, source: str, limit: int | None = None) -> None:
        if limit is not None and limit <= 0:
            raise DataError("limit is not positive", where=source, found=limit)
        self.source = source
        self._rows = rows
        self._length = len(rows) if limit is None else min(limit, len(rows))
        self._fingerprint: str | None = None

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
        return parse_row(
            self._rows.row(number),
            number,
            folder=self._rows.folder,
            origin=self._rows.origin(number),
        )

    def validate(self) -> None:
        """Validate every row: its structure, its id, the existence of its images.

        Commands call it at their start, so that a problem in the last row does not cost hours.
        Pixels are not decoded.

        Raises:
            DataError: the first problem found.
        """
        # Eight bytes per id stand for the ids themselves, which are too many in large datasets.
        digests = np.empty(self._length, np.uint64)
        for index, conversation in enumerate(self):
            for image in conversation.images:
                if not image.exists():
                    raise missing_image(image, conversation.origin)
            digest = hashlib.blake2b(conversation.sample_id.encode(), digest_size=8).digest()
            digests[index] = int.from_bytes(digest, "little")
        self._validate_unique_ids(digests)

    def identify(self, index: int) -> tuple[str, str]:
        """The id and the key of a sample, also of a row that is not a sound conversation.

        The number of such a row is its id. Its key covers the row as it is stored.
        """
        try:
            conversation = self[index]
            return conversation.sample_id, conversation.key()
        except DataError as error:
            try:
                stored = json.dumps(self._rows.row(index), default=str)
            except DataError:
                stored = f"{error.what} {error.found}"  # the row itself cannot be decoded
            return str(index), hashlib.sha256(f"not sound: {stored}".encode()).hexdigest()

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
                rows: Iterator[Any] = iter(range(len(self)) if skip else self)
                key_of = self._stored_key if skip else Conversation.key
                while ahead := list(islice(rows, _READ_AHEAD)):
                    for key in pool.map(key_of, ahead):
                        digest.update(bytes.fromhex(key))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(self._length))

    def _stored_key(self, index: int) -> str:
        return self.identify(index)[1]

    def _validate_unique_ids(self, digests: np.ndarray[Any, Any]) -> None:
        order = np.argsort(digests, kind="stable")
        repeated = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        for position in repeated:
            first = self[int(order[position])]
            second = self[int(order[position + 1])]
            # Digests of different ids may be equal, so the ids themselves decide.
            if first.sample_id == second.sample_id:
                raise DataError(
                    f"id {first.sample_id!r} is given twice",
                    where=second.origin,
                    found=f"first at {first.origin}",
                    mend="Give every sample an id of its own, or none",
                )
