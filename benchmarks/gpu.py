"""What a GPU is for, in one command: objective, student step, dump, verbalization and loader.

Weights are random, of real shapes, and are built on the device, so nothing is downloaded. Every
part runs in a process of its own. A part that fails is recorded with its error, and the others go
on. The exit status is then 1. Goals are named, and the result says which are met.

Each comparison is made within one run: the objective beside its two matrix products, plain
autograd and other libraries, the student's step beside plain cross-entropy on the same model, and
the dump beside the bare forward and beside the forward with verbalizers.
"""

from __future__ import annotations

import importlib
import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch
from gpu_parts.goals import judged, table
from gpu_parts.shapes import FULL, QUICK
from harness import in_fresh_process, machine
from harness.command import WIDTH
from harness.measurement import device_of
from rich.console import Console

RESULTS = Path(__file__).parent / "results" / "gpu"
PARTS = {
    "objective": ("gpu_parts.objective", "measure"),
    "student": ("gpu_parts.training", "measure_students"),
    "dump": ("gpu_parts.passes", "measure"),
    "verbalization": ("gpu_parts.training", "measure_verbalization"),
    "loader": ("gpu_parts.loading", "measure"),
}
"""Part → module and function that measure it."""
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "triton", "liger-kernel", "trl")


def measure_part(name: str, quick: bool, device: str, rounds: int) -> dict[str, Any]:
    """Measure one part, in this process."""
    module, function = PARTS[name]
    measure: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return measure(QUICK if quick else FULL, torch.device(device), rounds)


def run_parts(
    names: Sequence[str], *, quick: bool, device: torch.device, rounds: int, isolated: bool
) -> Iterator[dict[str, Any]]:
    """Measure parts one after another. Yield what was found so far, after each.

    A part that fails leaves its error.
    """
    found: dict[str, Any] = {"errors": {}, "wall_seconds": {}}
    for name in names:
        start = time.perf_counter()
        arguments = (name, quick, str(device), rounds)
        try:
            found |= (
                in_fresh_process(measure_part, *arguments) if isolated else measure_part(*arguments)
            )
        except Exception as error:
            # Anything, because a part that fails must not cost the others.
            found["errors"][name] = f"{type(error).__name__}: {error}"
        seconds = found["wall_seconds"][name] = time.perf_counter() - start
        click.echo(f"{name}: {seconds:.0f} s", err=True)
        yield found


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def chosen_parts(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    """Read ``objective,dump`` as a list of parts."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise click.BadParameter(f"expected some of {','.join(PARTS)}, found {value!r}")
    return names


def result_path(about: dict[str, Any], folder: Path) -> Path:
    """Return the file of a result: the device's name and the date."""
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    return folder / f"{device}-{about['date']}.json"


def parts_before(about: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Return what other runs of the day found in the same setting, to be written again."""
    if path is None or not path.exists():
        return {}
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    is_same = all(before.get(name) == value for name, value in about.items())
    return {name: before[name] for name in before.keys() - about.keys()} if is_same else {}


def joined(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of both. A part that was measured again replaces the one before."""
    seconds = before.get("wall_seconds", {}) | found["wall_seconds"]
    kept = {name: why for name, why in before.get("errors", {}).items() if name not in seconds}
    return {**before, **found, "wall_seconds": seconds, "errors": kept | found["errors"]}


@click.command(help=str(__doc__).splitlines()[0])
@click.option(
    "--parts",
    default=",".join(PARTS),
    show_default=True,
    callback=chosen_parts,
    help="Parts to measure.",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Timed rounds.")
@click.option("--quick", is_flag=True, help="Tiny sizes in one process: a smoke.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not a table.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the result.  [default: benchmarks/results/gpu; none with --quick]",
)
def main(
    parts: list[str], device: str, rounds: int, quick: bool, as_json: bool, out: Path | None
) -> None:
    chosen = device_of(device)
    about = {
        **machine(chosen),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "size": "quick" if quick else "full",
        "rounds": rounds,
    }
    folder = out or (None if quick else RESULTS)
    path = None if folder is None else result_path(about, folder)
    before, result = parts_before(about, path), about
    for found in run_parts(parts, quick=quick, device=chosen, rounds=rounds, isolated=not quick):
        found = joined(before, found)
        result = {**about, **found, "goals": judged(found)}
        if path is not None:
            # After each part, because a machine that is lent for minutes may go at any time.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        console = Console()
        console.width = max(console.width, WIDTH)
        console.print(table(result).for_terminal())
        for name, error in result["errors"].items():
            click.echo(f"{name} failed: {error}")
        click.echo(f"{result['device']}, torch {result['torch']}, {rounds} rounds")
        if path is not None:
            click.echo(f"written to {path}")
    if result["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
