"""The sections ``teacher`` and ``student``: a model, its taps and its verbalizers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vlsi_cache.recipe.schedule import Schedule
from vlsi_cache.recipe.section import (
    Contradiction,
    NonNegative,
    Positive,
    Section,
    UserName,
    UserPath,
)

__all__ = ["ModelSection", "TeacherSection", "VerbalizationSection", "VerbalizerSection"]

AUTOMATIC: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that follow from the memory of the devices."""
Device = NonNegative | str
"""A GPU's number, or a device's name. `disk` is one, too."""


class VerbalizerSection(Section):
    """The small network that reads one tap as a vocabulary distribution."""

    structure: Literal["mlp", "verb_ffn", "ffn", "decoder", "logit_lens"] = "verb_ffn"
    """`verb_ffn`: gated, three D×D maps (the paper's). `mlp`: one D×D map. `ffn`: the same gate
    with the backbone's own expansion. `decoder`: a whole decoder block. `logit_lens`: nothing, so
    that final norm and head read the tap as it is (docs/exits.md)."""
    depth: Literal[1, 2] = 1
    """The structure once, or stacked twice."""
    residual: bool = True
    """Add the structure to the tap, so that an untrained verbalizer is the logit lens."""
    start: Literal["ridge", "logit_lens"] = "ridge"
    """`ridge`: each begins as the linear map that is nearest to the model's last state, known in
    closed form. One more D×D map holds it, which trains like the others. `logit_lens`: it begins as
    the identity (docs/results.md). Without `residual` neither holds."""

    @property
    def starts_by_ridge(self) -> bool:
        """Whether training begins at the closed form."""
        return self.residual and self.start == "ridge" and self.trains

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.structure != "logit_lens"

    def identity(self) -> dict[str, object]:
        """The settings as JSON values. The start that verbalizers had before is left out."""
        unnamed = self.start == "logit_lens" or not self.trains
        return self.model_dump(exclude={"start"} if unnamed else None)

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find a logit lens that is stacked, or that is to be more than the tap."""
        if self.trains:
            return []
        found = [(f"{path}.depth", "stacks a logit_lens, which is nothing")] * (self.depth != 1)
        if not self.residual:
            found.append((f"{path}.residual", "takes the tap away, which a logit_lens reads"))
        return found


class VerbalizationSection(Schedule):
    """Stage one: training the verbalizers of one model."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this norm. 0 turns clipping off. Taps are independent, and a common
    norm would tie them together."""
    target: Literal["label", "final"] = "label"
    """`label`: cross-entropy to the next response token. `final`: KL to the model's own output."""
    taps_at_once: Positive | None = None
    """Taps that train together. Fewer take less memory and more passes over the data, and end with
    the same weights. All taps by default, from one forward."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find the schedule's contradictions, and groups of taps under a common gradient norm."""
        found = super().contradictions(path)
        if self.taps_at_once is not None and self.max_grad_norm:
            found.append((f"{path}.taps_at_once", "needs max_grad_norm: 0, since a norm ties taps"))
        return found

    def _indecisive(self) -> set[str]:
        return super()._indecisive() | {"taps_at_once"}


class ModelSection(Section):
    """A teacher or a student."""

    model: UserName | None = None
    """`from_pretrained` name or folder, which includes the processor."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub. The hub's own default by default."""
    processor: dict[str, Any] = Field(default={})
    """Options of the processor by name, such as `min_pixels`, `max_pixels`, `size` or
    `do_image_splitting`, as `from_pretrained` takes them. The saved processor's own by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights. `auto` takes the checkpoint's own. Weights that train are float32
    always. With `bfloat16` they run in bfloat16 autocast, and are saved in bfloat16."""
    attn_implementation: str | None = None
    """Kernel of the attention, as `from_pretrained` takes it: `eager`, `sdpa`, `flash_attention_2`
    or a kernel's name on the hub. transformers' own choice by default."""
    experts_implementation: str | None = None
    """The same for experts: `eager`, `grouped_mm`, … transformers' own choice by default."""
    use_kernels: bool = False
    """Replace layers by kernels from the hub, which the package `kernels` fetches."""
    trust_remote_code: bool = False
    """Run the code that comes with the model. Give a `revision` with it, since that code may
    change. It is never run by default."""
    taps: list[int] | None = None
    """0-based indices of the decoder blocks to read. Every 4th from 2 by default."""
    verbalizers: UserPath | None = None
    """Folder of trained verbalizers. If none is given, verbalizers are trained."""
    verbalizer: VerbalizerSection = VerbalizerSection()
    """Structure of the verbalizers to train."""
    verbalization: VerbalizationSection = VerbalizationSection()
    """Schedule of the verbalizers' training."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find repeated taps, and the schedule's own contradictions."""
        found = self.verbalization.contradictions(f"{path}.verbalization")
        found += self.verbalizer.contradictions(f"{path}.verbalizer")
        if self.taps is not None and len(set(self.taps)) != len(self.taps):
            found.append((f"{path}.taps", f"names a block twice: {self.taps}"))
        if self.taps is not None and self.verbalizers is not None:
            problem = (
                f"contradicts {path}.verbalizers, which name their own taps "
                f"(--set {path}.taps=null leaves these out)"
            )
            found.append((f"{path}.taps", problem))
        if self.taps is not None and not self.taps:
            found.append((f"{path}.taps", "is empty: name at least one block, or leave it out"))
        return found


class TeacherSection(ModelSection):
    """The teacher, which may be larger than a device."""

    device_map: str | NonNegative | dict[str, Device] | None = None
    """Spread over the devices of one process, as `from_pretrained` takes it: `auto`, `balanced`,
    `balanced_low_0`, `sequential`, or a device for each module's name. One device by default."""
    max_memory: dict[Device, NonNegative | str] | None = None
    """Most memory of each device, such as `{0: 70GiB, cpu: 200GiB}`. Needs a `device_map` that
    leaves a choice. All free memory by default."""
    tensor_parallel: Positive = 1
    """Processes that hold one copy of the teacher together. `torchrun` starts as many."""
    quantization: dict[str, Any] = Field(default={})
    """Quantisation on loading, as transformers' configurations take it: `{load_in_4bit: true}`, or
    `{quant_method: torchao, quant_type: Int8WeightOnlyConfig}`. None by default. A checkpoint that
    is quantised needs nothing here."""
    compile: bool = False
    """Compile the forward of each block with `torch.compile`."""

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find the model's contradictions, and two ways to spread one teacher."""
        found = super().contradictions(path)
        if self.tensor_parallel > 1 and self.device_map is not None:
            problem = (
                f"contradicts {path}.tensor_parallel: give one of the two "
                f"(--set {path}.device_map=null leaves this one out)"
            )
            found.append((f"{path}.device_map", problem))
        if self.max_memory is not None and self.device_map not in AUTOMATIC:
            problem = f"needs device_map: {', '.join(AUTOMATIC)}"
            found.append((f"{path}.max_memory", problem))
        copies = self.device_map is not None or self.tensor_parallel > 1 or bool(self.quantization)
        if copies and self.verbalizers is None and self.verbalizer.structure == "decoder":
            problem = "decoder copies a block, which must lie whole and unquantised on one device"
            found.append((f"{path}.verbalizer.structure", problem))
        return found
