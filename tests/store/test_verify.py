from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import pretty
from rich.console import Console

from support.archives import shard_file
from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError
from vlsi_cache.report import verification_table
from vlsi_cache.store import Verification, create_cache, open_cache, verify_cache
from vlsi_cache.store.cache.folder import list_cache
from vlsi_cache.store.cache.seals import ProcessorSeal
from vlsi_cache.store.places.place import Place

Files = dict[str, bytes]


class Pair:
    """A complete cache, and another of the same shape.

    Hypothesis renders the arguments of a failing test, and warns if they are long. Warnings are
    errors here, and that error would hide the failure. So this has a short repr, and is not a
    dataclass or a tuple, of which hypothesis renders every field.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one = read_files(folder / "one")
        self.other = read_files(folder / "other")
        self.records = values(folder / "one")

    def __repr__(self) -> str:
        return f"Pair({str(self.folder)!r})"


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
    return Pair(folder)


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


@dataclass(frozen=True)
class Fault:
    """What is done to one file; small, so that a failing example can be read."""

    kind: str
    name: str
    at: int = 0
    bit: int = 0
    grown: bytes = b""
    other_name: str = ""

    def apply(self, files: Files, other: Files) -> tuple[Files, set[str]]:
        """The files after the fault, and those that verifying must name."""
        name, content = self.name, files[self.name]
        if self.kind == "flip":
            flipped = bytes([content[self.at] ^ 1 << self.bit])
            return files | {name: content[: self.at] + flipped + content[self.at + 1 :]}, {name}
        if self.kind == "cut":
            return files | {name: content[: self.at]}, {name}
        if self.kind == "grow":
            return files | {name: content + self.grown}, {name}
        if self.kind == "delete":
            return {key: data for key, data in files.items() if key != name}, {name}
        if self.kind == "add":
            return files | {self.other_name: content}, {self.other_name}
        if self.kind == "swap":
            swapped = files | {name: files[self.other_name], self.other_name: content}
            return swapped, {key for key in (name, self.other_name) if swapped[key] != files[key]}
        return files | {name: other[name]}, {name} if other[name] != content else set()


@st.composite
def faults(draw: st.DrawFn, files: Files) -> Fault:
    name = draw(st.sampled_from(sorted(name for name, content in files.items() if content)))
    kind = draw(st.sampled_from(["flip", "cut", "grow", "delete", "add", "swap", "mix"]))
    positions = st.integers(0, len(files[name]) - 1)
    if kind == "flip":
        return Fault(kind, name, at=draw(positions), bit=draw(st.integers(0, 7)))
    if kind == "cut":
        return Fault(kind, name, at=draw(positions))
    if kind == "grow":
        return Fault(kind, name, grown=draw(st.binary(min_size=1, max_size=50)))
    if kind == "add":
        added = draw(st.sampled_from(["stray", "shards/00009.zarr.zip", "processor/x.json"]))
        return Fault(kind, name, other_name=added)
    if kind == "swap":
        return Fault(kind, name, other_name=draw(st.sampled_from(sorted(files))))
    return Fault(kind, name)


def test_arguments_of_failing_examples_are_short_enough_to_be_shown(pair: Pair) -> None:
    assert len(pretty(pair)) < 500


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_damage_is_found_with_its_file_and_never_read_as_other_numbers(
    pair: Pair, data: st.DataObject
) -> None:
    files, faulty = data.draw(faults(pair.one)).apply(pair.one, pair.other)
    cache = write_files(pair.folder / "damaged", files)
    found = verify_cache(cache)
    if faulty == {"index.json"} and "index.json" not in files:
        assert not found.complete  # as if its last writer had been killed just before
    elif "manifest.json" in faulty and not found.num_shards:
        assert blamed(found) == {"manifest.json"}  # nothing can be judged without it
    else:
        assert found.sound == (not faulty)
        if faulty == {"index.json", "processor/tokenizer.json"}:
            faulty |= {"processor.json"}  # without the index either may be wrong
        assert blamed(found) == faulty, found
    assert_refused_or_same(cache, pair.records)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_two_damages_at_once_are_found_and_never_read_as_other_numbers(
    pair: Pair, data: st.DataObject
) -> None:
    files, _ = data.draw(faults(pair.one)).apply(pair.one, pair.other)
    files, _ = data.draw(faults(files)).apply(files, {**files, **pair.other})
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

    files, faulty = data.draw(faults(begun(pair.one))).apply(begun(pair.one), begun(pair.other))
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
        doubtful = counterparts(faulty)
        if "processor.json" in faulty:
            doubtful |= named_by_seal(files)  # a damaged seal may name other files
        assert faulty <= blamed(found) <= faulty | doubtful, found


def counterparts(files: set[str]) -> set[str]:
    """These files with their seals: without an index, either of the two may be wrong."""
    pairs = [("processor.json", "processor/tokenizer.json")]
    pairs += [(f"shards/{i:05d}.zarr.zip", f"shards/{i:05d}.json") for i in range(3)]
    return {name for pair in pairs if files & set(pair) for name in pair}


def named_by_seal(files: Files) -> set[str]:
    """The processor's files that its seal names, if it can be read."""
    with contextlib.suppress(ValueError):
        seal = ProcessorSeal.model_validate_json(files.get("processor.json", b""))
        return {f"processor/{name}" for name in seal.files}
    return set()


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


