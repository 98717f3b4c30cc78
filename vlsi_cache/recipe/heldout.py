"""The section ``held_out``: samples that a student is measured on while it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlsi_cache.recipe.section import CacheAddress, Contradiction, Positive, Section
from vlsi_cache.recipe.sources import DataPath, DataSection

__all__ = ["HeldOutSection", "TrackerName"]

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
"""A service or file format that shows a training's figures."""


class HeldOutSection(Section):
    """Samples that no stage of the student learns from. Stages two and three measure it on them."""

    part: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of `data` that is held out. The content of a sample decides, so further rows move no
    other. The samples' records in the cache give the divergence."""
    path: DataPath | None = None
    """Other data that is held out, in place of `part`. It is read as `data` is."""
    split: str | None = None
    """Split of the held-out data. Without `path`, a split of `data.path`. `data.split` by
    default."""
    revision: str | None = None
    """Branch, tag or commit of the held-out data's hub name. With `path` its newest commit by
    default, and `data.revision` with `split` alone."""
    cache: CacheAddress | None = None
    """The teacher's record of the data at `path` or `split`, for the divergence. Without it, the
    label loss alone is measured. `metric: divergence` needs a complete one."""
    limit: Positive | None = None
    """Most samples that are measured, spread by the hash of their content. All by default."""
    every: Positive = 100
    """Steps between two measurements. The last step is measured too."""
    batch_size: Positive | None = None
    """Samples of one forward pass of a measurement. The stage's own by default."""
    metric: Literal["loss", "divergence"] = "loss"
    """The figure that `keep` and `patience` follow."""
    keep: Literal["last", "best"] = "last"
    """Weights that a stage ends with. `best` are those of the measurement with the lowest
    `metric`."""
    patience: Positive | None = None
    """Measurements without a better `metric` after which a stage stops. Null: none stops early."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """A `metric` that is better by no more than this many nats counts as no better for
    `patience`."""

    @property
    def is_given(self) -> bool:
        """Whether samples are held out."""
        return self.part is not None or self.is_other_data

    @property
    def is_other_data(self) -> bool:
        """Whether they come from other data than the student learns from."""
        return self.path is not None or self.split is not None

    def section_of(self, data: DataSection) -> DataSection:
        """Return the section of the held-out data, which is read as ``data`` is."""
        changes = {
            "path": self.path if self.path is not None else data.path,
            "split": self.split or data.split,
            "revision": self.revision or (data.revision if self.path is None else None),
            "sources": [],
            "limit": None,
        }
        return data.model_copy(update=changes)

    def chosen_by(self) -> dict[str, object]:
        """Return the settings that choose the weights of a stage, as JSON values."""
        names = {"every", "metric", "patience", "min_improvement", "limit"}
        return self.model_dump(mode="json", include=names) if self.keep == "best" else {}

    def contradictions(self, path: str) -> list[Contradiction]:
        """Find held-out data that is named twice or not at all, and figures that are not there."""
        found = []
        if self.part is not None and self.is_other_data:
            found.append((f"{path}.part", "is given beside path or split: give one of them"))
        if not self.is_given:
            problem = "has no effect: nothing is held out by part, path or split"
            found += [(f"{path}.{name}", problem) for name in sorted(self._changed())]
            return found
        if self.part is not None and self.cache is not None:
            found.append((f"{path}.cache", "has no effect: cache.path has the records of part"))
        if self.part is not None and self.revision is not None:
            found.append((f"{path}.revision", "has no effect: part is of data, at data.revision"))
        if self.is_other_data and self.cache is None and self.metric == "divergence":
            found.append((f"{path}.metric", "divergence needs held_out.cache"))
        if self.keep == "last":
            needs = [("patience", None), ("min_improvement", 0.0), ("metric", "loss")]
            changed = [name for name, value in needs if getattr(self, name) != value]
            found += [(f"{path}.{name}", "needs keep: best") for name in changed]
        elif self.patience is None and self.min_improvement:
            found.append((f"{path}.min_improvement", "needs patience"))
        return found

    def _changed(self) -> set[str]:
        defaults = type(self)()
        names = type(self).model_fields
        return {name for name in names if getattr(self, name) != getattr(defaults, name)}
