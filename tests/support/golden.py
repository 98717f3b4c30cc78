"""The golden cache of this version of the format, as ``make golden`` writes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from support.caches import HIDDEN, make_manifest, make_record
from vlsi_cache.manifest import FORMAT_VERSION, CacheManifest
from vlsi_cache.store import SampleRecord, create_cache, merge_caches, open_cache

__all__ = ["GOLDEN", "as_json", "write_golden"]

GOLDEN = Path(__file__).parents[1] / "store" / "golden"
"""Folders ``vN…`` and files ``vN….json`` of what they hold, for each version of the format."""

_KEPT: Final = {"k": 4, "m": 12}
"""k and m of this version's caches. The caches of other versions are never written again."""


def as_json(record: SampleRecord) -> dict[str, Any]:
    """What a record says, as JSON."""
    signs = record.hidden_signs
    return {
        "sample_id": record.sample_id,
        "key": record.key,
        "failure": record.failure,
        "response_ids": record.response_ids.tolist(),
        "token_ids": record.distribution.token_ids.tolist(),
        "weights": record.distribution.weights().tolist(),
        "entropy": record.distribution.entropy.tolist(),
        "label_log_prob": record.distribution.label_log_prob.tolist(),
        **({} if signs is None else {"hidden_signs": signs.tolist()}),
    }


def write_golden() -> list[Path]:
    """Write this version's caches, and beside each what it says."""
    path = GOLDEN / f"v{FORMAT_VERSION}"
    shutil.rmtree(path, ignore_errors=True)
    manifest = _manifest(num_samples=5, samples_per_shard=2)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text('{"golden": true}\n', encoding="utf-8")
        writer = create_cache(path, manifest, Path(folder))
    for shard in writer.missing_shards():
        writer.write_shard(shard, [_record(manifest, i) for i in manifest.shard_range(shard)])
    content = json.dumps([as_json(record) for record in open_cache(path)]) + "\n"
    path.with_suffix(".json").write_text(content, encoding="utf-8")
    return [path, _write_merged()]


def _manifest(**changes: Any) -> CacheManifest:
    return make_manifest(vocab_size=60, **_KEPT, drawn_from="whole", hidden=HIDDEN, **changes)


def _write_merged() -> Path:
    """The same samples in two caches, merged."""
    path = GOLDEN / f"v{FORMAT_VERSION}-merged"
    shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder, "first"), Path(folder, "second")]
        for part, numbers, samples_per_shard in zip(
            parts, ((0, 1, 2), (3, 4)), (2, 1), strict=True
        ):
            records = [_record(_manifest(), i) for i in numbers]
            keys = b"".join(bytes.fromhex(record.key) for record in records)
            manifest = _manifest(
                samples_per_shard=samples_per_shard,
                dataset={
                    "source": f"{part.name}.jsonl",
                    "fingerprint": hashlib.sha256(keys).hexdigest(),
                    "num_samples": len(records),
                },
            )
            writer = create_cache(part, manifest)
            for shard in writer.missing_shards():
                samples = manifest.shard_range(shard)
                writer.write_shard(shard, records[samples.start : samples.stop])
        merge_caches(path, parts)
    content = json.dumps([as_json(record) for record in open_cache(path)]) + "\n"
    path.with_suffix(".json").write_text(content, encoding="utf-8")
    return path


def _record(manifest: CacheManifest, sample_index: int) -> SampleRecord:
    if sample_index != 3:
        return make_record(manifest, sample_index)
    failed = make_record(manifest, sample_index, num_tokens=0)
    return dataclasses.replace(failed, failure="image cannot be decoded")


if __name__ == "__main__":
    write_golden()
