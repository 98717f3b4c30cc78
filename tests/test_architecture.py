"""The rooms: no module imports itself by a detour, not even for a type."""

from __future__ import annotations

import ast
import functools
import itertools
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {
    "vlsi_cache": ROOT / "vlsi_cache",
    "vlsi_cache.cli": ROOT / "cli",
    "vlsi_cache.schemas": ROOT / "schemas",
}


@functools.cache
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
            homes = handed_on(node.module)
            for name in (alias.name for alias in node.names):
                home = homes.get(name, node.module)
                # a name is a module of its own, or comes from the module before it
                found.add(f"{home}.{name}" if f"{home}.{name}" in known else home)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


@functools.cache
def handed_on(package: str) -> dict[str, str]:
    """Name → module that it comes from, of what a facade hands on; empty for other modules."""
    path = modules().get(package)
    if path is None or path.name != "__init__.py":
        return {}
    return {
        alias.name: node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def circles(needs: dict[str, set[str]]) -> list[str]:
    """Modules on a circle, or between two: those that can be taken away from neither end."""
    remaining = set(needs)
    while True:
        imported_by_others = set(itertools.chain.from_iterable(needs[name] for name in remaining))
        inner = {name for name in remaining & imported_by_others if needs[name] & remaining}
        if inner == remaining:
            return sorted(remaining)
        remaining = inner


def test_circles_are_found() -> None:
    needs = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": set()}
    assert circles(needs) == ["b", "c"]


def test_no_module_imports_itself_by_a_detour() -> None:
    files = modules()
    # a name that a facade hands on is counted for the module that it comes from
    known = {name for name, path in files.items() if path.name != "__init__.py"}
    assert circles({name: imported(files[name], known) for name in known}) == []


def test_every_folder_says_what_it_is_for() -> None:
    for name, path in modules().items():
        documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert documented, name


def test_no_module_imports_the_facade_of_a_room_that_it_lies_in() -> None:
    files = modules()
    known = set(files)
    for name, path in files.items():
        if path.stem not in ("__init__", "__main__"):
            parents = {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}
            assert imported(path, known) & parents == set(), name
