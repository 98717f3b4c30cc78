"""Two processors are the same if they decide the same, whatever else their files say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.caches import make_manifest, sha256, write_part
from support.processors import image_processor_for
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import create_cache, merge_caches, open_cache, verify_cache

Change = Callable[[dict[str, Any]], object]


def manifest_of(library: str | None, config: str = "config", **changes: Any) -> CacheManifest:
    teacher = make_manifest().teacher.model_dump(mode="json")
    if library is not None:
        teacher["config"] = {"sha256": sha256(config), "transformers": library}
    return make_manifest(teacher=teacher, **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    image_processor_for("qwen2_vl").save_pretrained(folder)
    return folder


def copy_with(saved: Path, folder: Path, name: str, change: Change) -> Path:
    shutil.copytree(saved, folder)
    tree = json.loads((folder / name).read_bytes())
    change(tree)
    (folder / name).write_text(json.dumps(tree), "utf-8")
    return folder


def image(change: dict[str, Any]) -> Change:
    return lambda tree: tree["image_processor"].update(change)


DECIDING: dict[str, tuple[str, Change, str]] = {
    "mean": ("processor_config.json", image({"image_mean": [0.9, 0.1, 0.9]}), "image_mean is "),
    "size": ("processor_config.json", image({"size": {"longest_edge": 64}}), "longest_edge is "),
    "resize": ("processor_config.json", image({"do_resize": False}), "do_resize is true, "),
    "spaces": (
        "tokenizer.json",
        lambda tree: tree["pre_tokenizer"].update(add_prefix_space=True),
        "add_prefix_space is false, ",
    ),
    "merges": ("tokenizer.json", lambda tree: tree["model"]["merges"].pop(), "model.merges is "),
}
ONE_SIDED: dict[str, tuple[str, Change, str]] = {
    "limit": ("processor_config.json", image({"max_pixels": 64}), "max_pixels is absent"),
    "normalizer": (
        "tokenizer.json",
        lambda tree: tree.update(normalizer={"type": "Lowercase"}),
        "normalizer.type is absent",
    ),
}
HARMLESS: dict[str, tuple[str, Change]] = {
    "names": (
        "processor_config.json",
        lambda tree: (tree.update(processor_class="Qwen3VLProcessor"), image({"a_type": "b"})),
    ),
    "paths": (
        "tokenizer_config.json",
        lambda tree: tree.update(name_or_path="/elsewhere", is_local=False, backend="other"),
    ),
    "numbers": ("processor_config.json", image({"patch_size": 8.0, "do_pad": None})),
    "padding": (
        "tokenizer.json",
        lambda tree: tree.update(padding={"length": 3}, truncation={"max_length": 9}),
    ),
    "merges as texts": (
        "tokenizer.json",
        lambda tree: tree["model"].update(merges=[" ".join(x) for x in tree["model"]["merges"]]),
    ),
}


@pytest.mark.parametrize("library", ["5.23.0", None])
@pytest.mark.parametrize("case", DECIDING)
def test_a_processor_that_decides_otherwise_is_refused_in_any_version(
    saved: Path, tmp_path: Path, case: str, library: str | None
) -> None:
    name, change, clause = DECIDING[case]
    other = copy_with(saved, tmp_path / "other", name, change)
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), saved)
    before = sorted((tmp_path / "cache").rglob("*"))
    with pytest.raises(CacheMismatchError) as caught:
        create_cache(tmp_path / "cache", manifest_of(library), other)
    assert clause in str(caught.value)
    assert f"{name}." in str(caught.value)
    assert "go back to the teacher's files of then" in str(caught.value)
    assert sorted((tmp_path / "cache").rglob("*")) == before


@pytest.mark.parametrize("case", ONE_SIDED)
def test_a_field_that_one_processor_has_counts_only_in_one_version(
    saved: Path, tmp_path: Path, case: str
) -> None:
    name, change, clause = ONE_SIDED[case]
    other = copy_with(saved, tmp_path / "other", name, change)
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), saved)
    for library in ("5.24.0", None):
        create_cache(tmp_path / "cache", manifest_of(library), other)
    with pytest.raises(CacheMismatchError) as caught:
        create_cache(tmp_path / "cache", manifest_of("5.23.0"), other)
    assert clause in str(caught.value)


@pytest.mark.parametrize("case", HARMLESS)
def test_names_paths_and_other_spellings_decide_nothing(
    saved: Path, tmp_path: Path, case: str
) -> None:
    other = copy_with(saved, tmp_path / "other", *HARMLESS[case])
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), saved)
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), other)


def test_a_damaged_copy_says_nothing_of_a_processor(saved: Path, tmp_path: Path) -> None:
    other = copy_with(saved, tmp_path / "other", *DECIDING["mean"][:2])
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), saved)
    (tmp_path / "cache/processor/processor_config.json").unlink()
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), other)
    assert not verify_cache(tmp_path / "cache").sound


@pytest.mark.parametrize("content", [b"no JSON", b"[]", b'{"a": ' * 900 + b"1" + b"}" * 900])
def test_what_cannot_be_compared_is_no_difference(
    saved: Path, tmp_path: Path, content: bytes
) -> None:
    shutil.copytree(saved, tmp_path / "other")
    (tmp_path / "other/tokenizer_config.json").write_bytes(content)
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), tmp_path / "other")
    create_cache(tmp_path / "cache", manifest_of("5.23.0"), saved)


def part(path: Path, numbers: range, processor: Path, library: str | None) -> Path:
    """A complete cache with a processor, of a teacher that this version of transformers read."""
    teacher = manifest_of(library).teacher.model_dump(mode="json")
    return write_part(path, numbers, processor=processor, teacher=teacher)


def test_caches_of_processors_that_decide_otherwise_are_not_merged(
    saved: Path, tmp_path: Path
) -> None:
    other = copy_with(saved, tmp_path / "other", *DECIDING["mean"][:2])
    more = copy_with(saved, tmp_path / "more", *ONE_SIDED["limit"][:2])
    one = part(tmp_path / "1", range(3), saved, "5.23.0")
    two = part(tmp_path / "2", range(3, 5), other, "5.24.0")
    with pytest.raises(CacheMismatchError, match=r"/2: .*image_mean is \[0\.9.*first cache's \[0"):
        merge_caches(tmp_path / "merged", [one, two])
    assert not (tmp_path / "merged").exists()
    newer = part(tmp_path / "3", range(5, 7), saved, "5.24.0")
    newest = part(tmp_path / "4", range(7, 9), more, "5.24.0")
    merge_caches(tmp_path / "merged", [one, newest])
    with pytest.raises(CacheMismatchError, match=r"/4: .*max_pixels is 64, .*/3 absent"):
        merge_caches(tmp_path / "more merged", [one, newer, newest])


def test_a_merged_cache_keeps_a_config_that_all_have(saved: Path, tmp_path: Path) -> None:
    libraries = ("5.23.0", "5.23.0", "5.24.0", None)
    parts = [
        part(tmp_path / str(i), range(2 * i, 2 * i + 2), saved, library)
        for i, library in enumerate(libraries)
    ]
    merge_caches(tmp_path / "alike", parts[:2])
    kept = open_cache(tmp_path / "alike").manifest.teacher.config
    assert kept == manifest_of("5.23.0").teacher.config
    merge_caches(tmp_path / "mixed", parts)
    merge_caches(tmp_path / "again", [tmp_path / "alike", *parts[2:]])
    for name in ("mixed", "again"):
        assert open_cache(tmp_path / name).manifest.teacher.config is None
        assert verify_cache(tmp_path / name).sound
