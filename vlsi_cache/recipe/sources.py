"""The sections ``data`` and ``cache``: the conversations, and the teacher's records of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, JsonValue, ModelWrapValidatorHandler, model_validator

from vlsi_cache.recipe.section import (
    CacheAddress,
    Contradiction,
    NonNegative,
    Positive,
    Section,
    UserName,
    UserPath,
)

__all__ = [
    "CacheSection",
    "DataPath",
    "DataSection",
    "HiddenRecordSection",
    "SelectSection",
    "SourceSection",
]

_DRAWS_ALONE: Final = {"k": 0, "m": 14, "drawn_from": "rest"}
"""The record of a recipe that gives a part of it, without `drawn_from: whole`."""

_DEFAULT_BITS: Final = 512
"""Signs of a hidden state."""

DataPath = UserName | Annotated[list[UserName], Field(min_length=1)]
"""One name of data, or several."""


class SourceSection(Section):
    """One source of a mixture. What it leaves out is as `data` says."""

    path: DataPath
    """File, folder or hub name, or a list of them, as in `data.path`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often its rows are taken: 2 takes each twice, 0.5 takes every second one."""
    limit: Positive | None = None
    """Number of its first samples to read. The weight counts these."""
    split: str | None = None
    """Split, if the source has several. `data.split` by default."""
    revision: str | None = None
    """Branch, tag or commit of a hub name. `data.revision` by default."""
    columns: dict[str, str | None] | None = None
    """Our name of each column, by its name in the source. `data.columns` by default."""
    image_root: UserPath | None = None
    """Folder that relative image paths start from. `data.image_root` by default."""


class SelectSection(Section):
    """Which samples the student learns from, by figures that the cache holds.

    Each figure is a sample's mean over its response tokens.
    """

    by: Literal["teacher_loss", "entropy", "disagreement"]
    """`teacher_loss`: the output's cross-entropy to the labels, in nats. `entropy`: the output's
    entropy, in nats. `disagreement`: the total variation between a tap and the output, from 0 to 1,
    by what is recorded of both."""
    tap: NonNegative | None = None
    """The teacher's tap of `disagreement`. The cache has to hold it."""
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the samples to learn from. Or give `between`."""
    order: Literal["highest", "lowest", "middle"] | None = None
    """With `keep`: the samples whose figures are `highest` or `lowest`, or those in the `middle`.
    Samples of equal figures follow the hash of their content."""
    between: tuple[float | None, float | None] | None = None
    """The least and the greatest figure of a sample to learn from, such as `[0.5, 3.0]`. `null` is
    no bound."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find what is missing, given twice, or without effect."""
        found = []
        if (self.keep is None) == (self.between is None):
            found.append((path, "needs one of keep and between"))
        if self.keep is not None and self.order is None:
            found.append((f"{path}.order", "is missing: highest, lowest or middle, beside keep"))
        if self.order is not None and self.keep is None:
            found.append((f"{path}.order", "needs keep"))
        if (self.tap is not None) != (self.by == "disagreement"):
            problem = "is missing" if self.tap is None else f"has no effect: by is {self.by}"
            found.append((f"{path}.tap", problem))
        least, greatest = self.between or (None, None)
        if least is not None and greatest is not None and least > greatest:
            found.append((f"{path}.between", f"is empty: {least:g} is above {greatest:g}"))
        return found


class DataSection(Section):
    """The conversations that teacher and student both read."""

    path: DataPath | None = None
    """JSON or JSONL file, Parquet file, folder, pattern such as `data/*.jsonl`, or hub name with
    `:config` if it has several. Or a list of them, which are read one after another."""
    sources: list[SourceSection] = Field(default=[])
    """Several sources with weights, in place of `path`. Each is evenly spread over the whole."""
    split: str = "train"
    """Split of a folder or of a `datasets` source."""
    revision: str | None = None
    """Branch, tag or commit of a hub name. Its newest commit by default."""
    limit: Positive | None = None
    """Number of first samples to read."""
    max_length: Positive | None = None
    """Most tokens of one conversation, image tokens included. The model's own limit by default."""
    columns: dict[str, str | None] = Field(default={})
    """Our name of each column, by its name in the data. Null leaves a column out."""
    image_root: UserPath | None = None
    """Folder that relative image paths start from. The data file's own folder by default."""
    max_pixels_per_image: Annotated[int, Field(gt=0, le=178_956_970)] = 89_478_485
    """Most pixels of one decoded image. The default is Pillow's `MAX_IMAGE_PIXELS`. Twice as many
    is the most that Pillow decodes."""
    template_variables: dict[str, JsonValue] = Field(default={})
    """Variables of the chat template for all rows, such as `enable_thinking: false`. A row's own
    `chat_template_kwargs` go before them."""
    on_error: Literal["stop", "skip"] = "stop"
    """Reaction of every stage to a sample that its model cannot read: a broken row or image, too
    many tokens, or a loss or gradient that is not finite. `stop` ends the run. `skip` encodes all
    samples once, and leaves out those that fail. `cache.on_error: skip` does the same."""
    select: SelectSection | None = None
    """Some of the samples for the student, chosen by the cache's own figures. All by default."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find data that is named twice, and a choice that is not one."""
        found = [] if self.select is None else self.select.contradictions(f"{path}.select")
        if self.path is not None and self.sources:
            problem = (
                f"is given beside {path}.path: give one of them "
                f"(--set {path}.sources=[] leaves the sources out)"
            )
            found.append((f"{path}.sources", problem))
        return found


