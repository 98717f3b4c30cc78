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
from collections.abc import Callable, Sequence
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
) -> dict[str, Any]:
    """Measure parts one after another. One that fails leaves its error."""
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
        found["wall_seconds"][name] = time.perf_counter() - start
    return found


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


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """Write the result under the device's name and the date."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    path = folder / f"{device}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


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
    found = run_parts(parts, quick=quick, device=chosen, rounds=rounds, isolated=not quick)
    result = {
        **machine(chosen),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "size": "quick" if quick else "full",
        "rounds": rounds,
        "goals": judged(found),
        **found,
    }
    folder = out or (None if quick else RESULTS)
    path = None if folder is None else write_result(result, folder)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        console = Console()
        console.width = max(console.width, WIDTH)
        console.print(table(result).for_terminal())
        for name, error in found["errors"].items():
            click.echo(f"{name} failed: {error}")
        click.echo(f"{result['device']}, torch {result['torch']}, {rounds} rounds")
        if path is not None:
            click.echo(f"written to {path}")
    if found["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
