"""Draw the experiments' differences: a point and an interval each, over what was predicted."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

__all__ = ["draw"]

_LEFT, _WIDTH, _ROW, _HEAD = 400, 940, 26, 54
_PLOT = _WIDTH - _LEFT - 120
"""Columns of the plot. The figures in words stand right of it."""

_TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" role="img" \
aria-labelledby="worth-title worth-desc" \
font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif">
<title id="worth-title">What the layers are worth</title>
<desc id="worth-desc">{{ words }}</desc>
<style>
text { fill: #57606a; font-size: 13px; }
.head { font-size: 14px; font-weight: 600; }
.zero { stroke: #8b949e; }
.predicted { fill: #8b949e; fill-opacity: 0.3; }
.found { stroke: #2f81f7; stroke-width: 2; fill: #2f81f7; }
@media (prefers-color-scheme: dark) { text { fill: #adbac7; } }
</style>
{%- for panel in panels %}
<text class="head" x="10" y="{{ panel.y }}">{{ panel.head }}</text>
<line class="zero" x1="{{ panel.zero }}" x2="{{ panel.zero }}" \
y1="{{ panel.y + 10 }}" y2="{{ panel.bottom }}"/>
{%- for row in panel.rows %}
<text x="20" y="{{ row.y + 4 }}">{{ row.name }}</text>
<rect class="predicted" x="{{ row.low }}" y="{{ row.y - 8 }}" width="{{ row.span }}" height="16"/>
{%- if row.point is not none %}
<line class="found" x1="{{ row.first }}" x2="{{ row.last }}" y1="{{ row.y }}" y2="{{ row.y }}"/>
<circle class="found" cx="{{ row.point }}" cy="{{ row.y }}" r="4"/>
{%- endif %}
<text x="{{ width - 10 }}" y="{{ row.y + 4 }}" text-anchor="end">{{ row.figures }}</text>
{%- endfor %}
{%- endfor %}
<text x="10" y="{{ height - 12 }}">Point and line: mean and 95 % interval over seeds. Grey: \
predicted before the runs. Left of the line is less.</text>
</svg>
"""


def draw(result: dict[str, Any]) -> str:
    """Return the picture of a summary as SVG."""
    panels, top = [], 24
    for experiment in result["experiments"]:
        panel = _panel(experiment, top)
        panels.append(panel)
        top = panel["bottom"] + _HEAD - 20
    words = " ".join(experiment["verdict"] + "." for experiment in result["experiments"])
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(panels=panels, width=_WIDTH, height=top + 10, words=words)


def _panel(experiment: dict[str, Any], top: int) -> dict[str, Any]:
    found = experiment["differences"]
    widest = max(abs(bound) for difference in found for bound in _bounds(difference))

    def across(value: float) -> float:
        return round(_LEFT + _PLOT * (value / widest / 1.05 + 1) / 2, 1)

    rows = [_row(found[i], top + 26 + _ROW * i, across) for i in range(len(found))]
    return {
        "y": top,
        "head": f"{experiment['name']}. {experiment['question']}",
        "zero": across(0.0),
        "bottom": top + 18 + _ROW * len(found),
        "rows": rows,
    }


def _row(difference: dict[str, Any], y: int, across: Any) -> dict[str, Any]:
    low, high = (across(bound) for bound in difference["predicted"])
    mean, interval = difference["mean"], difference["interval"] or 0.0
    row = {
        "y": y,
        "name": f"{difference['name']}: {difference['title']}",
        "low": low,
        "span": round(high - low, 1),
        "point": None,
        "figures": "not run",
    }
    if mean is None:
        return row
    ends = {"first": across(mean - interval), "last": across(mean + interval)}
    spread = "one seed" if difference["interval"] is None else f"± {interval:.3f}"
    return {**row, **ends, "point": across(mean), "figures": f"{mean:+.3f} {spread}"}


def _bounds(difference: dict[str, Any]) -> list[float]:
    mean, interval = difference["mean"] or 0.0, difference["interval"] or 0.0
    return [*difference["predicted"], mean - interval, mean + interval]
