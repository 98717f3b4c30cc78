"""Base models of what is stored as JSON, and of what is reported as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["ReportModel", "StoredModel"]


class StoredModel(BaseModel):
    """What a file holds. Unknown fields and other types are refused, not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class ReportModel(BaseModel):
    """What a command reports with ``--json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
