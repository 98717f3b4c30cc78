from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from support.caches import HIDDEN, make_cache, make_manifest, write_part
from vlsi_cache.distribution import DrawnFrom
from vlsi_cache.hidden import HiddenSigns, sign_rows
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import merge_caches, open_cache
from vlsi_cache.store.cache.seals import CacheIndex
from vlsi_cache.store.shards.header import ShardHeader
from vlsi_cache.store.shards.layout import shard_layout

DOCUMENT = (Path(__file__).parents[2] / "FORMAT.md").read_text(encoding="utf-8")


def run_example() -> dict[str, Any]:
    (example,) = re.findall(r"```python\n(import.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    return names


@pytest.mark.parametrize(
    ("k", "m", "drawn_from"),
    [(0, 6, "rest"), (4, 0, "rest"), (4, 4, "rest"), (4, 12, "whole"), (1, 3, "whole")],
)
@pytest.mark.parametrize("hidden", [None, HIDDEN])
def test_the_documents_reader_agrees_with_the_library(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hidden: dict[str, int] | None,
    k: int,
    m: int,
    drawn_from: DrawnFrom,
) -> None:
    manifest = make_manifest(k=k, m=m, drawn_from=drawn_from, hidden=hidden)
    record = make_cache(tmp_path / "CACHE", manifest)[3]
    monkeypatch.chdir(tmp_path)
    read = run_example()
    assert (read["name"], read["key"]) == (record.sample_id, record.key)
    np.testing.assert_array_equal(read["response_ids"], record.response_ids)
    np.testing.assert_array_equal(read["token_ids"], record.distribution.token_ids)
    np.testing.assert_array_equal(read["entropy"], record.distribution.entropy)
    np.testing.assert_allclose(read["weights"], record.distribution.weights(), rtol=1e-6)
    if hidden is None:
        assert read["directions"] is None
        return
    signs = HiddenSigns(hidden["width"], hidden["bits"], manifest.sampling.seed)
    rows = torch.from_numpy(sign_rows(record.key, len(record.response_ids)))
    wanted = signs.decode(torch.from_numpy(record.hidden_signs), rows)
    np.testing.assert_allclose(read["directions"], wanted.numpy(), atol=1e-5)


def test_the_documents_table_is_the_layout() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \[(.+?)\] \| (\S+) \|", DOCUMENT, re.MULTILINE)
    sizes = {"num_samples": 2, "num_tokens": 9, "id_bytes": 70}
    layout = {
        **shard_layout(make_manifest(drawn_from="whole", hidden=HIDDEN), **sizes),
        **shard_layout(make_manifest(), **sizes),
    }
    sizes = {
        "N": 9,
        "L": 3,
        "m": 4,
        "k": 4,
        "2k+m+2": 14,
        "n+1": 3,
        "n": 2,
        "32": 32,
        "bytes": 70,
        "b/8": 8,
    }
    documented = {
        name: (dtype, tuple(sizes[axis] for axis in shape.split(", ")), fill)
        for name, dtype, shape, fill in rows
    }
    built = {
        name: (
            array.dtype,
            array.shape,
            str(array.fill_value).replace("-", "−").replace("nan", "NaN"),
        )
        for name, array in layout.items()
    }
    assert documented == built


@pytest.mark.parametrize("model", [CacheManifest, CacheIndex, ShardHeader])
def test_the_document_names_every_field(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    fields = [name for part in (schema, *schema["$defs"].values()) for name in part["properties"]]
    words = set(re.findall(r"\w+", DOCUMENT))
    assert [name for name in fields if name not in words] == []


def test_the_documents_reader_finds_a_sample_of_a_merged_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, numbers in (("one", [0, 1]), ("two", [2, 3, 4])):
        write_part(tmp_path / name, numbers, 2)
    merge_caches(tmp_path / "CACHE", [tmp_path / "one", tmp_path / "two"])
    monkeypatch.chdir(tmp_path)
    read, record = run_example(), open_cache(tmp_path / "CACHE")[3]
    assert (read["shard"], read["row"]) == (1, 1)
    assert (read["name"], read["key"]) == (record.sample_id, record.key)
    np.testing.assert_array_equal(read["token_ids"], record.distribution.token_ids)
