"""A complete cache that lost a file, or whose folders cannot be listed, is an error everywhere."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from support.archives import shard_file
from support.caches import make_cache, make_record, write_part
from support.lostfiles import LOST as STOOD_IN
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError
from vlsi_cache.store import (
    Cache,
    count_shards,
    create_cache,
    merge_caches,
    open_cache,
    verify_cache,
)

READS: dict[str, Callable[[Cache], Any]] = {
    "samples": lambda cache: [cache[index] for index in range(len(cache))],
    "iteration": list,
    "shards": lambda cache: list(cache.iter_shards()),
    "keys": lambda cache: list(cache.keys()),
    "names": lambda cache: list(cache.names()),
    "number of tokens": lambda cache: cache.num_tokens,
    "failures": Cache.failures,
    "statistics": Cache.statistics,
    "a name": lambda cache: cache["nobody"],
}
LOST = [
    "shards/00001.zarr.zip",
    "shards/00001.json",
    "processor.json",
    "processor/tokenizer.json",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_part(tmp_path_factory.mktemp("sound") / "cache", [0, 1, 2, 4, 6])


@pytest.fixture
def cache(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def read_everything(path: Path) -> None:
    opened = open_cache(path)
    list(opened)
    with opened.processor_folder():
        pass


def one_line(result: Any) -> str:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return str(line)


@pytest.mark.parametrize("key", LOST)
def test_a_file_that_the_index_lists_is_missed_at_opening(cache: Path, key: str) -> None:
    (cache / key).unlink()
    with pytest.raises(CacheError, match=rf"{key}: file is missing, although index\.json"):
        open_cache(cache)
    line = one_line(CliRunner().invoke(cli, ["inspect", str(cache)]))
    assert key in line
    assert "run dump-teacher again" in line
    assert {file for found in verify_cache(cache).damages for file in found.files} == {key}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("key", LOST[:2])
def test_a_file_that_is_lost_while_the_cache_is_open_is_missed_too(
    cache: Path, key: str, read: str
) -> None:
    opened = open_cache(cache)
    (cache / key).unlink()
    with pytest.raises(CacheError, match=key):
        READS[read](opened)


def test_a_cache_that_was_completed_while_it_was_open_must_stay_whole(tmp_path: Path) -> None:
    opened = make_cache(tmp_path, shards=[0])
    assert not opened.is_indexed
    make_cache(tmp_path)
    assert len(list(opened)) == 5
    assert opened.is_indexed
    shard_file(tmp_path, 2).unlink()
    with pytest.raises(CacheError, match=r"00002\.zarr\.zip: file is missing"):
        list(opened)


@pytest.mark.parametrize("read", [name for name in READS if name != "samples"])
def test_a_sealed_shard_that_an_unfinished_cache_lost_is_missed(tmp_path: Path, read: str) -> None:
    opened = make_cache(tmp_path, shards=[0, 1])
    shard_file(tmp_path, 0).unlink()
    for cache in (opened, open_cache(tmp_path)):
        with pytest.raises(CacheError, match=r"00000\.zarr\.zip: shard is missing"):
            READS[read](cache)
    make_cache(tmp_path)  # writes it again
    assert len(list(open_cache(tmp_path))) == 5


def test_all_that_is_lost_is_counted(cache: Path) -> None:
    shutil.rmtree(cache / "shards")
    with pytest.raises(CacheError, match=r"00000\.zarr\.zip: file is missing, and 5 more"):
        open_cache(cache)


def test_merging_misses_what_a_cache_lost(cache: Path, tmp_path: Path) -> None:
    other = write_part(tmp_path / "other", [7, 8])
    shard_file(cache, 1).unlink()
    result = CliRunner().invoke(cli, ["merge", str(tmp_path / "all"), str(cache), str(other)])
    assert "00001.zarr.zip: file is missing" in one_line(result)
    assert not (tmp_path / "all").exists()


def test_a_merged_cache_misses_the_manifest_of_a_part(tmp_path: Path) -> None:
    parts = [write_part(tmp_path / name, [number]) for name, number in (("a", 0), ("b", 1))]
    merge_caches(tmp_path / "all", parts)
    (tmp_path / "all/parts/00001.json").unlink()
    with pytest.raises(CacheError, match=r"parts/00001\.json: file is missing.*merge again"):
        open_cache(tmp_path / "all")


def test_a_lost_shard_that_is_written_again_in_other_words_is_refused(tmp_path: Path) -> None:
    manifest = make_cache(tmp_path).manifest
    shard_file(tmp_path, 0).unlink()
    (tmp_path / "shards/00000.json").unlink()
    assert count_shards(tmp_path) == (2, 3)
    others = [make_record(manifest, index, seed=9) for index in range(2)]
    with pytest.raises(CacheError, match=r"not the one that index\.json lists\. Delete index"):
        create_cache(tmp_path, manifest).write_shard(0, others)
    (tmp_path / "index.json").unlink()
    assert create_cache(tmp_path, manifest).missing_shards() == []
    assert verify_cache(tmp_path).sound
    assert len(list(open_cache(tmp_path))) == 5


# --- folders that cannot be listed


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def leads_back(path: Path) -> None:
    path.mkdir()
    (path / "again").symlink_to("..")


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a loop of links": (loop, "folder cannot be listed"),
    "a link that leads nowhere": (dangling, "is a link that leads nowhere"),
    "a file": (Path.touch, "is a file, not a folder"),
    "a pipe": (os.mkfifo, "is a file, not a folder"),
    "a folder that leads back": (leads_back, "folder leads back to itself"),
}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_cannot_be_listed_is_an_error_and_never_an_empty_one(
    cache: Path, kind: str, complete: bool
) -> None:
    make, problem = FOLDERS[kind]
    opened = open_cache(cache)
    shutil.rmtree(cache / "shards")
    make(cache / "shards")
    if not complete:
        (cache / "index.json").unlink()
        opened = open_cache(cache) if kind != "a folder that leads back" else opened
    for read in (list, Cache.statistics, Cache.missing_shards, Cache.size_bytes):
        with pytest.raises(CacheError, match=problem):
            read(opened)
    for command in ("inspect", "verify"):
        line = one_line(CliRunner().invoke(cli, [command, str(cache)]))
        assert problem in line
        assert "Delete shards" not in line


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user of the machine may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o700)
    shutil.rmtree(folder)


def without_rights(check: Callable[[], None]) -> None:
    """Run a check in a process that may not read everything, as root may."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            check()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("key", ["shards", "shards/00001.zarr.zip", "index.json", "."])
