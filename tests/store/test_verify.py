from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archives import shard_file
from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError
from vlsi_cache.store import Verification, create_cache, open_cache, verify_cache

Files = dict[str, bytes]


class Pair(NamedTuple):
    """A complete cache, and another of the same shape."""

    one: Files
    other: Files
    folder: Path
    records: list[bytes | None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("verify")
    (folder / "processor").mkdir()
    (folder / "processor/tokenizer.json").write_text('{"vocabulary": ["a", "b"]}')
    for name, seed in (("one", 0), ("other", 1)):
        manifest = make_manifest(verbalizers_fingerprint=sha256(name))
        writer = create_cache(folder / name, manifest, folder / "processor")
        for shard in writer.missing_shards():
            part = manifest.shard_range(shard)
            writer.write_shard(shard, [make_record(manifest, i, seed=seed) for i in part])
    return Pair(
        read_files(folder / "one"), read_files(folder / "other"), folder, values(folder / "one")
    )


def read_files(folder: Path) -> Files:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_files(folder: Path, files: Files) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def values(cache: Path) -> list[bytes | None]:
    """Every sample's record, or None where reading refuses."""
    read: list[bytes | None] = []
    opened = open_cache(cache)
    for index in range(len(opened)):
        read.append(None)
        with contextlib.suppress(CacheError):
            read[index] = pickle.dumps(opened[index])
    return read


def assert_refused_or_same(cache: Path, records: list[bytes | None]) -> None:
    with contextlib.suppress(CacheError):
        for read, value in zip(values(cache), records, strict=True):
            assert read in (None, value)


def blamed(found: Verification) -> set[str]:
    return {file for damage in found.damages for file in damage.files}


@st.composite
def damaged(draw: st.DrawFn, files: Files, other: Files) -> tuple[Files, set[str]]:
    """The files after one fault, and those that verifying must name."""
    # as many draws for each kind, so that none ends where another goes on
    name = draw(st.sampled_from(sorted(name for name, content in files.items() if content)))
    kind = draw(st.sampled_from(["flip", "cut", "grow", "delete", "add", "swap", "mix"]))
    content = files[name]
    at, bit = draw(st.integers(0, len(content) - 1)), draw(st.integers(0, 7))
    grown = draw(st.binary(min_size=1, max_size=50))
    added = draw(st.sampled_from(["stray", "shards/00009.zarr.zip", "processor/x.json"]))
    with_name = draw(st.sampled_from(sorted(files)))
    if kind == "flip":
        changed = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        return files | {name: changed}, {name}
    if kind == "cut":
        return files | {name: content[:at]}, {name}
    if kind == "grow":
        return files | {name: content + grown}, {name}
    if kind == "delete":
        return {key: data for key, data in files.items() if key != name}, {name}
    if kind == "add":
        return files | {added: content}, {added}
    if kind == "swap":
        swapped = files | {name: files[with_name], with_name: content}
        return swapped, {key for key in (name, with_name) if swapped[key] != files[key]}
    return files | {name: other[name]}, {name} if other[name] != content else set()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_damage_is_found_with_its_file_and_never_read_as_other_numbers(
    pair: Pair, data: st.DataObject
) -> None:
    files, faulty = data.draw(damaged(pair.one, pair.other))
    cache = write_files(pair.folder / "damaged", files)
    found = verify_cache(cache)
    if faulty == {"index.json"} and "index.json" not in files:
        assert not found.complete  # as if its last writer had been killed just before
    elif "manifest.json" in faulty and not found.num_shards:
        assert blamed(found) == {"manifest.json"}  # nothing can be judged without it
    else:
        assert found.sound == (not faulty)
        if faulty == {"index.json", "processor/tokenizer.json"}:
            faulty |= {"processor.json"}  # without the index a file cannot be told from its seal
        assert blamed(found) == faulty, found
    assert_refused_or_same(cache, pair.records)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_two_damages_at_once_are_found_and_never_read_as_other_numbers(
    pair: Pair, data: st.DataObject
) -> None:
    files, _ = data.draw(damaged(pair.one, pair.other))
    files, _ = data.draw(damaged(files, {**files, **pair.other}))
    cache = write_files(pair.folder / "damaged", files)
    if files != pair.one:
        with contextlib.suppress(CacheError):  # two deletions may leave nothing like a cache
            found = verify_cache(cache)
            assert not (found.sound and found.complete)
    assert_refused_or_same(cache, pair.records)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damage_to_an_incomplete_cache_is_found_too(pair: Pair, data: st.DataObject) -> None:
    def begun(files: Files) -> Files:
        left_out = ("index.json", "shards/00002.zarr.zip", "shards/00002.json")
        return {name: content for name, content in files.items() if name not in left_out}

    files, faulty = data.draw(damaged(begun(pair.one), begun(pair.other)))
    cache = write_files(pair.folder / "damaged", files)
    found = verify_cache(cache)
    assert not found.complete
    if not found.num_shards:
        assert blamed(found) == {"manifest.json"}
        return
    if {"processor.json", "processor/tokenizer.json"} <= faulty:
        faulty = {"processor.json"}  # in place of each other: the seal says nothing any more
    lost = begun(pair.one).keys() - files.keys()
    if lost and lost <= {"processor.json", "shards/00000.json", "shards/00001.json"}:
        assert found.sound  # as if its writer had been killed before it sealed them
    else:
        assert faulty <= blamed(found) <= faulty | counterparts(faulty), found


def counterparts(files: set[str]) -> set[str]:
    """What cannot be told from these while there is no index: a seal from its file."""
    pairs = [("processor.json", "processor/tokenizer.json")]
    pairs += [(f"shards/{i:05d}.zarr.zip", f"shards/{i:05d}.json") for i in range(3)]
    return {name for pair in pairs if files & set(pair) for name in pair}


def test_a_manifest_that_counts_otherwise_is_named_alone(pair: Pair) -> None:
    for changed in (b'"num_samples": 4', b'"num_samples": 9'):
        files = dict(pair.one)
        files["manifest.json"] = files["manifest.json"].replace(b'"num_samples": 5', changed)
        cache = write_files(pair.folder / "damaged", files)
        assert blamed(verify_cache(cache)) == {"manifest.json"}
        with pytest.raises(CacheError, match="Run vlsi-cache verify: it names the one"):
            open_cache(cache)


def test_a_processors_seal_that_names_another_file_is_named_alone(pair: Pair) -> None:
    seal = pair.one["processor.json"].replace(b"tokenizer.json", b"tokenizes.json")
    found = verify_cache(write_files(pair.folder / "damaged", pair.one | {"processor.json": seal}))
    assert blamed(found) == {"processor.json"}


def test_a_sound_cache_is_said_to_be(pair: Pair) -> None:
    found = open_cache(pair.folder / "one").verify()
    assert (found.sound, found.complete, found.damages) == (True, True, ())
    assert found.num_files == len(pair.one)
    assert found.num_bytes == sum(map(len, pair.one.values()))


def test_what_a_writer_at_work_or_a_killed_one_leaves_is_not_damage(pair: Pair) -> None:
    names = ["manifest.json", "shards/00001.zarr.zip"]
    files = {name: pair.one[name] for name in names} | {"shards/.00002.zarr.zip.a.partial": b"half"}
    found = verify_cache(write_files(pair.folder / "killed", files))
    assert (found.sound, found.complete) == (True, False)
    assert (found.num_shards, found.num_shards_sealed) == (3, 0)


def test_shards_swapped_with_their_seals_are_found(pair: Pair) -> None:
    files = {name: data for name, data in pair.one.items() if name != "index.json"}
    for end in ("zarr.zip", "json"):
        first, second = f"shards/00000.{end}", f"shards/00001.{end}"
        files[first], files[second] = files[second], files[first]
    found = verify_cache(write_files(pair.folder / "damaged", files))
    assert {"shards/00000.zarr.zip", "shards/00001.zarr.zip"} <= blamed(found)
    assert "holds shard 1" in found.damages[0].fault


def follow(found: Verification, cache: Path) -> None:
    """Do what the mend of each damage says."""
    for damage in found.damages:
        if damage.mend.startswith("Move the file away"):
            (cache / damage.files[0]).unlink()
            continue
        words = damage.mend.replace(",", " ").split()
        assert "delete" in (words[0].lower(), *words[7:8]), damage
        named = [word for word in words if word.endswith((".json", ".zip", "/"))]
        for name in named or damage.files:
            if name.endswith("/"):
                shutil.rmtree(cache / name, ignore_errors=True)
            else:
                (cache / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name",
    [
        "index.json",
        "processor.json",
        "processor/tokenizer.json",
        *(f"shards/{i:05d}.{end}" for i in range(3) for end in ("zarr.zip", "json")),
    ],
)
@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: b"", None])
def test_doing_what_it_says_mends_the_cache(
    pair: Pair, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    files = pair.one | {name: change(pair.one[name]) if change else b""}
    if change is None:
        del files[name]
    cache = write_files(pair.folder / "mended", files | {"stray": b""})
    follow(verify_cache(cache), cache)
    manifest = make_manifest(verbalizers_fingerprint=sha256("one"))
    writer = create_cache(cache, manifest, pair.folder / "processor")
    for shard in writer.missing_shards():
        writer.write_shard(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)])
    assert read_files(cache) == pair.one


