"""No room: a clear error, nothing torn, and the next run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.caches import make_manifest, make_record
from vlsi_cache.manifest import CacheManifest
from vlsi_cache.store import SampleRecord, create_cache, open_cache, verify_cache

# a limit of the process on the size of a file stands in for a full disk: writing fails half way,
# as it does there, and it needs no rights to set
FILL = """
import resource, sys
from pathlib import Path
from store.test_full_disk import records, small_then_large
from vlsi_cache.errors import CacheError
from vlsi_cache.store import create_cache

resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
writer = create_cache(Path(sys.argv[1]), small_then_large())
try:
    for shard in writer.missing_shards():
        writer.write_shard(shard, records(shard))
except CacheError as error:
    sys.exit(str(error))
"""


def small_then_large() -> CacheManifest:
    return make_manifest(num_samples=8, samples_per_shard=2, vocab_size=50)


def records(shard_index: int) -> list[SampleRecord]:
    """Shard 2 is the one that does not fit."""
    manifest = small_then_large()
    count = 3000 if shard_index == 2 else 20
    return [
        make_record(manifest, index, num_tokens=count)
        for index in manifest.shard_range(shard_index)
    ]


def fill(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FILL, str(path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def all_files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def write_rest(path: Path) -> list[int]:
    writer = create_cache(path, small_then_large())
    missing = writer.missing_shards()
    for shard in missing:
        writer.write_shard(shard, records(shard))
    return missing


def test_a_full_disk_is_a_clear_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    write_rest(tmp_path / "unbroken")
    path = tmp_path / "cache"
    for _ in range(2):  # a second try without room changes nothing
        result = fill(path)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "shards/00002.zarr.zip: no room for " in line
        assert "bytes free" in line
        assert "Make room, then run the same command again" in line
        found = verify_cache(path)
        assert (found.sound, found.num_shards_sealed) == (True, 2)
        assert not list(path.rglob(".*"))
        assert len(list(open_cache(path).iter_shards())) == 2
    assert write_rest(path) == [2, 3]
    assert all_files(path) == all_files(tmp_path / "unbroken")


def test_no_room_for_the_manifest_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from support.caches import make_cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "make_cache(__import__('pathlib').Path(sys.argv[1]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "manifest.json: no room for" in result.stderr
    assert all_files(tmp_path / "cache") == {}
