"""Ways to spread a stage over devices, and what each device then holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from vlsi_cache.plan.rehearsing.rehearsal import Rehearsed
from vlsi_cache.plan.rehearsing.steps import PlannedStageName
from vlsi_cache.recipe import Recipe

__all__ = [
    "SPREADS",
    "Spread",
    "as_recipe_spreads",
    "host_bytes",
    "is_mapped",
    "spread_bytes",
    "spreads",
]

_COUNTS: Final = (2, 4, 8, 16, 32, 64)
_SHARDING: Final = "vlsi_cache.training.sharding"
_ONE_TAP: Final = "teacher.verbalization.taps_at_once"
_SPLIT: Final = "teacher.tensor_parallel"

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


def spread_by_shards(found: Rehearsed, count: int, _num_taps: int) -> float:
    """Return (weights + added + training) / n + working, by FSDP.

    Each process holds a share of every parameter, of its gradient and of AdamW's means. What is
    gathered for one block at a time is not counted.
    """
    return found.static / count + found.working


_TRAINED: Final = ("added", "gradients", "optimizer")
_TEACHER: Final = ("teacher-verbalization", "teacher-pass")
_STUDENT: Final = ("student-verbalization", "interaction", "finetuning")
SPREADS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], str, Spread], ...]] = (
    ((_ONE_TAP,), _TEACHER[:1], f"{_ONE_TAP}: 1", spread_by_taps),
    (("teacher.device_map",), _TEACHER, "teacher.device_map: auto", spread_by_map),
    ((_SPLIT,), _TEACHER[:1], f"{_SPLIT}: {{}}", spread_training_by_tensors),
    ((_SPLIT,), _TEACHER[1:], f"{_SPLIT}: {{}}", spread_by_tensors),
    ((_SPLIT, _ONE_TAP), _TEACHER[:1], f"{_SPLIT}: {{}}, {_ONE_TAP}: 1", spread_by_both),
    ((_SHARDING,), _STUDENT, "accelerate launch with FSDP", spread_by_shards),
)
"""What must be there, the stages that it spreads, its text, and its formula. What must be there are
keys of the recipe, or a module."""


def spread_bytes(found: Rehearsed, spread: Spread, count: int, num_taps: int) -> int:
    """Return the bytes of each device, rounded."""
    return round(spread(found, count, num_taps))


def host_bytes(found: Rehearsed) -> int:
    """Return max(weights + added, 12 · trained parameters): the first process's in its host.

    It alone loads what is sharded. For a checkpoint it puts together what trains, in float32, and
    AdamW's two means.
    """
    return max(found.weights + found.added, 12 * found.num_trained)


def spreads(
    stage: PlannedStageName,
    found: Rehearsed,
    limit: float,
    num_taps: int,
    has_key: Callable[[str], bool],
) -> Iterator[tuple[str, int, int | None]]:
    """Yield each way with the fewest devices that suffice: text, bytes, and those of the host.

    Args:
        stage: name of the stage.
        found: the stage on one device.
        limit: bytes that a device may take.
        num_taps: taps that train.
        has_key: whether the recipe has a key.
    """
    for needs, stages, text, spread in SPREADS:
        if stage not in stages or not all(_is_there(need, has_key) for need in needs):
            continue
        counts = _COUNTS if spread is not spread_by_taps else (1,)
        sizes = {count: spread_bytes(found, spread, count, num_taps) for count in counts}
        count = next((count for count in counts if sizes[count] <= limit), counts[-1])
        over = f", over {count} devices" if count > 1 else ""
        host = host_bytes(found) if spread is spread_by_shards else None
        yield text.format(count) + over, sizes[count], host


def as_recipe_spreads(
    found: Rehearsed, recipe: Recipe, stage: PlannedStageName, devices: int, num_taps: int
) -> Rehearsed:
    """Return what each device holds of a stage that the recipe itself spreads.

    Args:
        found: the stage on one device.
        recipe: the recipe. A key that it does not have counts as not set.
        stage: name of the stage.
        devices: devices of the run.
        num_taps: taps that train.
    """
    if "verbalization" in stage:
        section = recipe.teacher if stage.startswith("teacher") else recipe.student
        at_once = getattr(section.verbalization, "taps_at_once", None)
        if at_once is not None and at_once < num_taps:
            found = _scaled(found, at_once / num_taps, _TRAINED)
    if stage not in _TEACHER:
        return found
    count = getattr(recipe.teacher, "tensor_parallel", 1)
    if count > 1:
        spread = found.blocks // count
        found = replace(found, weights=found.weights - found.blocks + spread, blocks=spread)
        return _scaled(found, 1 / count, _TRAINED if "verbalization" in stage else ())
    if is_mapped(recipe) and devices > 1:
        return _scaled(found, 1 / devices, ("weights", "blocks", *_TRAINED))
    return found


def is_mapped(recipe: Recipe) -> bool:
    """Report whether one process spreads the teacher over its devices, which take turns."""
    return getattr(recipe.teacher, "device_map", None) is not None


def _scaled(found: Rehearsed, factor: float, names: tuple[str, ...]) -> Rehearsed:
    return replace(found, **{name: round(getattr(found, name) * factor) for name in names})


def _is_there(need: str, has_key: Callable[[str], bool]) -> bool:
    if need.startswith("vlsi_cache."):
        return find_spec(need) is not None
    return has_key(need)