def test_the_command_reports_damage_by_its_exit_code(pair: Pair) -> None:
    cache = write_files(pair.folder / "damaged", pair.one)
    runner = CliRunner(env={"COLUMNS": "100"})
    fine = runner.invoke(cli, ["verify", str(cache)])
    assert fine.exit_code == 0, fine.output
    assert "complete, 3 shards; sound" in " ".join(fine.stdout.split())
    shard_file(cache, 1).write_bytes(b"nothing of the kind")
    bad = runner.invoke(cli, ["verify", str(cache)])
    assert bad.exit_code == 1
    assert "00001.zarr.zip" in bad.stdout
    told = runner.invoke(cli, ["verify", str(cache), "--json"])
    assert told.exit_code == 1
    tree = json.loads(told.stdout)
    assert tree["damages"][0]["files"] == ["shards/00001.zarr.zip"]
    assert "run dump-teacher again" in tree["damages"][0]["mend"]
    shutil.rmtree(cache)
    none = runner.invoke(cli, ["verify", str(cache)])
    assert none.exit_code == 1
    assert none.stderr.strip().startswith("error: ")


def test_an_incomplete_cache_is_reported_and_ends_with_0(tmp_path: Path) -> None:
    make_cache(tmp_path, shards=[1])
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["verify", str(tmp_path)])
    assert result.exit_code == 0
    assert "incomplete, 1 of 3 shards sealed; sound" in " ".join(result.stdout.split())
