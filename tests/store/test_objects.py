"""Caches in an object store, on a real S3 server behind a network that fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from support.caches import make_cache, make_manifest, make_record, write_part
from support.objectstore import (
    BUCKET,
    OTHER_BUCKET,
    FaultyProxy,
    free_port,
    s3_environment,
    s3_server,
)
from support.runs import make_recipe
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.recipe import recipe_from_mapping
from vlsi_cache.store import create_cache, merge_caches, open_cache, verify_cache
from vlsi_cache.store.places.local import LocalPlace
from vlsi_cache.store.places.objects import ObjectPlace
from vlsi_cache.store.places.opening import open_place
from vlsi_cache.store.places.place import Place

TESTS = Path(__file__).parents[1]
MANIFEST = make_manifest(num_samples=12, samples_per_shard=2)
WRITE_ALL = """
import sys
from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache

manifest = make_manifest(num_samples=12, samples_per_shard=2)
writer = create_cache(sys.argv[1], manifest)
for shard in writer.missing_shards():
    writer.write_shard(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def direct(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(server, monkeypatch)


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    made = FaultyProxy(server)
    use(made.port, monkeypatch)
    yield made
    made.close()


def use(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment(port).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("on-disk")
    make_cache(path, MANIFEST)
    return all_files(LocalPlace(path))


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"s3://{BUCKET}/{name}/cache"


def all_files(place: Place) -> dict[str, bytes]:
    return {key: place.read_range(key, 0, size) for key, size in place.list_files().items()}


def write_rest(url: str, manifest: CacheManifest = MANIFEST) -> None:
    writer = create_cache(url, manifest)
    for shard in writer.missing_shards():
        writer.write_shard(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)])


@pytest.mark.parametrize("kind", ["folder", "store"])
@pytest.mark.usefixtures("direct")
def test_a_place_of_either_kind_keeps_the_same_promises(
    kind: str, url: str, tmp_path: Path
) -> None:
    place = open_place(tmp_path if kind == "folder" else url)
    place.validate_usable()
    assert (place.list_files(), place.size("a/b")) == ({}, None)
    assert place.publish("a/b", b"first")
    assert not place.publish("a/b", b"second")
    assert place.publish("a/empty", b"")
    assert place.list_files() == {"a/b": 5, "a/empty": 0}
    assert place.list_files("a") == place.list_files()
    assert place.list_files("elsewhere") == {}
    assert place.read("a/b", limit=5) == b"first"
    assert [place.read_range("a/b", 1, stop) for stop in (1, 3, 99)] == [b"", b"ir", b"irst"]
    assert [place.read_range("a/b", start, 99) for start in (5, 7)] == [b"", b""]
    assert place.read_range("a/empty", 0, 9) == b""
    with pytest.raises(CacheError, match=r"nothing: file is missing"):
        place.read_range("a/nothing", 0, 1)
    with pytest.raises(CacheError, match="absurdly large"):
        place.read("a/b", limit=4)


@pytest.mark.usefixtures("direct")
def test_a_cache_in_a_store_holds_the_bytes_of_one_on_disk(
    url: str, on_disk: dict[str, bytes]
) -> None:
    write_rest(url)
    assert all_files(open_place(url)) == on_disk
    found = verify_cache(url)
    assert (found.sound, found.complete, found.path) == (True, True, url)
    cache = open_cache(url)
    for index in (11, 0, 5):
        record = make_record(MANIFEST, index)
        assert cache[index].sample_id == record.sample_id
        np.testing.assert_array_equal(cache[index].response_ids, record.response_ids)


@pytest.mark.usefixtures("direct")
def test_two_writers_at_once_fill_one_sound_cache(url: str, on_disk: dict[str, bytes]) -> None:
    command = [sys.executable, "-c", WRITE_ALL, url]
    writers = [subprocess.Popen(command, cwd=TESTS) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert all_files(open_place(url)) == on_disk


@pytest.mark.parametrize("fault", ["cut", "reset", "503", "lost"])
def test_a_fault_that_passes_is_not_noticed(
    proxy: FaultyProxy, fault: str, url: str, on_disk: dict[str, bytes]
) -> None:
    proxy.faults += ["", "", fault, fault, "", fault]
    write_rest(url)
    assert proxy.met.count(fault) == 3
    assert all_files(open_place(url)) == on_disk


@pytest.mark.parametrize("fault", ["cut", "reset", "503", "lost"])
def test_a_fault_of_reading_that_passes_is_not_noticed(
    proxy: FaultyProxy, fault: str, url: str, on_disk: dict[str, bytes]
) -> None:
    write_rest(url)
    place = open_place(url)
    for key, content in on_disk.items():
        proxy.read_faults += [fault]
        assert place.read_range(key, 0, len(content)) == content
    assert proxy.met.count(fault) == len(on_disk)


@pytest.mark.parametrize(("fault", "problem"), [("reset", "cannot be reached"), ("503", "fails")])
def test_a_fault_that_stays_is_reported_and_a_rerun_completes_the_cache(
    proxy: FaultyProxy, fault: str, problem: str, url: str, on_disk: dict[str, bytes]
) -> None:
    proxy.faults += ["", "", "", *[fault] * 50]
    with pytest.raises(CacheError, match=rf"{url}/.*object store {problem}.*run the same command"):
        write_rest(url)
    assert 1 < proxy.met.count(fault) < 50
    proxy.faults.clear()
    left = verify_cache(url)
    assert (left.sound, left.complete) == (True, False)
    write_rest(url)
    assert all_files(open_place(url)) == on_disk


@pytest.mark.usefixtures("direct")
def test_damage_in_a_store_is_found(url: str) -> None:
    write_rest(url)
    from obstore.store import from_url

    store = from_url(url, client_options={"allow_http": True})
    content = bytearray(bytes(store.get("shards/00001.zarr.zip").bytes()))
    content[100] ^= 1
    store.put("shards/00001.zarr.zip", bytes(content))
    store.delete("shards/00003.zarr.zip")
    damages = {damage.files for damage in verify_cache(url).damages}
    assert damages == {("shards/00001.zarr.zip",), ("shards/00003.zarr.zip",)}


@pytest.mark.usefixtures("direct")
def test_a_forked_process_is_refused_instead_of_waiting_for_ever(url: str) -> None:
    write_rest(url)
    child = os.fork()
    if not child:
        try:
            open_cache(url)
        except CacheError as error:
            os._exit(3 if "forked" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.usefixtures("direct")
def test_a_missing_bucket_is_reported() -> None:
    for step in (
        lambda: write_rest("s3://nobodys/cache"),
        lambda: open_cache("s3://nobodys/cache"),
        lambda: verify_cache("s3://nobodys/cache"),
        lambda: ObjectPlace("s3://nobodys/cache").publish("a", b"1"),
    ):
        with pytest.raises(CacheError, match=r"s3://nobodys/cache: bucket does not exist"):
            step()


@pytest.mark.usefixtures("direct")
def test_a_prefix_without_a_cache_is_reported(url: str) -> None:
    with pytest.raises(CacheError, match="no cache here"):
        open_cache(url)


def test_a_server_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    use(free_port(), monkeypatch)
    result = CliRunner().invoke(cli, ["verify", "s3://caches/one"])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: s3://caches/one: object store cannot be reached")
    assert "endpoint" in line


def test_missing_credentials_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    use(port, monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # where a machine in the cloud finds its own: nobody there
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(CacheError, match=r"no credentials for the object store.*AWS_ACCESS_KEY_ID"):
        open_cache("s3://caches/stranger")


def test_denied_access_is_reported(
    proxy: FaultyProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults += ["403"]
    with pytest.raises(CacheError, match=r"access to the object store is denied.*permit"):
        write_rest(url)


@pytest.mark.parametrize(
    ("address", "fault"), [("ftp://a/b", "no cache can be kept there"), ("s3://", "cannot be used")]
)
def test_an_unknown_address_is_refused(address: str, fault: str) -> None:
    with pytest.raises(CacheError, match=fault):
        open_cache(address)


def test_without_obstore_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from vlsi_cache.cli.main import main\n"
        "sys.argv = ['vlsi-cache', 'verify', 's3://caches/one']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "object stores need the package obstore. Install vlsi-cache[s3]" in done.stderr


def test_a_recipe_keeps_a_url_as_it_is() -> None:
    recipe = recipe_from_mapping({"cache": {"path": "s3://caches//one"}}, where="test")
    assert recipe.cache_path == "s3://caches//one"
    assert json.loads(recipe.model_dump_json())["cache"]["path"] == "s3://caches//one"
    local = recipe_from_mapping({"cache": {"path": "~/one"}}, where="test")
    assert local.cache_path == Path("~/one").expanduser()


@pytest.mark.usefixtures("direct")
def test_every_command_takes_a_url(url: str, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, cache={"path": url, "k": 4, "m": 4})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")  # JSON is YAML
    dumped = run("dump-teacher", "--recipe", file)
    assert f"cache: {url}\n" in dumped
    assert not (recipe.output / "cache").exists()
    summary = json.loads(run("inspect", url, "--json"))
    assert (summary["path"], summary["complete"], summary["num_samples"]) == (url, True, 12)
    assert "s0" in run("inspect", url, "--sample", "s0")
    assert json.loads(run("verify", url, "--json"))["sound"]
    run("train-student", "--recipe", file, "--cache", url)
    assert (recipe.student_path / "model.safetensors").is_file()


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("way", ["inside the bucket", "from another", "from a disk", "to a disk"])
@pytest.mark.usefixtures("direct")
def test_caches_are_merged_wherever_they_lie(url: str, tmp_path: Path, way: str) -> None:
    from_store, to_store = way != "from a disk", way != "to a disk"
    bucket = f"s3://{BUCKET}/" if way != "from another" else f"s3://{OTHER_BUCKET}/"
    folder = url.replace(f"s3://{BUCKET}/", bucket)
    parts = []
    for name, numbers in (("one", range(3)), ("two", range(3, 8))):
        write_part(tmp_path / name, numbers)
        wanted = all_files(LocalPlace(tmp_path / name))
        if from_store:
            for key, content in sorted(wanted.items(), key=lambda item: item[0] != "manifest.json"):
                open_place(f"{folder}/{name}").publish(key, content)
        parts.append(f"{folder}/{name}" if from_store else str(tmp_path / name))
    out = f"{url}/merged" if to_store else str(tmp_path / "merged")
    merge_caches(out, parts)
    merge_caches(tmp_path / "wanted", [tmp_path / "one", tmp_path / "two"])
    assert all_files(open_place(out)) == all_files(LocalPlace(tmp_path / "wanted"))
    assert verify_cache(out).complete
    assert [record.sample_id for record in open_cache(out)] == [f"sample-{i}" for i in range(8)]


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize("name", ["seed#1", "q?x=1", "run%201", "100%", "a b", "ünï", "x+y=1&z"])
def test_every_character_of_an_address_belongs_to_it(url: str, name: str) -> None:
    place, other = open_place(f"{url}/{name}/one"), open_place(f"{url}/{name}/two")
    assert place.publish("a/b", b"content")
    assert other.adopt("a/c", place, "a/b")  # the store finds by its own key what was put there
    assert other.read("a/c", limit=10) == b"content"
    assert other.list_files() == {"a/c": 7}
    if "#" in name or "?" in name:  # which other addresses end with
        assert open_place(f"{url}/{re.split('[#?]', name)[0]}").list_files() == {}


@pytest.mark.usefixtures("direct")
def test_caches_that_differ_behind_a_hash_are_two(url: str) -> None:
    for seed in (1, 2):
        writer = create_cache(f"{url}/seed#{seed}/cache", MANIFEST)
        assert writer.missing_shards() == list(range(MANIFEST.num_shards))
        writer.write_shard(0, [make_record(MANIFEST, i) for i in MANIFEST.shard_range(0)])
    with pytest.raises(CacheError, match="no cache here"):
        open_cache(f"{url}/seed")


@pytest.mark.usefixtures("direct")
def test_the_store_copies_by_itself_and_never_over_what_is_there(url: str) -> None:
    place, other = open_place(f"{url}/one"), open_place(f"{url}/two")
    other.publish("a/b", b"content")
    assert place.adopt("c/d", other, "a/b")
    assert place.read("c/d", limit=10) == b"content"
    other.publish("a/e", b"new")
    assert place.adopt("c/d", other, "a/e")
    assert place.read("c/d", limit=10) == b"content"
    assert not place.adopt("c/f", open_place(f"s3://{OTHER_BUCKET}/x"), "a/b")
    assert place.size("c/f") is None
