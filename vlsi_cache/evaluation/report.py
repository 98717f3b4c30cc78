"""What an evaluation found."""

from __future__ import annotations

from vlsi_cache.jsonmodels import ReportModel

__all__ = ["AnswerExample", "AnswerFigures", "Evaluation", "TapFigures"]

Interval = tuple[float, float]


class TapFigures(ReportModel):
    """What one layer of the model says, read by its verbalizer."""

    tap: int
    """0-based index of its decoder block."""
    loss_nats: float
    """Mean cross-entropy to the response tokens, nats."""
    agreement: float
    """Part of the response tokens at which its likeliest token is the output's."""
    acceptance: float
    """Mean overlap with the output, Σ min(p, q). It is the rate at which speculative sampling
    accepts a token drafted here (Leviathan et al., 2023)."""
    tokens_per_verification: float
    """Expected tokens of one verification of four drafted ones: (1 − α⁵) / (1 − α), where α is the
    acceptance (Leviathan et al., 2023). 1 is plain generation, and 5 is the most."""


class AnswerFigures(ReportModel):
    """Generated answers of one category against the recorded ones."""

    count: int
    """Questions."""
    accuracy: float
    """Part whose answer equals the recorded one, but for case, punctuation and articles."""
    accuracy_interval: Interval
    """95 % interval (Wilson, 1927)."""
    contains: float
    """Part whose answer contains the recorded one as whole words."""


class AnswerExample(ReportModel):
    """One generated answer beside the recorded one."""

    sample: str
    """Id of the conversation."""
    question: str
    """Text of the user's turn before the answer."""
    recorded: str
    """The answer that the data has."""
    given: str
    """The answer that the model gives."""
    right: bool
    """Whether it counts as right."""


class Evaluation(ReportModel):
    """What an evaluation found."""

    model: str
    """`from_pretrained` name or folder."""
    data: str
    """The data, as it was named."""
    num_samples: int
    """Conversations that were read."""
    num_left_out: int
    """Conversations that could not be read, where `--on-error skip` allows that."""
    num_response_tokens: int
    """Response tokens."""
    loss_nats: float
    """Mean cross-entropy to the response tokens, nats."""
    loss_interval: Interval
    """95 % interval, by the spread over conversations."""
    divergence_nats: float | None
    """Mean KL(teacher ‖ model) at the output by the cache, nats per response token. An estimate
    from draws may lie a little below 0. Null without a cache."""
    num_compared: int
    """Conversations that the cache holds a record of."""
    divergence_interval: Interval | None
    """95 % interval, by the spread over conversations."""
    taps: list[TapFigures]
    """Layers, ascending. Empty without verbalizers."""
    accuracy: float | None
    """Of all generated answers. Null if none were generated."""
    answers: dict[str, AnswerFigures]
    """Figures of all answers under `all`, and of those whose recorded answer is yes or no, a
    number, or another text under `yes/no`, `number` and `other`."""
    examples: list[AnswerExample]
    """At most five of the answers, evenly spread over the data. Empty if none were generated."""
