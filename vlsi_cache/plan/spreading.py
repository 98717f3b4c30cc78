"""Ways to spread a stage over devices, and what each device then holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from vlsi_cache.plan.rehearsing.rehearsal import Rehearsed, Setting
from vlsi_cache.plan.rehearsing.steps import PlannedStageName
from vlsi_cache.recipe import Recipe

__all__ = [
    "COUNTS",
    "SPREADS",
    "Counts",
    "Spread",
    "as_recipe_spreads",
    "host_bytes",
    "is_mapped",
    "is_open",
    "spread_bytes",
    "spreads",
]

COUNTS: Final = (2, 4, 8, 16, 32, 64)
"""Numbers of devices that a mend may name."""
_ONE_TAP: Final = "teacher.verbalization.taps_at_once"
_SPLIT: Final = "teacher.tensor_parallel"


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of devices that a mend may name, from the fewest."""

    devices: tuple[int, ...] = COUNTS
    """Devices that there may be."""
    parallel: tuple[int, ...] = COUNTS
    """Those by which the teacher's blocks can be divided."""


Spread = Callable[[Rehearsed, int, int], float]
"""Bytes of each device, from a stage, the number of devices and the number of taps."""


def spread_by_map(found: Rehearsed, count: int, _num_taps: int) -> float:
    """Return (weights + added + training) / n + working.

    Each device holds some blocks and the verbalizers of their taps. The batch goes through one
    device after another, so all that is worked on may lie on one.
    """
    return found.static / count + found.working


def spread_by_tensors(found: Rehearsed, count: int, _num_taps: int) -> float:
    """Return blocks / n + the other weights + added + working, of the teacher's pass.

    Each process holds a part of every block, and the whole of head, embedding and verbalizers.
    """
    return found.blocks / count + found.static - found.blocks + found.working


def spread_training_by_tensors(found: Rehearsed, count: int, _num_taps: int) -> float:
    """Return (blocks + added + training) / n + the other weights + working, of stage one.

    The verbalizers are sharded while they train. What is gathered for one tap is not counted.
    """
    trained = found.static - found.weights
    return (found.blocks + trained) / count + found.weights - found.blocks + found.working


def spread_by_taps(found: Rehearsed, _count: int, num_taps: int) -> float:
    """Return weights + (added + training) / L + working: one tap of L trains at a time."""
    trained = found.static - found.weights
    return found.weights + trained / max(num_taps, 1) + found.working


def spread_by_both(found: Rehearsed, count: int, num_taps: int) -> float:
    """Return (blocks + (added + training) / L) / n + the other weights + working."""
    trained = (found.static - found.weights) / max(num_taps, 1)
    return (found.blocks + trained) / count + found.weights - found.blocks + found.working


_TRAINED: Final = ("added", "gradients", "optimizer")
_TEACHER: Final = ("teacher-verbalization", "teacher-pass")
SPREADS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], str, Spread], ...]] = (
    ((_ONE_TAP,), _TEACHER[:1], f"{_ONE_TAP}: 1", spread_by_taps),
    (("teacher.device_map",), _TEACHER, "teacher.device_map: auto", spread_by_map),
    ((_SPLIT,), _TEACHER[:1], f"{_SPLIT}: {{}}", spread_training_by_tensors),
    ((_SPLIT,), _TEACHER[1:], f"{_SPLIT}: {{}}", spread_by_tensors),
    ((_SPLIT, _ONE_TAP), _TEACHER[:1], f"{_SPLIT}: {{}}, {_ONE_TAP}: 1", spread_by_both),
)
"""The recipe's keys that it sets, the stages that it spreads, its text, and its formula."""


def spread_bytes(found: Rehearsed, spread: Spread, count: int, num_taps: int) -> int:
    """Return the bytes of each device, rounded."""
    return round(spread(found, count, num_taps))


