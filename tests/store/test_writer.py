from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.archives import chunk_of, read_entries, shard_file, write_entries
from support.caches import make_cache, make_manifest, make_record, sha256
from vlsi_cache.errors import CacheError, CacheMismatchError
from vlsi_cache.store import create_cache, open_cache, verify_cache
from vlsi_cache.store.places.local import LocalPlace

WRITE_ALL = """
import sys
from pathlib import Path
from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache

manifest = make_manifest(num_samples=24, samples_per_shard=2)
writer = create_cache(Path(sys.argv[1]), manifest)
for shard in writer.missing_shards():
    part = manifest.shard_range(shard)
    writer.write_shard(shard, [make_record(manifest, i, seed=int(sys.argv[2])) for i in part])
"""


def start_writer(path: Path, seed: int = 0) -> subprocess.Popen[bytes]:
    tests = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", WRITE_ALL, str(path), str(seed)], cwd=tests)


def all_files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_two_writers_at_once_fill_one_sound_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "alone", make_manifest(num_samples=24, samples_per_shard=2))
    writers = [start_writer(tmp_path / "shared") for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert all_files(tmp_path / "shared") == all_files(tmp_path / "alone")


def test_two_writers_of_different_records_leave_one_sound_cache_of_whole_shards(
    tmp_path: Path,
) -> None:
    shards: list[dict[Path, bytes]] = []
    for seed in range(2):
        assert start_writer(tmp_path / str(seed), seed).wait() == 0
        shards.append(all_files(tmp_path / str(seed) / "shards"))
    writers = [start_writer(tmp_path / "shared", seed) for seed in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = verify_cache(tmp_path / "shared")
    assert (found.sound, found.complete) == (True, True)
    for file, content in all_files(tmp_path / "shared/shards").items():
        assert content in (shards[0][file], shards[1][file])


def test_a_shard_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    before = all_files(tmp_path)
    others = [make_record(cache.manifest, index, seed=9) for index in range(2)]
    create_cache(tmp_path, cache.manifest).write_shard(0, others)
    assert all_files(tmp_path) == before


def test_a_living_writers_temporary_file_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, link, staged = LocalPlace(tmp_path), os.link, []

    def clear_amid_publishing(source: Path, target: Path) -> None:
        LocalPlace(tmp_path).clear_leftovers(["shards"])
        staged.append(source.exists())
        link(source, target)

    monkeypatch.setattr(os, "link", clear_amid_publishing)
    assert place.publish("shards/00000.zarr.zip", b"whole")
    assert staged == [True]
    assert all_files(tmp_path) == {Path("shards/00000.zarr.zip"): b"whole"}


def test_what_is_published_first_stays(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    assert place.publish("index.json", b"first")
    assert not place.publish("index.json", b"second")
    assert all_files(tmp_path) == {Path("index.json"): b"first"}


def test_a_killed_writers_leftovers_are_cleared_away(tmp_path: Path) -> None:
    make_cache(tmp_path, shards=[0])
    (tmp_path / f".manifest.json.{'0' * 32}.partial").touch()
    (tmp_path / f"shards/.00001.zarr.zip.{'0' * 32}.partial").write_bytes(b"half")
    make_cache(tmp_path, shards=[1])
    assert not list(tmp_path.rglob(".*"))


def test_what_no_writer_left_is_never_deleted(tmp_path: Path) -> None:
    left = f".00001.zarr.zip.{'0' * 32}.partial"
    others = [Path(".film.mkv.partial"), Path(left), Path("downloads", left), Path("thesis.tex")]
    for file in others:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"precious")
    with pytest.raises(CacheError, match="not empty"):
        create_cache(tmp_path, make_manifest())
    assert set(all_files(tmp_path)) == set(others)
    make_cache(tmp_path / "cache")
    (tmp_path / "cache/notes").mkdir()
    strange = [tmp_path / "cache" / name for name in (".film.mkv.partial", f"notes/{left}")]
    for file in strange:
        file.write_bytes(b"precious")
    create_cache(tmp_path / "cache", make_manifest())
    with pytest.raises(CacheMismatchError):
        create_cache(tmp_path / "cache", make_manifest(k=5))
    assert [file.read_bytes() for file in strange] == [b"precious"] * 2


def test_what_a_killed_writer_left_unsealed_is_sealed_by_the_next(tmp_path: Path) -> None:
    make_cache(tmp_path)
    whole = all_files(tmp_path)
    for names in (["index.json"], ["index.json", "shards/00001.json"]):
        for name in names:
            (tmp_path / name).unlink()
        create_cache(tmp_path, make_manifest())
        assert all_files(tmp_path) == whole


def test_damage_is_never_sealed(tmp_path: Path) -> None:
    make_cache(tmp_path)
    (tmp_path / "index.json").unlink()
    (tmp_path / "shards/00001.json").unlink()
    entries = read_entries(shard_file(tmp_path, 1))
    chunk = chunk_of(entries, "entropy")
    entries[chunk] = entries[chunk][:-1] + bytes([entries[chunk][-1] ^ 1])
    write_entries(shard_file(tmp_path, 1), entries)
    with pytest.raises(CacheError, match=r"00001\.zarr\.zip: shard is damaged"):
        create_cache(tmp_path, make_manifest())
    assert not (tmp_path / "shards/00001.json").exists()


def test_a_seal_of_other_bytes_is_an_error_that_names_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    shard_file(tmp_path, 0).unlink()
    others = [make_record(cache.manifest, index, seed=9) for index in range(2)]
    with pytest.raises(CacheError, match=r"00000\.json: seal contradicts the shard beside it"):
        create_cache(tmp_path, cache.manifest).write_shard(0, others)


def test_a_processor_is_kept_once_and_sealed(tmp_path: Path) -> None:
    manifest = make_manifest()
    source = tmp_path / "processor"
    (source / "more").mkdir(parents=True)
    (source / "tokenizer.json").write_text("{}")
    (source / "more/template.jinja").write_text("{{ hello }}")
    create_cache(tmp_path / "cache", manifest, source)
    before = all_files(tmp_path / "cache")
    (source / "tokenizer.json").write_text("another")
    create_cache(tmp_path / "cache", manifest, source)
    assert all_files(tmp_path / "cache") == before
    make_cache(tmp_path / "cache", manifest)
    index = json.loads((tmp_path / "cache/index.json").read_bytes())
    assert index["processor"]["files"]["more/template.jinja"]["num_bytes"] == 11


@pytest.fixture
def processor(tmp_path: Path) -> Path:
    folder = tmp_path / "processor"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_processor_is_added_to_a_complete_cache_only_as_the_error_says(
    tmp_path: Path, processor: Path
) -> None:
    path = tmp_path / "cache"
    cache = make_cache(path)
    before = all_files(path)
    create_cache(path, cache.manifest, processor)
    assert all_files(path) == before
    mend = r"Delete index\.json and run dump-teacher again with the same settings; it is added"
    with pytest.raises(CacheError, match=mend), cache.processor_folder():
        pass
    (path / "index.json").unlink()
    with pytest.raises(CacheError, match=r"processor\. Run dump-teacher"), cache.processor_folder():
        pass
    create_cache(path, cache.manifest, processor)
    found = verify_cache(path)
    assert (found.sound, found.complete) == (True, True)
    with cache.processor_folder() as folder:
        assert (folder / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["tokenizer.json", "another.json"])
def test_a_mixture_of_two_processors_is_never_sealed(
    tmp_path: Path, processor: Path, name: str
) -> None:
    path = tmp_path / "cache"
    create_cache(path, make_manifest())
    (path / "processor").mkdir()
    (path / "processor" / name).write_text("of another version")
    with pytest.raises(CacheError, match=rf"not this teacher's; found processor/{name}"):
        create_cache(path, make_manifest(), processor)
    assert not (path / "processor.json").exists()
    (path / "processor" / name).unlink()
    create_cache(path, make_manifest(), processor)
    assert (path / "processor.json").exists()


@pytest.mark.parametrize("num_bytes", [2**59, 1])
def test_a_seal_of_any_size_costs_no_memory(
    tmp_path: Path, processor: Path, num_bytes: int
) -> None:
    path = tmp_path / "cache"
    create_cache(path, make_manifest(), processor)
    tree = json.loads((path / "processor.json").read_bytes())
    tree["files"]["tokenizer.json"]["num_bytes"] = num_bytes
    (path / "processor.json").write_text(json.dumps(tree, indent=1) + "\n")
    with (
        pytest.raises(CacheError, match=r"tokenizer\.json: file differs from its seal"),
        open_cache(path).processor_folder(),
    ):
        pass


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    make_cache(tmp_path)
    with pytest.raises(CacheMismatchError) as caught:
        create_cache(tmp_path, make_manifest(k=8, dtype="bfloat16", chat_template_hash=sha256("x")))
    assert 'dtype is "float32", asked for "bfloat16"' in str(caught.value)
    assert "chat_template_hash is" in str(caught.value)
    assert "sampling.k is 4, asked for 8" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dataset.fingerprint", sha256("?"), "other conversations, or other images"),
        ("dataset.num_samples", 6, "is 5, asked for 6 (the data is longer or shorter"),
        ("tokenizer.hash", sha256("?"), "the teacher has another vocabulary"),
        ("tokenizer.vocab_size", 501, "vocabulary has another size"),
        ("chat_template_hash", sha256("?"), "the chat template renders other conversations"),
        ("teacher.weights_fingerprint", sha256("?"), "the teacher has other weights"),
        ("teacher.model_type", "llama", 'is "qwen2_vl", asked for "llama"'),
        ("verbalizers_fingerprint", sha256("?"), "verbalizers have other weights"),
        ("sampling.k", 5, "sampling.k is 4, asked for 5"),
        ("sampling.m", 5, "sampling.m is 4, asked for 5"),
        ("sampling.seed", 1, "is 0, asked for 1 (other draws)"),
        ("taps", [2, -1], "is [2, 6, -1], asked for [2, -1] (the teacher is read at other layers)"),
        ("dtype", "bfloat16", "the teacher runs in another precision"),
        ("samples_per_shard", 3, "the shards have other sizes"),
    ],
)
def test_each_other_setting_has_its_own_message(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    make_cache(tmp_path, shards=[0])
    before = all_files(tmp_path)
    tree = make_manifest().model_dump(mode="json")
    part = tree
    *folders, last = path.split(".")
    for folder in folders:
        part = part[folder]
    part[last] = value
    with pytest.raises(CacheMismatchError) as caught:
        create_cache(tmp_path, make_manifest(**tree))
    sentence = str(caught.value)
    assert f"{path} is " in sentence
    assert message in sentence
    assert sentence.count("asked for") == 1
    assert all_files(tmp_path) == before


def test_a_moved_teacher_may_go_on(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, shards=[0])
    teacher = cache.manifest.teacher.model_copy(update={"name": "moved"})
    writer = create_cache(tmp_path, cache.manifest.model_copy(update={"teacher": teacher}))
    assert writer.missing_shards() == [1, 2]
    assert writer.manifest == cache.manifest


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheError, match=r"not empty.*thesis\.tex"):
        create_cache(tmp_path, make_manifest())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_cache_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match="not a folder"):
        create_cache(tmp_path / "cache", make_manifest())


