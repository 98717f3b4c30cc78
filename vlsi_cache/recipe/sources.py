"""The sections ``data`` and ``cache``: the conversations, and the teacher's records of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlsi_cache.recipe.section import (
    CacheAddress,
    Contradiction,
    NonNegative,
    Positive,
    Section,
    UserName,
)

__all__ = ["CacheSection", "DataSection"]


class DataSection(Section):
    """The conversations that teacher and student both read."""

    path: UserName | None = None
    """JSON or JSONL file, folder saved by `datasets`, or hub name."""
    split: str = "train"
    """Split of a `datasets` source."""
    limit: Positive | None = None
    """Number of first samples to read."""
    max_length: Positive | None = None
    """Most tokens of one conversation, image tokens included. The model's own limit by default."""
    on_error: Literal["stop", "skip"] = "stop"
    """Reaction of every stage to a sample that its model cannot read: a broken row or image, or too
    many tokens. `stop` ends the run. `skip` encodes all samples once, and leaves out those that
    fail. `cache.on_error: skip` does the same."""


class CacheSection(Section):
    """The teacher's records."""

    path: CacheAddress | None = None
    """Folder of the cache, or a URL such as `s3://bucket/prefix`. `<output>/cache` by default."""
    k: NonNegative = 0
    """Most likely tokens kept per response token and tap. With 0 there are only draws, which are
    more accurate per byte. The tails `bucket` and `renormalize` need k ≥ 1."""
    m: Annotated[int, Field(ge=0, le=255)] = 14
    """Tokens drawn from the rest of the distribution, or from the whole distribution if k is 0."""
    samples_per_shard: Positive = 512
    """Conversations per shard. An interrupted run loses at most the work of one shard."""
    batch_size: Positive = 8
    """Conversations per forward pass of the teacher."""
    workers: NonNegative = 0
    """Processes that prepare the teacher's batches."""
    on_error: Literal["stop", "skip"] = "stop"
    """Reaction to a sample that the teacher cannot read: a broken row or image, too many tokens, or
    a tap that is not finite. `stop` ends the run. `skip` records the sample with the reason and
    without tokens. All stages leave out what is recorded so. It means `data.on_error: skip` too."""
    max_failures_in_a_row: Positive = 16
    """With `skip`: if more samples than this fail one after another, the run stops."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find a record of nothing."""
        if self.k + self.m == 0:
            return [(f"{path}.m", "is 0 like k: then there is nothing to record")]
        return []
