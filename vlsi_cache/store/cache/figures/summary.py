"""``CacheSummary``: what the statistics of a cache say."""

from __future__ import annotations

from pydantic import Field

from vlsi_cache.jsonmodels import PathText, ReportModel
from vlsi_cache.manifest import HiddenIdentity, Sampling, TeacherIdentity, TokenizerIdentity

__all__ = [
    "CacheSummary",
    "LengthBin",
    "Lengths",
    "Quantiles",
    "SampleFigures",
    "TapErrors",
    "TapSummary",
]


class Quantiles(ReportModel):
    """Five quantiles. Each is the least value that so large a share does not exceed."""

    p05: float
    """5 % are no greater."""
    p25: float
    """25 % are no greater."""
    p50: float
    """50 % are no greater: the median."""
    p75: float
    """75 % are no greater."""
    p95: float
    """95 % are no greater."""


class TapErrors(ReportModel):
    """Standard errors of one tap's means, where only some samples were read."""

    entropy_nats: float
    """Standard error of ``entropy_nats``."""
    captured_mass: float | None
    """Standard error of ``captured_mass``; null where k is 0."""
    label_log_prob_nats: float
    """Standard error of ``label_log_prob_nats``."""
    agreement_with_final: float
    """Standard error of ``agreement_with_final``."""
    agreement_with_label: float
    """Standard error of ``agreement_with_label``."""
    label_in_record: float
    """Standard error of ``label_in_record``."""


class TapSummary(ReportModel):
    """Means of one tap over all response tokens that are recorded."""

    tap: int
    """0-based decoder block index; -1 is the model's own output."""
    entropy_nats: float
    """Entropy of the whole distribution."""
    captured_mass: float | None
    """Probability of the k most likely tokens together; null where k is 0."""
    label_log_prob_nats: float
    """Log-probability of the token that the data holds."""
    agreement_with_final: float
    """Fraction of tokens whose most likely token is also the final output's."""
    agreement_with_label: float
    """Fraction of tokens whose most likely token is the one that the data holds."""
    label_in_record: float
    """Fraction of tokens for which the data's token is among the k + m that are recorded."""
    entropy_quantiles: Quantiles | None = None
    """Quantiles over tokens of the entropy, in nats."""
    label_log_prob_quantiles: Quantiles | None = None
    """Quantiles over tokens of the label's log-probability, in nats."""
    agreement_quantiles: Quantiles | None = None
    """Quantiles over samples of the share of a sample's tokens whose most likely token is also the
    final output's, to a thousandth."""
    agreement_with_taps: tuple[float, ...] = ()
    """Fraction of tokens whose most likely token is also that of each tap, in the taps' order."""
    distance_to_taps: tuple[float, ...] = ()
    """Mean distance to each tap, in the taps' order: the total variation between the two records
    of a token, from 0 to 1. On average it is no less than that of the whole distributions."""
    distance_errors: tuple[float, ...] = ()
    """Standard errors of ``distance_to_taps``; empty if all tokens were compared."""
    standard_errors: TapErrors | None = None
    """How far the means may be off because only some samples were read; null if all were."""


class LengthBin(ReportModel):
    """Samples of nearly the same length."""

    first: int
    """Fewest response tokens."""
    last: int
    """Most response tokens."""
    num_samples: int
    """Samples with so many response tokens."""


class Lengths(ReportModel):
    """Response tokens per sample. Samples that failed are not counted."""

    shortest: int
    """Fewest response tokens of a sample."""
    longest: int
    """Most response tokens of a sample."""
    mean: float
    """Mean of the response tokens."""
    quantiles: Quantiles
    """Quantiles over samples."""
    bins: tuple[LengthBin, ...]
    """At most 24 bins of equal width, without gaps, ascending."""


class SampleFigures(ReportModel):
    """Means of one sample over its response tokens, at the model's own output."""

    sample_id: str
    """Name of the sample in the dataset."""
    key: str
    """Hex SHA-256 of the conversation."""
    num_tokens: int
    """Response tokens."""
    entropy_nats: float
    """Entropy of the output."""
    label_log_prob_nats: float
    """Log-probability of the token that the data holds."""
    agreement_with_label: float
    """Fraction of tokens whose most likely token is the one that the data holds."""


class CacheSummary(ReportModel):
    """Statistics of the published shards of a cache, complete or not."""

    path: PathText
    """Folder of the cache."""
    complete: bool
    """Whether every shard is written."""
    num_shards: int
    """Shards of the complete cache."""
    num_shards_present: int
    """Shards that are written."""
    missing_shards: tuple[int, ...]
    """Shards that are not written yet, ascending."""
    indexed: bool
    """Whether there is an index, which the last writer of a cache publishes."""
    num_samples: int
    """Samples in the shards that are written."""
    num_samples_total: int
    """Samples of the complete cache."""
    failures: dict[str, str]
    """Name of each sample that could not be read → reason. Such samples have no tokens."""
    num_tokens: int
    """Response tokens."""
    bytes_total: int
    """Bytes on disk, without the processor's copy."""
    bytes_on_disk: int | None = None
    """Bytes on disk, the processor's copy included; null in reports of earlier versions."""
    bytes_per_token_tap: float | None
    """Bytes on disk per response token and tap, without a hidden state; null without tokens."""
    compression_ratio: float | None
    """The arrays' uncompressed bytes over the bytes on disk, without a hidden state; null without
    tokens."""
    dense_ratio: float | None
    """Bytes of the same distributions as dense bfloat16 logits over the bytes on disk, without a
    hidden state; null without tokens."""
    teacher: TeacherIdentity
    """The model that was recorded."""
    tokenizer: TokenizerIdentity
    """The teacher's tokenizer."""
    dataset: str
    """Path or name of the conversations."""
    sampling: Sampling
    """What is kept of each distribution: k, m, seed."""
    hidden: HiddenIdentity | None = None
    """What is kept of a hidden state; null if nothing is."""
    num_parts: int
    """Caches that were merged into it; 0 if it is not merged."""
    samples_per_shard: int
    """Samples of every shard but the last; in a merged cache, the most."""
    batch_size: int
    """Samples per forward pass of the teacher."""
    dtype: str
    """The teacher's parameter type."""
    taps: tuple[TapSummary, ...]
    """One entry per tap, the final output last; empty without tokens."""
    num_samples_read: int | None = None
    """Samples that the means are taken over; null if all were read."""
    num_tokens_read: int | None = None
    """Response tokens that the means are taken over; null if all were read."""
    num_tokens_compared: int | None = None
    """Response tokens that the distances between taps are taken over; null if all were."""
    bytes_by_array: dict[str, int] = Field(default_factory=dict)
    """Array → its bytes on disk. ``other`` is the rest: metadata, seals, the index and the
    manifest. Empty if only some samples were read."""
    lengths: Lengths | None = None
    """Response tokens per sample; null without tokens."""
    most_certain: tuple[SampleFigures, ...] = ()
    """The samples at which the output's mean entropy is least, ascending, at most 8."""
    least_certain: tuple[SampleFigures, ...] = ()
    """The samples at which the output's mean entropy is greatest, descending, at most 8."""