def test_what_may_not_be_read_is_an_error_and_not_damage(public: Path, key: str) -> None:
    make_cache(public / "cache")
    (public / "cache" / key).chmod(0)

    def check() -> None:
        with pytest.raises(CacheError, match=r"Permission denied\)\. Check permissions"):
            list(open_cache(public / "cache"))
        if key in ("shards", "."):
            with pytest.raises(CacheError, match=r"Permission denied\)\. Check permissions"):
                verify_cache(public / "cache")
        else:
            (damage,) = verify_cache(public / "cache").damages
            assert damage.files == (key,)
            assert "Permission denied" in damage.fault
            assert damage.mend.startswith("Check permissions")

    without_rights(check)


# --- something else in a file's place


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


THINGS: dict[str, Callable[[Path], Any]] = {
    "is a pipe, not a file": os.mkfifo,
    "is a socket, not a file": make_socket,
    "is a device, not a file": lambda path: path.symlink_to("/dev/zero"),
    "is a folder, not a file": Path.mkdir,
    "is a link that leads nowhere": dangling,
    "file cannot be read": loop,
}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize(
    "key",
    ["manifest.json", "index.json", "processor.json", "shards/00000.zarr.zip", "shards/00000.json"],
)
def test_what_is_not_a_file_is_named_and_never_waited_for(
    cache: Path, key: str, thing: str, complete: bool
) -> None:
    manifest = open_cache(cache).manifest
    if not complete:
        (cache / "index.json").unlink()
    (cache / key).unlink(missing_ok=True)
    THINGS[thing](cache / key)
    with pytest.raises(CacheError, match=thing) as caught:
        read_everything(cache)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    (damage,) = verify_cache(cache).damages
    assert damage.files == (key,)
    assert thing in damage.fault
    if key in ("manifest.json", "index.json"):
        with pytest.raises(CacheError, match=thing):
            create_cache(cache, manifest)


def test_a_processors_file_that_is_not_a_file_is_named(cache: Path) -> None:
    key = "processor/tokenizer.json"
    (cache / key).unlink()
    os.mkfifo(cache / key)
    with pytest.raises(CacheError, match="is a pipe"), open_cache(cache).processor_folder():
        pass
    (damage,) = verify_cache(cache).damages
    assert (damage.files, damage.fault) == ((key,), "is a pipe, not a file")


@pytest.mark.parametrize("key", ["shards/00000.zarr.zip", "processor/tokenizer.json"])
def test_a_file_of_a_petabyte_is_refused_by_its_size(cache: Path, key: str) -> None:
    os.truncate(cache / key, 2**43)
    assert {damage.files for damage in verify_cache(cache).damages} == {(key,)}


# --- links to foreign folders


@pytest.mark.parametrize("key", ["more", "shards/old"])
def test_a_link_to_a_foreign_folder_is_one_foreign_file(
    cache: Path, tmp_path: Path, key: str
) -> None:
    foreign = tmp_path / "disk"
    foreign.mkdir()
    (foreign / "back").symlink_to(".")
    (foreign / "others.txt").touch()
    records = len(open_cache(cache))
    (cache / key).symlink_to(foreign)
    assert len(list(open_cache(cache))) == records
    (damage,) = verify_cache(cache).damages
    assert damage.files == (key,)
    assert damage.fault == "does not belong to the cache"


@pytest.mark.parametrize("name", ["shards", "processor"])
def test_a_caches_own_folder_may_be_a_link(cache: Path, tmp_path: Path, name: str) -> None:
    (cache / name).rename(tmp_path / "elsewhere")
    (cache / name).symlink_to(tmp_path / "elsewhere")
    assert verify_cache(cache).sound
    assert open_cache(cache).is_complete


def test_thousands_of_damages_are_counted_and_the_first_are_shown(cache: Path) -> None:
    for number in range(300):
        (cache / f"{number:03}.txt").touch()
    shown = CliRunner().invoke(cli, ["verify", str(cache)]).stdout
    assert "300 damaged" in " ".join(shown.split())
    assert shown.count(".txt") == 100
    assert "… and 200 more. --json names all of them" in shown


@pytest.mark.parametrize("words", [words for words in STOOD_IN if "NUL" not in words])
@pytest.mark.parametrize(
    "key", ["manifest.json", "index.json", "shards/00000.json", "shards/00000.zarr.zip"]
)
def test_what_stands_in_a_files_place_is_named(key: str, words: str, cache: Path) -> None:
    (cache / key).write_bytes(STOOD_IN[words])
    with pytest.raises(CacheError) as caught:
        list(open_cache(cache))
    assert str(caught.value).startswith(f"{cache / key}: ")
    assert words in str(caught.value)
    if words == "a git-lfs pointer to 12,345 bytes" and key.endswith(".zip"):
        assert "Fetch what it points to with git lfs pull" in str(caught.value)
    assert "\n" not in str(caught.value)
