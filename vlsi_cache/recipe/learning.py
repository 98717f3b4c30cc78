"""The sections ``interaction`` and ``finetuning``: what the student learns after verbalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from vlsi_cache.recipe.schedule import Schedule
from vlsi_cache.recipe.section import Contradiction, NonNegative, Positive, Section

__all__ = [
    "TAP_WEIGHT_KEYS",
    "Comparison",
    "FinetuningSection",
    "HiddenLearningSection",
    "InteractionSection",
    "LoraSection",
    "MatchingSection",
    "MatchingStrategy",
]

NonNegativeFloat = Annotated[float, Field(ge=0)]
Comparison = Literal["forward", "reverse", "js", "skewed", "l2", "ce", "none"]
"""The comparison of the student's distribution with the teacher's, or with the labels (`ce`)."""
MatchingStrategy = Literal[
    "random", "uniform", "bottom-1", "bottom-3", "multinomial", "expected", "shortest"
]


TAP_WEIGHT_KEYS: Final = ("inner_weight", "inner_weight_of", "inner_schedule")
"""Keys of stage two that are one choice: the taps' weight."""
_PER_TAP: Final = {"inner_weight": 0.25, "inner_weight_of": "each", "inner_schedule": None}
"""The taps' weight of a recipe that gives a part of it, and the default of before."""
_LATER: Final = {
    "inner_weight_of": "each",
    "inner_schedule": None,
    "inner_target": "matched",
    "output_target": None,
    "verbalizer_max_grad_norm": None,
    "hidden": None,
}
"""Settings of stage two that came when there were runs already, as those runs have them."""


class MatchingSection(Section):
    """Which teacher tap a student tap learns from (Algorithm 1 and its ablation)."""

    strategy: MatchingStrategy = "multinomial"
    """Choice among the candidates. `multinomial`: a draw by a softmax of the divergences, which is
    Algorithm 1. The paper's ablation has four more. `random`: any candidate. `uniform`: fixed,
    evenly spaced pairs. `bottom-1`: the least divergence. `bottom-3`: one of the three least. This
    project adds two. `expected`: all candidates, by their probabilities under `multinomial`.
    `shortest`: the ascending path of least total divergence."""
    search_range: bool = True
    """The candidates of student tap s of L_s are the teacher taps s to L_t−L_s+s."""
    order: bool = True
    """The candidates of a student tap lie above the teacher tap matched before. Needs
    `search_range`."""
    adaptive_temperature: bool = True
    """The temperature follows the spread of the divergences. Without it, the temperature is 1 or
    the number given."""
    temperature: Literal["paper", "scale_free"] | Annotated[float, Field(ge=1e-6, le=1e6)] = "paper"
    """`paper`: 2/(max−min). `scale_free`: (max−min)/2. Or a fixed number, with or without
    `adaptive_temperature`. Beyond 1e-6 and 1e6, float32 could not divide by it."""
    granularity: Literal["batch", "sample"] = "batch"
    """One matching per forward pass, or one per sample. A pass is a micro-batch, or a piece of it
    where `batch_tokens` divides it."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find `order` without `search_range`, and `shortest` without `order`."""
        found = []
        if self.order and not self.search_range:
            found.append((f"{path}.order", "needs search_range: true, or set order: false too"))
        if self.strategy == "shortest" and not self.order:
            found.append((f"{path}.strategy", "shortest needs order: true, since its path ascends"))
        return found


class LoraSection(Section):
    """The student's low-rank adapters during interaction."""

    rank: Positive = 64
    """Rank r of every adapter."""
    alpha: Positive = 64
    """Numerator of the scale. Updates are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapters. Experts that are fused into one parameter take none, so with
    dropout they get no adapters."""
    experts: bool = True
    """Adapters on experts that are fused into one parameter, too. Each pass then makes one block's
    experts with their adapters merged, and every expert has its own adapter of the given rank."""


