"""How long a second command reads unchanged data, and the other processes of a run.

The data are made-up conversations without images, one to a line. Each command opens them, validates
every row and takes the fingerprint, as every command does at its start. Each runs in a process of
its own, and the figures are of its CPU time.

- first_over_second: the first command over the second, which finds what the first remembered
- first_over_rest: the process of a run that reads, over one that is given what was found
- seconds_per_million_rows: the first command, by the size of the data
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import PrintedTable, benchmark, figures, in_fresh_process

from vlsi_cache.data import DataFindings, load_conversations

FULL = 1_000_000
QUICK = 2_000


def write_rows(path: Path, count: int) -> None:
    """Write short questions with short answers."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"role": "user", "content": f"What comes after {number}?"},
                {"role": "assistant", "content": f"After {number} comes {number + 1}."},
            ]
            file.write(json.dumps({"id": f"row-{number}", "messages": turns}) + "\n")


def start(path: Path, memory: Path, found: DataFindings | None) -> tuple[float, DataFindings]:
    """Time what a command does with its data at its start.

    Args:
        path: the data.
        memory: folder in which commands remember what they read.
        found: what another process of the run found, if it gave it.
    """
    os.environ["VLSI_CACHE_HOME"] = str(memory)
    began = time.process_time()
    data = load_conversations(path)
    if found is None:
        found = data.prepare()
    else:
        data.adopt(found)
    return time.process_time() - began, found


def measure(size: int) -> dict[str, Any]:
    """Measure three starts on the same data."""
    with tempfile.TemporaryDirectory() as folder:
        path, memory = Path(folder) / "rows.jsonl", Path(folder) / "memory"
        write_rows(path, size)
        first, found = in_fresh_process(start, path, memory, None)
        second, again = in_fresh_process(start, path, memory, None)
        rest, _ = in_fresh_process(start, path, memory, found)
    if again.fingerprint != found.fingerprint:
        raise AssertionError("the second command has another fingerprint")
    return {
        "size": size,
        "first_seconds": first,
        "second_seconds": second,
        "rest_seconds": rest,
        "first_over_second": first / second,
        "first_over_rest": first / rest,
        "seconds_per_million_rows": first / size * 1e6,
    }


def tables(result: dict[str, Any]) -> list[PrintedTable]:
    """Show the figures of one run."""
    names = [name for name in result if name.startswith(("first", "second", "rest"))]
    return [figures(f"{result['size']:,} rows", result, names)]


main = benchmark(measure, tables, full=FULL, quick=QUICK, rounds=None, on_cpu=True)

if __name__ == "__main__":
    main()
