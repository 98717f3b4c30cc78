"""Writers killed at any moment, and what the next run makes of what they left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache, open_cache, verify_cache

TESTS = Path(__file__).parents[1]
NUM_SAMPLES = 20
NUM_MOMENTS = 60
MANIFEST = make_manifest(num_samples=NUM_SAMPLES, samples_per_shard=2, vocab_size=50)
RECORDS = [make_record(MANIFEST, i, num_tokens=2 + i) for i in range(NUM_SAMPLES)]

# imports once, then forks a writer for every line: most of a killed process's life is writing
SERVER = f"""
import os, sys, traceback
from pathlib import Path
from support.caches import make_manifest, make_record
from vlsi_cache.store import create_cache

manifest = make_manifest(num_samples={NUM_SAMPLES}, samples_per_shard=2, vocab_size=50)
records = [make_record(manifest, i, num_tokens=2 + i) for i in range({NUM_SAMPLES})]
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    try:
        writer = create_cache(Path(line.strip()), manifest, Path(sys.argv[1]))
        for shard in writer.missing_shards():
            part = manifest.shard_range(shard)
            writer.write_shard(shard, records[part.start : part.stop])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""


class WriterServer:
    """Starts real writer processes, one at a time, and tells how they ended."""

    def __init__(self, processor: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(processor)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin(self, cache: Path) -> int:
        """Start a writer; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{cache}\n")
        return self._line()

    def end(self) -> int:
        """Wait for the writer; its exit code, negative if it was killed."""
        return self._line()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def servers(processor: Path) -> Iterator[list[WriterServer]]:
    started = [WriterServer(processor) for _ in range(2)]
    yield started
    for server in started:
        server.close()


def all_files(path: Path) -> dict[Path, bytes]:
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(name * 100)
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, processor: Path) -> dict[Path, bytes]:
    path = tmp_path_factory.mktemp("unbroken")
    write_rest(path, processor)
    return all_files(path)


def write_rest(path: Path, processor: Path) -> None:
    writer = create_cache(path, MANIFEST, processor)
    for shard in writer.missing_shards():
        part = MANIFEST.shard_range(shard)
        writer.write_shard(shard, RECORDS[part.start : part.stop])


@pytest.fixture(scope="module")
def run_seconds(tmp_path_factory: pytest.TempPathFactory, servers: list[WriterServer]) -> float:
    """How long a writer's unbroken run takes here and now."""
    times = []
    for name in ("first", "second", "third"):
        began = time.monotonic()
        servers[0].begin(tmp_path_factory.mktemp(name))
        assert servers[0].end() == 0
        times.append(time.monotonic() - began)
    return min(times)


@pytest.mark.parametrize("num_writers", [1, 2])
def test_killed_at_any_moment_and_run_again_gives_the_bytes_of_an_unbroken_run(
    tmp_path: Path,
    processor: Path,
    servers: list[WriterServer],
    unbroken: dict[Path, bytes],
    run_seconds: float,
    num_writers: int,
) -> None:
    generator = np.random.default_rng(num_writers)
    running, num_killed, shards_seen = servers[:num_writers], 0, set()
    for attempt in range(NUM_MOMENTS):
        path = tmp_path / str(attempt)
        children = [server.begin(path) for server in running]
        time.sleep(float(generator.uniform(0, run_seconds)))
        for child in children:
            with contextlib.suppress(ProcessLookupError):  # done already
                os.kill(child, signal.SIGKILL)
        codes = [server.end() for server in running]
        assert set(codes) <= {0, -signal.SIGKILL}
        num_killed += codes.count(-signal.SIGKILL)
        if (path / "manifest.json").exists():
            found = verify_cache(path)
            assert found.sound, found
            read = len(list(open_cache(path).iter_shards()))
            assert read >= found.num_shards_sealed
            shards_seen.add(read)
        write_rest(path, processor)
        assert all_files(path) == unbroken
    assert num_killed >= 0.6 * NUM_MOMENTS * num_writers
    assert len(shards_seen) > 5  # the moments were spread over the whole run
