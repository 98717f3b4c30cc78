"""``ShardHeader``: what a shard's group says about the shard."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, ValidationError

from vlsi_cache.jsonmodels import StoredModel, parse_json
from vlsi_cache.manifest import Sha256, StoredCount
from vlsi_cache.store.shards.address import ShardAddress
from vlsi_cache.store.shards.archive import Archive
from vlsi_cache.store.shards.archivestore import ArchiveStore
from vlsi_cache.store.shards.records import ShardRecord

__all__ = ["HEADER_ATTRIBUTE", "ShardHeader", "header_of", "parse_header", "validate_header"]

HEADER_ATTRIBUTE: Final = "vlsi_cache"
"""Attribute of the shard's group that holds the header."""

_FAILURE_CHARACTERS: Final = 300
"""Most characters of a failure's reason that are kept."""


class Failure(StoredModel):
    """A sample that could not be read."""

    row: StoredCount
    """The sample's row in the shard."""
    reason: str = Field(min_length=1, max_length=_FAILURE_CHARACTERS)
    """Why the sample could not be read."""


class ShardHeader(StoredModel):
    """The cache and number that a shard was written for, its size and its failures."""

    cache: Sha256
    """SHA-256 of the cache's manifest."""
    shard_index: StoredCount
    """Number of the shard in that cache."""
    num_samples: Annotated[StoredCount, Field(ge=1)]
    """Samples of the shard, n."""
    num_tokens: StoredCount
    """Their response tokens, N."""
    failures: tuple[Failure, ...] = Field(strict=False)
    """Samples without tokens, by row."""


def header_of(record: ShardRecord, address: ShardAddress) -> ShardHeader:
    """Return the header of a shard that holds this record."""
    return ShardHeader(
        cache=address.digest,
        shard_index=address.own_index,
        num_samples=len(record),
        num_tokens=record.num_tokens,
        failures=tuple(
            Failure(row=row, reason=reason[:_FAILURE_CHARACTERS])
            for row, reason in record.failures.items()
        ),
    )


def parse_header(archive: Archive) -> ShardHeader:
    """Parse the header of any shard.

    Raises:
        ValueError, KeyError, TypeError: the header is damaged.
    """
    metadata = parse_json(ArchiveStore(archive).read_metadata())
    try:
        return ShardHeader.model_validate(metadata["attributes"][HEADER_ATTRIBUTE])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "header"
        raise ValueError(f"{place}: {first['msg']}") from None


def validate_header(header: ShardHeader, address: ShardAddress) -> None:
    """Refuse a shard of another cache, or a shard with another shard's name.

    Raises:
        ValueError: the header names another cache, another number or another size.
    """
    if header.cache != address.digest:
        raise ValueError("it belongs to another cache, or the manifest was changed")
    if header.shard_index != address.own_index:
        raise ValueError(f"it holds shard {header.shard_index}")
    if header.num_samples != address.num_samples:
        raise ValueError(f"{header.num_samples} samples instead of {address.num_samples}")