class WeightSchedule(Section):
    """How the weight of the taps falls while stage two goes on."""

    until: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Part of the stage in which the weight falls in a straight line, from `inner_weight`. A third
    or less is where published curves turn (Al-Rfou, 2019; HASTE, 2025)."""
    end: NonNegativeFloat = 0.0
    """The weight from there on, by `inner_weight`. At 0 a single process computes no taps any
    more."""


class OutputTarget(Section):
    """A teacher tap that the student's output learns from, beside or in place of the output."""

    tap: NonNegative
    """Block of the teacher. The cache has to hold it."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Its share of the mixture. The rest is the teacher's output."""


class HiddenLearningSection(Section):
    """A hidden state of the student that comes near the recorded one of the teacher."""

    block: NonNegative | None = None
    """Decoder block whose output learns, from 0. By default as far from the last block as the
    teacher's is from its own."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its loss as a multiple of the output's, in each forward pass. 1 is Minitron's (arXiv
    2407.14679)."""
    map: Literal["identity", "learned"] | None = None
    """What stands between the states of student and teacher. `identity`: nothing, so that both
    models need one hidden size. `learned`: a linear map, which begins at the closed form and trains
    beside the student at the verbalizers' rate. `null`: `learned` where the hidden sizes differ,
    else `identity`."""


