"""A report as JSON that a terminal shows and never obeys."""

from __future__ import annotations

import json

from pydantic import BaseModel

__all__ = ["json_text"]


def json_text(report: BaseModel) -> str:
    """Return a report as JSON.

    Strings keep every character. Those that a terminal would obey appear as JSON's escapes.
    """
    text = report.model_dump_json(indent=2)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
