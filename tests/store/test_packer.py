"""Shards packed by a process of its own, against those that this one packs."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.caches import make_manifest, make_record
from vlsi_cache.errors import CacheError
from vlsi_cache.store import CacheWriter, Packer, create_cache, open_cache
from vlsi_cache.store.shards.address import ShardAddress

MANIFEST = make_manifest(num_samples=6, samples_per_shard=2)


def write(writer: CacheWriter, shard: int, packer: Packer) -> None:
    records = [make_record(MANIFEST, index) for index in MANIFEST.shard_range(shard)]
    writer.write_shard(shard, records, packer.pack)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.zip")
        if path.is_file()
    }


def test_a_packed_shard_is_the_same_file(tmp_path: Path) -> None:
    ours, theirs = create_cache(tmp_path / "ours", MANIFEST), create_cache(tmp_path / "p", MANIFEST)
    with Packer() as packer:
        for shard in range(MANIFEST.num_shards):
            write(theirs, shard, packer)
            records = [make_record(MANIFEST, index) for index in MANIFEST.shard_range(shard)]
            ours.write_shard(shard, records)
    assert files(tmp_path / "p") == files(tmp_path / "ours")
    assert len(files(tmp_path / "p")) == MANIFEST.num_shards
    assert len(open_cache(tmp_path / "p")) == 6


def test_a_killed_process_costs_no_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = create_cache(tmp_path / "cache", MANIFEST)
    with Packer() as packer:
        write(writer, 0, packer)
        assert packer.process_id is not None
        os.kill(packer.process_id, signal.SIGKILL)
        write(writer, 1, packer)
        write(writer, 2, packer)
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "the system ended the process that packs shards" in warnings[0].message
    assert len(open_cache(tmp_path / "cache")) == 6


def test_a_signal_to_all_processes_of_a_job_costs_no_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This process writes its whole shards before it ends, and needs the other for it."""
    writer = create_cache(tmp_path / "cache", MANIFEST)
    with Packer() as packer:
        write(writer, 0, packer)
        assert packer.process_id is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(packer.process_id, number)
        write(writer, 1, packer)
        write(writer, 2, packer)
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(open_cache(tmp_path / "cache")) == 6


def test_what_is_refused_there_is_raised_here(tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "cache", MANIFEST)
    with Packer() as packer:

        def refused(address: ShardAddress, record: object) -> bytes:
            return packer.pack(address, "no record")  # type: ignore[arg-type]

        records = [make_record(MANIFEST, index) for index in MANIFEST.shard_range(0)]
        with pytest.raises(CacheError, match="could not be packed"):
            writer.write_shard(0, records, refused)
        write(writer, 0, packer)  # the process lives on


_SCRIPT = """
import sys
from pathlib import Path
from support.caches import make_manifest, make_record
from vlsi_cache.store import Packer, create_cache

print("begun", flush=True)
manifest = make_manifest(num_samples=6, samples_per_shard=2)
writer = create_cache(Path(sys.argv[1]), manifest)
with Packer() as packer:
    for shard in range(manifest.num_shards):
        records = [make_record(manifest, index) for index in manifest.shard_range(shard)]
        writer.write_shard(shard, records, packer.pack)
    assert packer.process_id is not None
"""


@pytest.mark.parametrize("is_file", [True, False])
def test_a_script_without_a_guard_runs_once(tmp_path: Path, *, is_file: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script) if is_file else "-", str(tmp_path / "cache")],
        input=None if is_file else _SCRIPT,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("begun\n", "")
    assert len(open_cache(tmp_path / "cache")) == 6


def test_it_ends_at_once_although_others_hold_its_pipe() -> None:
    """As processes that read ahead do, which are forked while it is at work."""
    with Packer() as packer:
        assert packer.process_id is not None
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        assert packer.exit_code == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_want_of_memory_there_costs_no_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = create_cache(tmp_path / "cache", MANIFEST)
    with Packer() as packer:
        write(writer, 0, packer)
        assert packer.process_id is not None
        resource.prlimit(packer.process_id, resource.RLIMIT_AS, (2**20, 2**20))
        records = [make_record(MANIFEST, index, num_tokens=4_000) for index in (2, 3)]
        writer.write_shard(1, records, packer.pack)
        write(writer, 2, packer)
    assert len(open_cache(tmp_path / "cache")) == 6
    assert [one.levelname for one in caplog.records if one.levelno > 20] == ["WARNING"]


def test_it_ends_with_its_context() -> None:
    with Packer() as packer:
        number = packer.process_id
        assert number is not None
        os.kill(number, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
