"""Strings of a foreign cache are shown by the terminal and never obeyed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from support.caches import make_manifest, make_record
from support.runs import save_text_model, write_conversations
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError, printable
from vlsi_cache.store import create_cache, open_cache

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202eexe\u2066\x00\r\x7f\u200b"
LONG = "x" * 5000


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("escapes") / "cache"
    identity = make_manifest().model_dump()
    manifest = make_manifest(
        num_samples=2,
        teacher={**identity["teacher"], "name": f"teacher {EVIL}", "model_type": f"type {EVIL}"},
        tokenizer={**identity["tokenizer"], "name": EVIL},
        dataset={**identity["dataset"], "source": f"data {EVIL}{LONG}", "num_samples": 2},
        dtype=EVIL,
    )
    failed = dataclasses.replace(
        make_record(manifest, 0, num_tokens=0), sample_id=EVIL + LONG, failure=f"reason {EVIL}"
    )
    create_cache(path, manifest).write_shard(0, [failed, make_record(manifest, 1)])
    return path


def obeyed(text: str) -> set[str]:
    return {c for c in text if not c.isprintable()} - {"\n"}


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(cli, [str(each) for each in arguments])


def test_inspect_shows_escapes_and_cuts_what_is_long(cache: Path) -> None:
    result = run("inspect", cache)
    assert result.exit_code == 0, result.output
    assert obeyed(result.output) == set()
    assert "\\x1b]0;owned\\x07" in "".join(result.output.split())
    assert len(result.output) < 20_000


def test_json_keeps_every_character_and_shows_none_that_is_obeyed(cache: Path) -> None:
    result = run("inspect", cache, "--json")
    assert obeyed(result.output) == set()
    tree = json.loads(result.output)
    assert tree["teacher"]["name"] == f"teacher {EVIL}"
    assert tree["failures"] == {EVIL + LONG: f"reason {EVIL}"}


def test_verify_shows_names_of_stray_files_of_any_bytes(cache: Path) -> None:
    names = [b"\x1b[2Jstray", "\u202estray".encode(), b"\xff\xfestray"]
    paths = [cache / os.fsdecode(name) for name in names]
    try:
        for path in paths:
            path.touch()
        table, tree = run("verify", cache), run("verify", cache, "--json")
    finally:
        for path in paths:
            path.unlink()
    for result in (table, tree):
        assert result.exit_code == 1
        assert obeyed(result.output) == set()
    files = {file for damage in json.loads(tree.output)["damages"] for file in damage["files"]}
    assert files == {"\x1b[2Jstray", "\u202estray", "\\xff\\xfestray"}


def test_errors_show_escapes_in_one_line(cache: Path) -> None:
    result = run("inspect", cache, "--sample", f"no {EVIL}")
    assert result.exit_code == 1
    assert obeyed(result.output) == set()
    with pytest.raises(CacheError) as caught:
        open_cache(cache)[f"no {EVIL}"]
    assert obeyed(str(caught.value)) == set()
    error = CacheError(EVIL, where=EVIL + LONG, expected=EVIL, found=LONG, mend=EVIL)
    assert obeyed(str(error) + "\n") == set()
    assert "\n" not in str(error)
    assert len(str(error)) < 3000
    assert error.where == EVIL + LONG  # for code, as it is


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 猫 é\u3000–", "plain 猫 é\u3000–"),
        ("\x1b[0m", "\\x1b[0m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202e\u2069", "\\u202e\\u2069"),
        ("\ud800", "\\ud800"),
        ("x" * 11, "x" * 10 + " …"),
    ],
)
def test_a_text_is_shown_as_it_is_but_for_what_a_terminal_obeys(text: str, shown: str) -> None:
    assert printable(text, 10) == shown or printable(text) == shown


def test_the_name_of_a_models_folder_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    model = save_text_model(tmp_path / "\x1b[31mred\x07")
    data = write_conversations(tmp_path / "data.jsonl", 2)
    for words in (("check", "--teacher"), ("evaluate",)):
        result = run(*words, model, "--data", data)
        assert result.exit_code == 0, result.output
        assert obeyed(result.output) == set()
        assert "\\x1b[31mred\\x07" in "".join(result.output.split())
        if words[0] == "check":
            _, _, following = result.output.partition("--teacher ")
            quoted = following.partition(" --data")[0]
            printed = subprocess.run(
                ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True
            )
            assert printed.stdout.decode() == str(model)
    assert "loading the model " in result.stderr