class InteractionSection(Schedule):
    """Stage two: learning from the cache."""

    verbalizer_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the student's verbalizers, and of a hidden state's map. Stage one has
    trained verbalizers, so by default they move at a tenth of its default rate
    (docs/decisions/learning-rates.md)."""
    workers: NonNegative = 1
    """Processes that prepare batches ahead, for each training process."""
    follow: bool = False
    """Train while the cache is written, on the shards that exist, and wait for more."""
    follow_timeout_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """With `follow`: the longest wait for a new shard. Then the stage stops."""
    inner: Comparison = "forward"
    """Loss of each student tap against its teacher taps. `forward`: KL(teacher ‖ student).
    `reverse`: KL(student ‖ teacher). `reverse`, `js`, `skewed` and `l2` need `tail: bucket`. `ce`:
    cross-entropy to the labels, without the teacher. `none`: nothing, so that only the output
    learns (plain logit distillation)."""
    inner_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the student taps' losses in the sum. The output's loss has the weight 1. This key
    and the next two were chosen together, by E2c of docs/results.md. A recipe that gives some of
    the three has 0.25, `each` and `null` for the others."""
    inner_weight_of: Literal["each", "all"] = "all"
    """`each`: every tap has `inner_weight`, as in the paper, where it is 1. `all`: the taps share
    it equally, so that more taps weigh no more together."""
    inner_schedule: WeightSchedule | None = WeightSchedule()
    """Let the taps' weight fall, by default to 0. `null`: it stays, as in the paper. So it does by
    default where `output` is none, or `inner_target` is output."""
    inner_target: Literal["matched", "output"] = "matched"
    """`matched`: each tap learns from the teacher tap that it is matched with. `output`: it learns
    the teacher's output, which suits early exits (LEAP, 2026). Then no teacher taps are read."""
    output: Comparison = "forward"
    """The same at the model's output."""
    output_target: OutputTarget | None = None
    """A teacher tap for the output to learn from. `null`: the teacher's output, as in the paper."""
    hidden: HiddenLearningSection | None = None
    """Learn the hidden state that `cache.hidden` records, by 1 − cosine. `{}` takes all defaults.
    None by default."""
    gradients_every: Positive | None = None
    """Every so many steps, log the norms of the gradients that the taps and the output send to the
    student, and the cosine between them. Each costs another backward pass."""
    verbalizer_max_grad_norm: NonNegativeFloat | None = None
    """Clip the verbalizers' gradients to a norm of their own, and those of a hidden state's map.
    `null`: one norm, `max_grad_norm`, covers all, as in transformers."""
    tail: Literal["sample", "bucket", "renormalize"] = "sample"
    """Stand-in for the teacher's tokens beyond its k most likely. `sample`: the drawn tokens,
    unbiased. `bucket`: one bin of all others, a lower bound. `renormalize`: nothing, with the k
    scaled to sum to 1, which is biased. The last two need a cache with `cache.k` ≥ 1."""
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The teacher's share of the mixture in `skewed`."""
    matching: MatchingSection = MatchingSection()
    """Layer matching."""
    lora: LoraSection | None = LoraSection()
    """Adapters on every linear map of the decoder blocks. `null`: no adapters, and the blocks' own
    weights train. They train in float32, and each needs a gradient and the optimizer's state."""

    @model_validator(mode="wrap")
    @classmethod
    def _complete_the_weight(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Let a weight that is given by itself mean what it meant before it fell by default.

        Without an output loss something must learn to the end, and so must exits. What is changed
        later, by ``model_copy``, is taken as it is.
        """
        if not isinstance(given, Mapping):
            return handler(given)
        rests = given.get("output") != "none" and given.get("inner_target") != "output"
        if not _PER_TAP.keys() & given.keys() and rests:
            return handler(given)
        made = handler({**_PER_TAP, **given})
        made.model_fields_set.intersection_update(given)  # what follows is not given
        return made

    @property
    def bound_decides(self) -> bool:
        """Whether another bound gives another result: the samples of a pass share a matching."""
        shared = self.matches_taps and self.matching.granularity != "sample"
        return self.batch_tokens is not None and shared

    @property
    def matches_taps(self) -> bool:
        """Whether student taps are matched with teacher taps."""
        return self.inner not in ("ce", "none") and self.inner_target == "matched"

    def decisive(self) -> dict[str, object]:
        """The settings that decide the trained weights. A default that came later is left out."""
        found = Schedule.decisive(self)
        for name, before in _LATER.items():
            if getattr(self, name) == before:
                del found[name]
        if self.inner == "none":  # without taps their weight decides nothing
            found["inner_weight"] = _PER_TAP["inner_weight"]
            for name in ("inner_weight_of", "inner_schedule"):
                found.pop(name, None)
        if self.bound_decides:
            found["batch_tokens"] = self.batch_tokens
        hidden = found.get("hidden")
        if isinstance(hidden, dict) and hidden["map"] != "learned":
            del hidden["map"]  # the hidden sizes decide
        lora = found["lora"]
        if isinstance(lora, dict) and lora["experts"]:
            del lora["experts"]
        return found

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find the schedule's and the matching's contradictions, and impossible comparisons."""
        found = Schedule.contradictions(self, path)
        found += self.matching.contradictions(f"{path}.matching")
        for name in ("inner", "output"):
            kind = getattr(self, name)
            if kind in ("reverse", "js", "skewed", "l2") and self.tail != "bucket":
                found.append((f"{path}.{name}", f"{kind} needs tail: bucket, not {self.tail}"))
        if self.output_target is not None and self.output in ("ce", "none"):
            found.append((f"{path}.output_target", f"has no effect: output is {self.output}"))
        if self.verbalizer_max_grad_norm is not None and not self.max_grad_norm:
            found.append((f"{path}.verbalizer_max_grad_norm", "needs max_grad_norm above 0"))
        if self.output == "none" and self.hidden is not None:
            found.append((f"{path}.hidden", "weighs by the output's loss, and output is none"))
        schedule = self.inner_schedule
        if self.output == "none" and schedule is not None and not schedule.end:
            found.append((f"{path}.inner_schedule.end", "0 needs an output loss, which is none"))
        if self.inner == self.output == "none":
            found.append((f"{path}.output", "is none like inner: then there is nothing to learn"))
        return found

    def _indecisive(self) -> set[str]:
        # The order of the samples is recorded by itself, so the way it came about does not count.
        following = {"follow", "follow_timeout_seconds"}
        return super()._indecisive() | following | {"gradients_every"}


class FinetuningSection(Schedule):
    """Stage three: every parameter, cross-entropy."""

    train_vision_tower: bool = True
    """Also train the parts outside the decoder: vision tower and projector."""
    record_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of KL(teacher ‖ student) at the output, beside cross-entropy's 1. Above 0 the stage
    reads the cache, by `interaction.tail`. By default it learns labels alone, as in the paper."""

    def decisive(self) -> dict[str, object]:
        """The settings that decide the trained weights. A default that came later is left out."""
        found = Schedule.decisive(self)
        if not self.record_weight:
            del found["record_weight"]
        return found