class HiddenRecordSection(Section):
    """A hidden state of the teacher that is recorded beside its words, as signs."""

    block: NonNegative | None = None
    """Decoder block whose output is recorded, from 0. Two before the last by default, which is the
    best of Minitron (arXiv 2407.14679, table 17)."""
    bits: Annotated[int, Field(ge=64, le=2**16, multiple_of=8)] | None = None
    """Signs of its rotated state that are kept, an eighth of a byte each. At most as many as the
    next power of two to the hidden size, or 64. 512 by default, or that limit if it is less
    (docs/results.md)."""

    def num_bits(self, most: int) -> int:
        """Return the signs kept, where a rotation has so many."""
        return min(_DEFAULT_BITS, most) if self.bits is None else self.bits


class CacheSection(Section):
    """The teacher's records.

    `k`, `m` and `drawn_from` are one choice. If a recipe gives some of them, without `drawn_from:
    whole`, the others are 0, 14 and `rest`.
    """

    path: CacheAddress | None = None
    """Folder of the cache, or a URL such as `s3://bucket/prefix`. `<output>/cache` by default."""
    k: NonNegative = 4
    """Most likely tokens kept per response token and tap. With 0 there are only draws, which take
    the fewest bytes. The tails `bucket` and `renormalize` need k ≥ 1. If `m` is given without `k`,
    and `drawn_from` is not `whole`, it is 0."""
    m: Annotated[int, Field(ge=0, le=255)] = 12
    """Tokens drawn from the distribution, see `drawn_from`. If `k` is given without `m`, and
    `drawn_from` is not `whole`, it is 14."""
    drawn_from: Literal["rest", "whole"] = "whole"
    """What the m tokens are drawn from if k ≥ 1. `rest`: what lies beyond the k, at each tap by
    itself. `whole`: the whole distribution. Draws of the k are left out, all taps share ids, and
    probabilities are stored in steps of ¼ nat in log-odds, rounded at random: unbiased, not exact.
    Reverse, Jensen-Shannon and skewed divergences and the tail `bucket` get a small bias from that.
    It takes the fewest bytes of all that hold probabilities. With k = 0 the draws are of the whole
    distribution anyway. If `k` or `m` is given without it, it is `rest`."""
    hidden: HiddenRecordSection | None = None
    """Also record a hidden state, which a student can learn. `{}` takes all defaults. None by
    default."""
    samples_per_shard: Positive = 512
    """Conversations per shard. An interrupted run loses at most the work of one shard."""
    batch_size: Positive = 8
    """Most conversations per forward pass of the teacher. Those of like length share a pass. It
    changes no record but in its last bits, so a half-made cache goes on with another."""
    batch_tokens: Positive | None = None
    """Most tokens of a forward pass of the teacher, padding included. A conversation that is longer
    passes alone. With it, `batch_size` may be large. Null: no bound but `batch_size`."""
    workers: NonNegative = 0
    """Processes that prepare the teacher's batches."""
    on_error: Literal["stop", "skip"] = "stop"
    """Reaction to a sample that the teacher cannot read: a broken row or image, too many tokens, or
    a tap that is not finite. `stop` ends the run. `skip` records the sample with the reason and
    without tokens. All stages leave out what is recorded so. It means `data.on_error: skip` too."""
    max_failures_in_a_row: Positive = 16
    """With `skip`: if more samples than this fail one after another, the run stops."""

    @model_validator(mode="wrap")
    @classmethod
    def _complete_the_record(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Let a k or an m that is given by itself mean what it meant before there was `whole`."""
        if not isinstance(given, Mapping) or given.get("drawn_from") == "whole":
            return handler(given)
        if not _DRAWS_ALONE.keys() & given.keys():
            return handler(given)
        made = handler({**_DRAWS_ALONE, **given})
        made.model_fields_set.intersection_update(given)  # what follows is not given
        return made

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find a record of nothing."""
        if self.k + self.m == 0:
            return [(f"{path}.m", "is 0 like k: then there is nothing to record")]
        if self.drawn_from == "whole" and not (1 <= self.k <= 255 and self.m):
            needed = "is whole, which needs k from 1 to 255 and m ≥ 1"
            return [(f"{path}.drawn_from", f"{needed}, found k {self.k}, m {self.m}")]
        return []