OTHER_NAMES = [b"tokenizes.json", b"tokenizer.jso.", b"_okenizer.json", b"tokenizer/json"]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_an_index_that_names_another_file_of_the_processor_is_named_alone(
    pair: Pair, name: bytes
) -> None:
    index = pair.one["index.json"].replace(b"tokenizer.json", name)
    found = verify_cache(write_files(pair.folder / "damaged", pair.one | {"index.json": index}))
    assert blamed(found) == {"index.json"}, found
    assert "run dump-teacher again" in found.damages[0].mend
    with pytest.raises(CacheError, match=r"/index\.json: differs from the processor's seal"):
        open_cache(pair.folder / "damaged")


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_seal_that_names_another_file_is_in_doubt_with_its_files_where_there_is_no_index(
    pair: Pair, name: bytes
) -> None:
    files = {key: content for key, content in pair.one.items() if key != "index.json"}
    files["processor.json"] = files["processor.json"].replace(b"tokenizer.json", name)
    found = verify_cache(write_files(pair.folder / "damaged", files))
    assert blamed(found) == {
        "processor.json",
        "processor/tokenizer.json",
        f"processor/{name.decode()}",
    }


def test_a_sound_cache_is_said_to_be(pair: Pair) -> None:
    found = open_cache(pair.folder / "one").verify()
    assert (found.sound, found.complete, found.damages) == (True, True, ())
    assert found.num_files == len(pair.one)
    assert found.num_bytes == sum(map(len, pair.one.values()))


@pytest.mark.parametrize("processor", [True, False])
def test_what_a_writer_publishes_after_the_listing_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: bool
) -> None:
    source = tmp_path / "processor"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    manifest = make_manifest(num_samples=6)
    path = tmp_path / "cache"
    make_cache(path, manifest, shards=[0])

    def list_and_publish(place: Place) -> dict[str, int]:
        files = list_cache(place)
        writer = create_cache(path, manifest, source if processor else None)
        for shard in writer.missing_shards():
            records = [make_record(manifest, i) for i in manifest.shard_range(shard)]
            writer.write_shard(shard, records)
        return files

    monkeypatch.setattr("vlsi_cache.store.cache.verification.verify.list_cache", list_and_publish)
    found = verify_cache(path)
    assert found.damages == ()
    assert (found.complete, found.num_shards_sealed) == (True, 3)


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
    printed = runner.invoke(cli, ["verify", str(cache), "--json"])
    assert printed.exit_code == 1
    tree = json.loads(printed.stdout)
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


def test_what_windows_leaves_in_folders_is_not_damage(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    for name in ("Thumbs.db", "shards/desktop.ini", "shards/.DS_Store"):
        (tmp_path / "cache" / name).write_bytes(b"x")
    assert verify_cache(tmp_path / "cache").sound


def test_a_file_in_place_of_the_cache_asks_for_its_folder(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    for name in ("manifest.json", "shards/00000.zarr.zip"):
        for read in (open_cache, verify_cache):
            with pytest.raises(CacheError, match=r"is a file, not a folder\. A cache is a folder"):
                read(tmp_path / "cache" / name)


def _shown(found: Verification) -> str:
    console = Console(width=500)
    with console.capture() as capture:
        console.print(verification_table(found))
    return capture.get()


def test_the_report_counts_files_and_says_nothing_of_shards_without_a_manifest(pair: Pair) -> None:
    cache = write_files(pair.folder / "damaged", pair.one | {"manifest.json": b"{"})
    found = verify_cache(cache)
    assert "without its manifest, nothing is known of the shards; 1 damaged" in _shown(found)
    (damage,) = found.damages
    twice = damage.model_copy(update={"fault": "is of another size"})
    assert "1 damaged" in _shown(found.model_copy(update={"damages": (damage, twice)}))
