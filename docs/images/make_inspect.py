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

# block: entropy, label's log-probability, agreement with the output and with the label, label kept
_TAPS = {
    2: (5.398, -6.392, 0.244, 0.121, 0.271),
    6: (5.151, -6.096, 0.251, 0.130, 0.286),
    10: (4.923, -5.825, 0.295, 0.154, 0.321),
    14: (4.856, -5.633, 0.311, 0.156, 0.336),
    18: (4.826, -5.368, 0.363, 0.182, 0.362),
    22: (4.078, -4.788, 0.482, 0.230, 0.425),
    26: (3.363, -4.279, 0.613, 0.277, 0.493),
    -1: (3.545, -3.905, 1.0, 0.312, 0.558),
}
_FIGURES = (
    "entropy_nats",
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
        "num_samples": 32,
        "num_samples_total": 32,
        "failures": {},
        "num_tokens": 4800,
        "bytes_total": 425_200,
        "bytes_on_disk": 3_949_300,
        "bytes_per_token_tap": 11.1,
        "compression_ratio": 5.3,
        "dense_ratio": 8879,
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
        "sampling": {"k": 0, "m": 14, "seed": 0},
        "num_parts": 0,
        "samples_per_shard": 512,
        "batch_size": 8,
        "dtype": "float32",
        "taps": [
            {"tap": tap, "captured_mass": None, **dict(zip(_FIGURES, row, strict=True))}
            for tap, row in _TAPS.items()
        ],
    }
)
"""A cache of SmolLM2-135M-Instruct over 32 pieces of English."""

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
