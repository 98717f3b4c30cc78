from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from support.caches import make_manifest, sha256
from vlsi_cache.manifest import CacheManifest, explain_difference, find_manifest_differences


def test_a_manifest_survives_json() -> None:
    manifest = make_manifest()
    assert CacheManifest.model_validate_json(manifest.model_dump_json()) == manifest


@given(num_samples=st.integers(0, 50), samples_per_shard=st.integers(1, 20))
def test_shards_partition_the_samples(num_samples: int, samples_per_shard: int) -> None:
    manifest = make_manifest(num_samples=num_samples, samples_per_shard=samples_per_shard)
    ranges = [manifest.shard_range(index) for index in range(manifest.num_shards)]
    assert [sample for part in ranges for sample in part] == list(range(num_samples))
    assert all(
        manifest.shard_of(sample) == index for index, part in enumerate(ranges) for sample in part
    )


@pytest.mark.parametrize("index", [-1, 3])
def test_a_shard_that_is_not_in_the_plan_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match="of 3"):
        make_manifest().shard_range(index)


@pytest.mark.parametrize("index", [-1, 5])
def test_a_sample_that_is_not_in_the_plan_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match="of 5"):
        make_manifest().shard_of(index)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"taps": [2, 6]}, "end with -1"),
        ({"taps": [6, 2, -1]}, "ascend"),
        ({"taps": [2, 2, -1]}, "ascend"),
        ({"taps": [-1, 2, -1]}, "ascend"),
        ({"taps": [2, -2, -1]}, "greater than or equal to -1"),
        ({"taps": []}, "at least 1 item"),
        ({"sampling": {"k": 0, "m": 0, "seed": 0}}, "k \\+ sampling.m is 0"),
        ({"sampling": {"k": 400, "m": 200, "seed": 0}}, "exceeds tokenizer.vocab_size"),
        ({"sampling": {"k": 0, "m": 256, "seed": 0}}, "less than or equal to 255"),
        (
            {"sampling": {"k": 0, "m": 255, "seed": 0}, "taps": [*range(300), -1]},
            "draws per token at all taps",
        ),
        ({"samples_per_shard": 0}, "greater than or equal to 1"),
        ({"samples_per_shard": "2"}, "valid integer"),
        ({"verbalizers_fingerprint": "abc"}, "match pattern"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_a_contradictory_manifest_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        make_manifest(**changes)


def test_every_difference_is_named_with_its_path() -> None:
    recorded = make_manifest(k=4, verbalizers_fingerprint=sha256("one"))
    asked = make_manifest(k=8, verbalizers_fingerprint=sha256("two"))
    found = find_manifest_differences(recorded, asked)
    assert list(map(explain_difference, found)) == [
        "sampling.k is 4, asked for 8",
        f"verbalizers_fingerprint is {sha256('one')[:12]}…, asked for {sha256('two')[:12]}… "
        "(the teacher's verbalizers have other weights)",
    ]


def test_names_and_versions_inform_but_do_not_differ() -> None:
    manifest = make_manifest()
    moved = manifest.model_copy(
        update={
            "vlsi_cache_version": "0.2.0",
            "teacher": manifest.teacher.model_copy(update={"name": "elsewhere"}),
            "tokenizer": manifest.tokenizer.model_copy(update={"name": "elsewhere"}),
            "dataset": manifest.dataset.model_copy(update={"source": "/elsewhere.jsonl"}),
        }
    )
    assert find_manifest_differences(manifest, moved) == []


def with_config(config: str | None, library: str = "5.23.0") -> CacheManifest:
    teacher = make_manifest().teacher.model_dump(mode="json")
    if config is not None:
        teacher["config"] = {"sha256": sha256(config), "transformers": library}
    return make_manifest(teacher=teacher)


def test_configs_are_compared_where_one_version_read_both() -> None:
    first = with_config("one")
    (found,) = find_manifest_differences(first, with_config("two"))
    assert explain_difference(found) == (
        f"teacher.config.sha256 is {sha256('one')[:12]}…, asked for {sha256('two')[:12]}… "
        "(the teacher's config.json decides other numbers)"
    )
    versions = ("5.24.0", "4.0")
    others = [with_config("two", version) for version in versions]
    for other in (first, with_config(None), *others):
        assert find_manifest_differences(first, other) == []
        assert find_manifest_differences(other, first) == []


def test_a_manifest_without_a_config_is_as_it_was() -> None:
    assert "config" not in make_manifest().model_dump(mode="json")["teacher"]


def test_the_schema_documents_every_field() -> None:
    schema = CacheManifest.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    undocumented = [
        name
        for part in parts
        for name, field in part["properties"].items()
        if not {"description", "$ref"} & field.keys()  # a part describes itself
    ]
    assert undocumented == []