def host_bytes(found: Rehearsed, setting: Setting, stage: PlannedStageName) -> int | None:
    """Return the bytes of the first process's machine, outside of its devices, if they are many.

    Where weights are sharded, the first process alone loads them: weights + added. For a checkpoint
    it puts together what trains, in float32, and AdamW's two means: 12 · trained parameters. So it
    does for verbalizers whose teacher the processes hold together, where each loads its own part.
    On a CPU the other processes lie beside it, and its own slices remain while it does this.
    """
    count, on_cpu = setting.num_processes, setting.device.type == "cpu"
    splits = stage == "teacher-verbalization" and setting.recipe.teacher.tensor_parallel > 1
    if setting.shards(stage) or splits:
        whole = max(0 if splits else found.loaded, 12 * found.num_trained)
        first = max(found.static + whole, found.peak)
        return first + (count - 1) * found.peak if on_cpu else whole
    takes_turns = stage.startswith("teacher") and is_mapped(setting.recipe)
    return None if count == 1 or not on_cpu or takes_turns else count * found.peak


def spreads(
    stage: PlannedStageName,
    found: Rehearsed,
    limit: float,
    num_taps: int,
    counts: Counts,
    is_open: Callable[[str], bool],
) -> Iterator[tuple[int, str, int]]:
    """Yield each way with the fewest devices that suffice: their number, text and bytes.

    Args:
        stage: name of the stage.
        found: the stage on one device.
        limit: bytes that a device may take.
        num_taps: taps that train.
        counts: numbers of devices.
        is_open: whether a key of the recipe may still be set to spread the stage.
    """
    for needs, stages, text, spread in SPREADS:
        if stage not in stages or not all(map(is_open, needs)):
            continue
        tried = counts.parallel if _SPLIT in needs else counts.devices
        if spread is spread_by_taps:
            tried = (1,)
        if not tried:
            continue
        sizes = {count: spread_bytes(found, spread, count, num_taps) for count in tried}
        count = next((count for count in tried if sizes[count] <= limit), tried[-1])
        over = f", over {count} devices" if count > 1 else ""
        yield count, text.format(count) + over, sizes[count]


def is_open(recipe: Recipe, key: str) -> bool:
    """Report whether a key may be set to spread the teacher: it does not lie over others yet."""
    teacher = recipe.teacher
    if key == _ONE_TAP:
        return teacher.verbalization.taps_at_once != 1
    return teacher.device_map is None and teacher.tensor_parallel == 1


def as_recipe_spreads(
    found: Rehearsed, recipe: Recipe, stage: PlannedStageName, devices: int, num_taps: int
) -> Rehearsed:
    """Return what each device holds of a stage that the recipe itself spreads.

    Args:
        found: the stage on one device.
        recipe: the recipe.
        stage: name of the stage.
        devices: devices of the run.
        num_taps: taps that train.
    """
    if "verbalization" in stage:
        section = recipe.teacher if stage.startswith("teacher") else recipe.student
        at_once = section.verbalization.taps_at_once
        if at_once is not None and at_once < num_taps:
            found = _scaled(found, at_once / num_taps, _TRAINED)
    if stage not in _TEACHER:
        return found
    count = recipe.teacher.tensor_parallel
    if count > 1:
        spread = found.blocks // count
        found = replace(found, weights=found.weights - found.blocks + spread, blocks=spread)
        return _scaled(found, 1 / count, _TRAINED if "verbalization" in stage else ())
    if is_mapped(recipe) and devices > 1:
        return _scaled(found, 1 / devices, ("weights", "blocks", *_TRAINED))
    return found


def is_mapped(recipe: Recipe) -> bool:
    """Report whether one process spreads the teacher over its devices, which take turns."""
    return recipe.teacher.device_map is not None


def _scaled(found: Rehearsed, factor: float, names: tuple[str, ...]) -> Rehearsed:
    return replace(found, **{name: round(getattr(found, name) * factor) for name in names})
