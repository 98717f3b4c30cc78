"""The rooms: no module imports itself by a detour, not even for a type."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {
    "vlsi_cache": ROOT / "vlsi_cache",
    "vlsi_cache.cli": ROOT / "cli",
    "vlsi_cache.schemas": ROOT / "schemas",
}


def modules() -> dict[str, Path]:
    """Dotted name → file of every module."""
    found = {}
    for package, folder in HOMES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((package, *parts))] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules that a file imports anywhere: at the top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # a name is a module of its own, or comes from the module before it
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_no_module_imports_itself_by_a_detour() -> None:
    files = modules()
    # a facade hands names on from below, so a circle through it alone is none
    facades = {name for name, path in files.items() if path.name == "__init__.py"}
    known = set(files) - facades
    remaining = {name: imported(files[name], known) for name in known}
    while leaves := {name for name, needed in remaining.items() if not needed}:
        remaining = {
            name: needed - leaves for name, needed in remaining.items() if name not in leaves
        }
    # what is left imports one another in circles, or imports those that do
    bound = set(itertools.chain.from_iterable(remaining.values()))
    assert sorted(set(remaining) & bound) == []


def test_every_folder_says_what_it_is_for() -> None:
    for name, path in modules().items():
        documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert documented, name


def test_no_module_imports_the_facade_of_a_room_that_it_lies_in() -> None:
    files = modules()
    known = set(files)
    for name, path in files.items():
        if path.name != "__init__.py":
            parents = {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}
            assert imported(path, known) & parents == set(), name
