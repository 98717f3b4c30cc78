"""The sections ``teacher`` and ``student``: a model, its taps and its verbalizers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vlsi_cache.recipe.schedule import Schedule
from vlsi_cache.recipe.section import Contradiction, Section, UserName, UserPath

__all__ = ["ModelSection", "VerbalizationSection", "VerbalizerSection"]


class VerbalizerSection(Section):
    """The small network that reads one tap as a vocabulary distribution."""

    structure: Literal["mlp", "verb_ffn", "ffn", "decoder"] = "verb_ffn"
    """`verb_ffn`: gated, three D×D maps (the paper's). `mlp`: one D×D map. `ffn`: the same gate
    with the backbone's own expansion. `decoder`: a whole decoder block."""
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
        return self.residual and self.start == "ridge"

    def identity(self) -> dict[str, object]:
        """The settings as JSON values. The start that verbalizers had before is left out."""
        return self.model_dump(exclude={"start"} if self.start == "logit_lens" else None)


class VerbalizationSection(Schedule):
    """Stage one: training the verbalizers of one model."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this norm. 0 turns clipping off. Taps are independent, and a common
    norm would tie them together."""
    target: Literal["label", "final"] = "label"
    """`label`: cross-entropy to the next response token. `final`: KL to the model's own output."""


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
        if self.taps is not None and len(set(self.taps)) != len(self.taps):
            found.append((f"{path}.taps", f"names a block twice: {self.taps}"))
        if self.taps is not None and self.verbalizers is not None:
            found.append((f"{path}.taps", "contradicts verbalizers, which name their own taps"))
        if self.taps is not None and not self.taps:
            found.append((f"{path}.taps", "is empty: name at least one block, or leave it out"))
        return found
