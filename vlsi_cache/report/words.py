"""Settings, names and amounts of a report, in the words of every form of it."""

from __future__ import annotations

from typing import Final

from vlsi_cache.errors import printable
from vlsi_cache.manifest import OUTPUT_TAP, HiddenIdentity, Sampling
from vlsi_cache.store.cache.figures.summary import CacheSummary

__all__ = [
    "MOST_OF_NAME",
    "bytes_text",
    "lacking_text",
    "setting_rows",
    "tap_name",
    "visible_text",
    "visible_token",
    "without_figures",
]

MOST_OF_NAME: Final = 200
"""Most characters of a name or a token that are shown."""
_NAMED_SHARDS: Final = 10


def tap_name(tap: int) -> str:
    """Return the name of a tap."""
    return "output" if tap == OUTPUT_TAP else str(tap)


def visible_token(text: str, most: int = MOST_OF_NAME) -> str:
    """Return a token's text in one line, with visible spaces and control characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    more = " …" if len(text) > most else ""
    return (shown.replace(" ", "␣") or "(nothing)") + more


def visible_text(text: str) -> str:
    """Return a text with its lines and tabs, and every other control character as an escape."""
    return "\n".join(
        "\t".join(printable(piece, len(piece)) for piece in line.split("\t"))
        for line in text.split("\n")
    )


def bytes_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    if count < 1000:
        return f"{count} bytes"
    size = float(count)
    unit = ""
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    while size >= 1000:
        size /= 1000
        unit = next(units)
    return f"{size:.1f} {unit}"


def lacking_text(summary: CacheSummary) -> str:
    """Return what an unfinished cache lacks, or nothing."""
    if summary.complete and summary.indexed:
        return ""
    command = "merge" if summary.num_parts else "dump-teacher"
    mend = f"Run {command} again as before; it goes on where it stopped."
    if summary.complete:
        return f"Unfinished: every shard is there, and the index is not written yet. {mend}"
    missing = summary.missing_shards
    named = ", ".join(map(str, missing[:_NAMED_SHARDS]))
    more = " …" if len(missing) > _NAMED_SHARDS else ""
    return (
        f"Incomplete: {len(missing):,} of {summary.num_shards:,} shards are missing "
        f"({named}{more}). All figures are of the others. {mend}"
    )


def without_figures(summary: CacheSummary) -> str:
    """Return why a cache without a response token has no figures of its taps."""
    if not summary.num_shards_present:
        return "No shard is written yet, so there are no figures of the taps."
    if summary.failures:
        return "No sample that could be read has response tokens: the taps have no figures."
    return "No sample has response tokens, so there are no figures of the taps."


def setting_rows(summary: CacheSummary) -> list[tuple[str, str]]:
    """Return the name and the value of each setting and size, printable."""
    share = summary.num_shards_present / max(summary.num_shards, 1)
    state = "complete" if summary.complete else f"incomplete ({share:.0%})"
    if summary.num_parts:
        state = f"{state}, merged of {summary.num_parts:,} caches"
    sampling = summary.sampling
    rows = [
        ("cache", summary.path),
        ("teacher", f"{summary.teacher.name} ({summary.teacher.model_type}, {summary.dtype})"),
        ("tokenizer", f"{summary.tokenizer.vocab_size:,} ids"),
        ("data", summary.dataset),
        ("samples", _samples(summary)),
        ("tokens", f"{summary.num_tokens:,} of responses"),
        ("shards", f"{_of(summary.num_shards_present, summary.num_shards)}, {state}"),
        ("per token, tap", f"{_kept(sampling)} (seed {sampling.seed})"),
        *_hidden(summary.hidden),
        ("size", _size(summary)),
    ]
    if summary.bytes_on_disk is not None:
        text = f"{bytes_text(summary.bytes_on_disk)}, with the processor's files"
        rows.append(("on disk", text))
    if summary.num_samples_read is not None:
        chosen = f"{summary.num_samples_read:,} samples chosen at random"
        rows.append(("figures of", f"{chosen}, {summary.num_tokens_read:,} tokens"))
    return [(name, printable(value)) for name, value in rows]


def _kept(sampling: Sampling) -> str:
    if sampling.k == 0:
        return f"{sampling.m} drawn from the whole distribution"
    return f"{sampling.k} most likely + {sampling.m} drawn from the {sampling.drawn_from}"


def _hidden(kept: HiddenIdentity | None) -> list[tuple[str, str]]:
    if kept is None:
        return []
    text = f"block {kept.block} of {kept.num_blocks}, {kept.bits} signs, {kept.bits // 8} bytes"
    return [("hidden state", f"{text} per token")]


def _samples(summary: CacheSummary) -> str:
    text = _of(summary.num_samples, summary.num_samples_total)
    if not summary.failures:
        return text
    name, reason = next(iter(summary.failures.items()))
    shown = f"'{printable(name, MOST_OF_NAME)}': {printable(reason)}"
    return f"{text}; {len(summary.failures):,} of them failed, the first {shown}"


def _size(summary: CacheSummary) -> str:
    text = bytes_text(summary.bytes_total)
    if summary.bytes_per_token_tap is None:
        return text
    return (
        f"{text}, {summary.bytes_per_token_tap:.1f} bytes per token and tap: "
        f"{summary.compression_ratio:.1f}× against plain arrays, "
        f"{summary.dense_ratio:,.0f}× against dense bfloat16 logits"
    )


def _of(count: int, total: int) -> str:
    return f"{count:,}" if count == total else f"{count:,} of {total:,}"
