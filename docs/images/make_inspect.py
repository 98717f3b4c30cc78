"""Draw ``inspect.svg``: what ``vlsi-cache inspect`` prints, made by the command's own table code.

Run ``python docs/images/make_inspect.py`` after a change to the table or to the figures below.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlsi_cache.report import CacheSummary, summary_table

__all__ = ["SUMMARY", "draw", "main"]

PICTURE = Path(__file__).with_name("inspect.svg")
_COMMAND = "vlsi-cache inspect runs/vlsi/cache"
_WIDTH = 72
_NOT_SHOWN = "0" * 64

# block: entropy, mass kept, label's log-probability, agreement with the output and with the label,
# label kept
_TAPS = {
    2: (5.84, 0.293, -6.241, 0.216, 0.123, 0.298),
    6: (5.669, 0.315, -5.951, 0.237, 0.14, 0.321),
    10: (5.449, 0.338, -5.689, 0.272, 0.159, 0.354),
    14: (5.626, 0.319, -5.467, 0.303, 0.171, 0.376),
    18: (5.234, 0.359, -5.205, 0.348, 0.194, 0.403),
    22: (4.371, 0.464, -4.682, 0.462, 0.239, 0.462),
    26: (3.719, 0.552, -4.203, 0.575, 0.287, 0.529),
    -1: (3.528, 0.562, -3.871, 1.0, 0.323, 0.575),
}
_FIGURES = (
    "entropy_nats",
    "captured_mass",
    "label_log_prob_nats",
    "agreement_with_final",
    "agreement_with_label",
    "label_in_record",
)

SUMMARY = CacheSummary.model_validate(
    {
        "path": "runs/vlsi/cache",
        "complete": True,
        "num_shards": 1,
        "num_shards_present": 1,
        "missing_shards": (),
        "indexed": True,
        "num_samples": 96,
        "num_samples_total": 96,
        "failures": {},
        "num_tokens": 12_980,
        "bytes_total": 1_403_280,
        "bytes_on_disk": 4_927_400,
        "bytes_per_token_tap": 13.5,
        "compression_ratio": 6.5,
        "dense_ratio": 7274,
        "teacher": {
            "name": "SmolLM2-135M-Instruct",
            "model_type": "llama",
            "weights_fingerprint": _NOT_SHOWN,
        },
        "tokenizer": {
            "name": "SmolLM2-135M-Instruct",
            "hash": _NOT_SHOWN,
            "vocab_size": 49152,
        },
        "dataset": "text.jsonl",
        "sampling": {"k": 4, "m": 12, "seed": 0, "drawn_from": "whole"},
        "num_parts": 0,
        "samples_per_shard": 512,
        "batch_size": 8,
        "dtype": "float32",
        "taps": [
            {"tap": tap, **dict(zip(_FIGURES, row, strict=True))} for tap, row in _TAPS.items()
        ],
    }
)
"""A cache of SmolLM2-135M-Instruct over 96 pieces of English."""

# rich's own template fetches a font from a server; this one takes what the reader has
_TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
aria-labelledby="inspect-title inspect-desc">
<title id="inspect-title">vlsi-cache inspect</title>
<desc id="inspect-desc">The printed report of a cache: its settings, then a row per tap.</desc>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect fill="#292929" width="{width}" height="{height}" rx="8"/>
<circle cx="24" cy="22" r="7" fill="#ff5f57"/>
<circle cx="46" cy="22" r="7" fill="#febc2e"/>
<circle cx="68" cy="22" r="7" fill="#28c840"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def draw() -> str:
    """Return the picture as SVG."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {_COMMAND}", style="bold"))
    console.print(summary_table(SUMMARY))
    return console.export_svg(code_format=_TEMPLATE, unique_id="inspect")


def main() -> None:
    """Write the picture beside this script."""
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
