"""A plan for the terminal: counts, a table of stages, what does not fit, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlsi_cache.plan.report import Mend, Plan, PlannedStage

__all__ = ["plan_table", "spelt_bytes", "spelt_seconds"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MOST_MENDS = 3


def plan_table(plan: Plan) -> RenderableType:
    """Render a plan."""
    return Group(_counts(plan), Text(), _stages(plan), *_verdict(plan))


def spelt_bytes(size: float) -> str:
    """Return a size with its unit, such as ``3.2 GB``."""
    power = _power(size)
    return f"{_scaled(size, power)} {_UNITS[power]}"


def _power(size: float) -> int:
    """Return the power of 1000 that a size is written in."""
    power = 0
    while size >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return power


def _scaled(size: float, power: int) -> str:
    scaled = size / 1000**power
    return f"{scaled:.0f}" if scaled >= 100 or not power else f"{scaled:.1f}"


def spelt_seconds(seconds: float | None) -> str:
    """Return a time with its unit, such as ``3.2 h``."""
    if seconds is None:
        return "not known"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def _counts(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    read = "all" if plan.rows_read == plan.samples else f"{plan.rows_read:,}"
    sizes = plan.verbalizer_parameters
    named = (("teacher", sizes.teacher), ("student", sizes.student))
    verbalizers = [f"{spelt_count(size)} ({role})" for role, size in named if size is not None]
    rows = [
        ("data", f"{plan.data}: {plan.samples:,} samples, {read} of them read"),
        ("tokens", f"{plan.tokens:,}, {plan.response_tokens:,} of them learned"),
        ("longest", f"{plan.longest:,} tokens"),
        ("cache", _cache(plan)),
        ("verbalizers", f"{', '.join(verbalizers)} parameters"),
        ("devices", _devices(plan)),
    ]
    if plan.unreadable_rows:
        rows.insert(
            1, ("not readable", f"{plan.unreadable_rows:,} rows; vlsi-cache check says why")
        )
    hosts = [stage.host_bytes for stage in plan.stages if stage.host_bytes is not None]
    if hosts:
        rows.append(("host", f"{spelt_bytes(max(hosts))} on the first process's machine"))
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def spelt_count(count: int) -> str:
    """Return a count in millions or billions, such as ``270 M``."""
    if count < 1_000_000:
        return f"{count:,}"
    return f"{count / 1e6:,.0f} M" if count < 10**9 else f"{count / 1e9:,.2f} B"


def _cache(plan: Plan) -> str:
    source = "by its own shards" if plan.cache_bytes_measured else "as other caches had"
    if plan.samples_recorded == plan.samples:
        source = "as it is"
    text = f"{spelt_bytes(plan.cache_bytes)} on disk ({source})"
    if plan.samples_recorded:
        text += f", {plan.samples_recorded:,} of {plan.samples:,} samples are recorded"
    if plan.disk_free_bytes is not None:
        text += f", {spelt_bytes(plan.disk_free_bytes)} free"
    return text


def _devices(plan: Plan) -> str:
    unknown = "of unknown memory: give --memory 80GB, or --device cpu to plan for this machine"
    memory = unknown if plan.memory_bytes is None else spelt_bytes(plan.memory_bytes)
    shared = ", which share the student's weights (FSDP)" if plan.shards_student else ""
    return f"{plan.devices} × {plan.device}, {memory}{shared}"


def _stages(plan: Plan) -> Table:
    power = _power(max((stage.device_bytes for stage in plan.stages), default=0))
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(f"peak of a device, {_UNITS[power]}", no_wrap=True)
    for heading in ("weights", "added", "training", "working", "in all", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for stage in plan.stages:
        training = stage.gradients_bytes + stage.optimizer_bytes
        parts = (stage.weights_bytes, stage.added_bytes, training, stage.working_bytes)
        sizes = [_scaled(size, power) for size in (*parts, stage.device_bytes)]
        table.add_row(stage.name, *sizes, spelt_seconds(stage.seconds), _state(stage))
    return table


def _state(stage: PlannedStage) -> Text:
    if stage.done:
        return Text("done", style="green")
    if stage.fits is None:
        return Text("")
    return Text("fits", style="green") if stage.fits else Text("too much", style="bold red")


def _verdict(plan: Plan) -> Iterator[RenderableType]:
    for stage in plan.stages:
        if stage.fits is False and not stage.done:
            yield from _mends(stage)
    if any(stage.seconds is None and not stage.done for stage in plan.stages):
        yield Text("note: --throughput or --probe gives the times", style="dim")
    for note in plan.notes:
        yield Text(f"note: {note}", style="dim")


def _mends(stage: PlannedStage) -> Iterator[RenderableType]:
    fitting = [mend for mend in stage.mends if mend.fits][:_MOST_MENDS]
    if fitting:
        yield Text(f"{stage.name} does not fit. Any one of these mends it:")
        for mend in fitting:
            yield Text(f"  {mend.setting}  ({_sizes(mend)})")
        return
    nearest = stage.mends[0] if stage.mends else None
    known = f"; nearest is {nearest.setting} ({_sizes(nearest)})" if nearest else ""
    yield Text(f"{stage.name} does not fit, and no setting makes it{known}. Take larger devices")


def _sizes(mend: Mend) -> str:
    device = spelt_bytes(mend.device_bytes)
    if mend.host_bytes is None:
        return device
    return f"{device}, and {spelt_bytes(mend.host_bytes)} in the first process's host"
