"""A terminal or a log file whose encoding lacks characters ends no command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.caches import make_cache, make_manifest, sha256

NAME = "Lehrer × 🦙"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoding") / "cache"
    dataset = {"source": NAME, "fingerprint": sha256("data"), "num_samples": 5}
    make_cache(folder, make_manifest(dataset=dataset))
    return folder


def _inspect(cache: Path, encoding: str, *options: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "vlsi_cache.cli", "inspect", str(cache), *options],
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, b"")
    return found.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("latin-1", r"Lehrer × \ud83e\udd99"),
        ("ascii", r"Lehrer \u00d7 \ud83e\udd99"),
    ],
)
def test_what_an_encoding_lacks_is_shown_as_escapes(encoding: str, shown: str, cache: Path) -> None:
    assert shown in _inspect(cache, encoding)


def test_json_stays_json_in_another_encoding(cache: Path) -> None:
    assert NAME in str(json.loads(_inspect(cache, "latin-1", "--json")))