def test_a_shard_takes_its_own_number_of_records(tmp_path: Path) -> None:
    manifest = make_manifest()
    with pytest.raises(ValueError, match="takes 2 records, not 1"):
        create_cache(tmp_path, manifest).write_shard(0, [make_record(manifest, 0)])


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("top_log_probs", np.nan, r"at \[0, 1, 0\]: top_log_probs.*finite.*nan"),
        ("top_log_probs", np.inf, "inf"),
        ("label_log_prob", 3.0, "label_log_prob"),
        ("entropy", np.nan, "entropy"),
        ("entropy", 1e6, "entropy"),
        ("token_ids", -1, "id below 500"),
        ("token_ids", 500, "id below 500"),
    ],
)
def test_a_value_that_no_distribution_holds_is_refused_with_sample_and_place(
    tmp_path: Path, name: str, value: float, fault: str
) -> None:
    manifest = make_manifest()
    records = [make_record(manifest, 0), make_record(manifest, 1)]
    getattr(records[1].distribution, name)[0, 1] = value
    writer = create_cache(tmp_path, manifest)
    with pytest.raises(CacheError, match=f"'sample-1'.*{fault}"):
        writer.write_shard(0, records)
    assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("changes", [{"taps": (2, -1)}, {"k": 3, "m": 5}, {"m": 3}])
def test_a_record_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    records = [make_record(make_manifest(**changes), index) for index in range(2)]
    with pytest.raises(CacheError, match="does not fit the cache"):
        create_cache(tmp_path, make_manifest()).write_shard(0, records)


def test_a_key_that_is_not_a_sha256_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest()
    records = [dataclasses.replace(make_record(manifest, index), key="abcd") for index in range(2)]
    with pytest.raises(ValueError, match="sample-0"):
        create_cache(tmp_path, manifest).write_shard(0, records)


def test_writing_from_threads_fills_every_shard(tmp_path: Path) -> None:
    manifest = make_manifest()
    writer = create_cache(tmp_path, manifest)
    threads = [
        threading.Thread(
            target=writer.write_shard,
            args=(shard, [make_record(manifest, i) for i in manifest.shard_range(shard)]),
        )
        for shard in writer.missing_shards()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_cache(tmp_path).is_complete
