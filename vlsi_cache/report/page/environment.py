"""Templates to one HTML file, with style and script inside and all text escaped."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["MAX_PAGE_BYTES", "render_template"]

MAX_PAGE_BYTES: Final = 5_000_000
"""A page is smaller, however large the cache or the run is."""


def render_template(name: str, **values: Any) -> str:
    """Render a template that extends ``base.html``.

    Args:
        name: name of the template.
        values: what it shows.
    """
    style, script = _asset("style.css"), _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(name)
        .render(
            style=Markup(style),  # noqa: S704 (our own file)
            script=Markup(script),  # noqa: S704 (our own file)
            script_digest=digest,
            **values,
        )
    )


def _asset(name: str) -> str:
    return files("vlsi_cache.report.page").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vlsi_cache.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _compact_json
    environment.policies["json.dumps_kwargs"] = {}
    return environment


def _compact_json(value: Any, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
